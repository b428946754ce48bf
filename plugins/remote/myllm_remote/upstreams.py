"""Several servers that have the same model: which one is asked, and which are left alone for a while."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from myllm_core.errors import EngineError, MyllmError, NetworkError
from myllm_core.transfer.urls import Target, parse_url
from myllm_remote.failures import failure
from myllm_remote.http import Exchange, Unreachable, request
from myllm_remote.keys import key_for

log = logging.getLogger("myllm.remote")

_LIST_TIMEOUT = 10.0
_QUICK = 60.0
_MAX_LIST = 16 * 2**20
_MAX_ERROR = 65_536
_REST = 5.0
"""Seconds that a server is left alone after nobody was reached there, unless a check says that it is back."""


@dataclass(slots=True)
class Upstream:
    """A server: how many requests it runs for us, how many it had, and until when it is taken for down."""

    target: Target
    key: str = field(repr=False, default="")
    running: int = 0
    asked: int = 0
    down_until: float = 0.0

    @property
    def where(self) -> str:
        """The server's name in messages."""
        return self.target.authority


def list_models(target: Target, key: str, timeout: float = _LIST_TIMEOUT) -> list[dict[str, Any]]:
    """The entries of a server's ``/models``. Raises ``NetworkError``, or what its refusal means."""
    with request(target, "GET", "models", key, connect=timeout, stall=timeout) as exchange:
        for _ in exchange.head():
            pass
        if exchange.status != 200:
            raise failure(target, exchange.status, exchange.headers, exchange.whole(_MAX_ERROR), key)
        body = exchange.whole(_MAX_LIST)
    try:
        entries = json.loads(body)["data"]
        return [{**entry, "id": str(entry["id"])} for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NetworkError(
            f"what answers at {target.url} is no OpenAI-compatible server; the address often ends in /v1"
        ) from None


class Upstreams:
    """Sends requests to the least busy server that is up. May be used from several threads."""

    def __init__(
        self, urls: Sequence[str], *, api_key_env: str = "", connect: float, stall: float, interval: float
    ) -> None:
        self._connect, self._stall = connect, stall
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        targets = [parse_url(url) for url in urls]
        self._all = [Upstream(target, key_for(target, api_key_env)) for target in targets]
        self._checker = threading.Thread(target=self._keep_checking, args=(interval,), daemon=True, name="health")
        if interval > 0 and len(self._all) > 1:
            self._checker.start()

    def close(self) -> None:
        """End the checks; may be called twice."""
        self._stopped.set()
        if self._checker.is_alive():
            self._checker.join(2 * _LIST_TIMEOUT)

    def check(self) -> None:
        """Ask every server for its models. Raises ``NetworkError`` when none answers."""
        problems = [f"{up.where}: {problem}" for up in self._all if (problem := self._problem(up))]
        if len(problems) == len(self._all):
            raise NetworkError(f"no server of this model can be used. {'; '.join(problems)}")

    def _problem(self, upstream: Upstream) -> str:
        """Why a server can't be used; marks it up or down."""
        problem = ""
        try:
            list_models(upstream.target, upstream.key, self._connect)
        except NetworkError as error:
            problem = error.message
        except MyllmError as error:
            log.debug("%s has no list of models: %s", upstream.where, error)
        self._mark(upstream, problem)
        return problem

    def _mark(self, upstream: Upstream, problem: str) -> None:
        with self._lock:
            was_up = upstream.down_until == 0.0
            upstream.down_until = time.monotonic() + _REST if problem else 0.0
        if problem and was_up:
            log.warning("%s is left out: %s", upstream.where, problem)
        elif not problem and not was_up:
            log.info("%s is back", upstream.where)

    def _keep_checking(self, interval: float) -> None:
        while not self._stopped.wait(interval):
            for upstream in self._all:
                with suppress(MyllmError):
                    self._problem(upstream)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a server answers to a quick question, as JSON; without ``body`` it is a GET.

        Raises ``MyllmError``: ``NetworkError``, what its refusal means, or ``UnsupportedError`` for no such path.
        """
        data = b"" if body is None else json.dumps(body).encode()
        with self.send(path, data, quick=True) as (upstream, exchange):
            for _ in exchange.head():
                pass
            if exchange.status != 200:
                said = exchange.whole(_MAX_ERROR)
                raise failure(upstream.target, exchange.status, exchange.headers, said, upstream.key, optional=True)
            answer = exchange.whole(_MAX_LIST)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError, RecursionError):
            raise EngineError(f"{upstream.where} sent something else than a JSON object") from None

    @contextmanager
    def send(self, path: str, body: bytes, *, quick: bool = False) -> Iterator[tuple[Upstream, Exchange]]:
        """Send a request to one server. Another one is tried only where no connection could be made.

        A ``quick`` one may be silent for seconds only. Raises ``NetworkError``.
        """
        upstream, exchange = self._first_reached(path, body, min(self._stall, _QUICK) if quick else self._stall)
        try:
            with exchange:
                yield upstream, exchange
        finally:
            with self._lock:
                upstream.running -= 1

    def _first_reached(self, path: str, body: bytes, stall: float) -> tuple[Upstream, Exchange]:
        tried: list[Upstream] = []
        problems: list[str] = []
        while (upstream := self._take(tried)) is not None:
            try:
                method = "POST" if body else "GET"
                exchange = request(
                    upstream.target, method, path, upstream.key, body, connect=self._connect, stall=stall
                )
            except BaseException as error:
                with self._lock:
                    upstream.running -= 1
                if not isinstance(error, Unreachable):
                    raise
                self._mark(upstream, error.message)
                problems.append(error.message)
                continue
            self._mark(upstream, "")
            return upstream, exchange
        raise Unreachable("; ".join(problems))

    def _take(self, tried: list[Upstream]) -> Upstream | None:
        """The next server to try: up before down, then the one with least to do, then the one asked least."""
        now = time.monotonic()
        with self._lock:
            left = [upstream for upstream in self._all if upstream not in tried]
            if not left:
                return None
            best = min(left, key=lambda up: (up.down_until > now, up.running, up.asked))
            best.running += 1
            best.asked += 1
            tried.append(best)
            return best
