"""How much a named key may use: requests a minute, tokens a minute, tokens a day.

What a reply costs is known when it has ended. So a request may come while a budget isn't used up, and what it then
takes too much is missing from the next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from myllm_core.errors import MyllmError
from myllm_core.keys import ApiKey, DayUse, today
from myllm_core.runtime.observe import Ended, Observer
from myllm_core.settings import Settings
from myllm_server.body import refuse
from myllm_server.errors import HttpError
from myllm_server.keys import ANYBODY, is_named, key_in
from myllm_server.limits import UNLIMITED
from myllm_server.scopes import spends

logger = logging.getLogger("myllm.server")

_ASKING: ContextVar[ApiKey] = ContextVar("asking", default=ANYBODY)


class Bucket:
    """``per_minute`` of something, at once or spread; what isn't used fills up again. It may be overdrawn."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size = float(per_minute)
        self._rate = per_minute / 60
        self._left = self.size
        self._when = now

    def wait(self, now: float, least: float) -> float:
        """In how many seconds ``least`` will be there; 0 when it is."""
        self._left = min(self.size, self._left + (now - self._when) * self._rate)
        self._when = now
        return 0.0 if self._left >= least else (least - self._left) / self._rate

    def take(self, amount: float) -> None:
        """Take so much, more than there is too."""
        self._left -= amount

    @property
    def used(self) -> int:
        """How much is taken now."""
        return round(self.size - self._left)


class _Refusal(NamedTuple):
    code: str
    what: str
    limit: int
    used: int
    wait: float

    def error(self) -> HttpError:
        seconds = max(1, math.ceil(self.wait))
        return HttpError(
            429,
            self.code,
            f"this key may use {self.limit} {self.what}, and has used {self.used}; try again in {seconds} s",
            headers={"retry-after": str(seconds)},
            data={"limit": self.limit, "used": self.used, "retry_after": seconds},
        )


class Quotas(Observer):
    """What each named key has used. Counts by minute begin with the server; those by day are kept on the disk."""

    def __init__(self, settings: Settings) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._file = DayUse(settings.data_dir)
        self._day = today()
        self._used = self._file.read(self._day)
        self._unsaved: dict[str, int] = {}
        self._saving: asyncio.Task[None] | None = None

    def refusal(self, key: ApiKey, method: str, path: str) -> HttpError | None:
        """Why a request of ``key`` can't come now, if it can't; one that may is counted."""
        now = time.monotonic()
        if spends(method, path) and (spent := self._spent(key, now)):
            return spent.error()
        if key.requests_per_minute:
            bucket = self._bucket(key, "requests", key.requests_per_minute, now)
            if wait := bucket.wait(now, 1):
                return _Refusal("rate_limited", "requests a minute", key.requests_per_minute, bucket.used, wait).error()
            bucket.take(1)
        return None

    def _spent(self, key: ApiKey, now: float) -> _Refusal | None:
        if key.tokens_per_day:
            used = self._today().get(key.name, 0)
            if used >= key.tokens_per_day:
                return _Refusal("quota_exceeded", "tokens a day", key.tokens_per_day, used, _until_midnight())
        if key.tokens_per_minute:
            bucket = self._bucket(key, "tokens", key.tokens_per_minute, now)
            if wait := bucket.wait(now, 1):
                return _Refusal("quota_exceeded", "tokens a minute", key.tokens_per_minute, bucket.used, wait)
        return None

    def _bucket(self, key: ApiKey, what: str, per_minute: int, now: float) -> Bucket:
        bucket = self._buckets.get((key.name, what))
        if bucket is None or bucket.size != per_minute:
            bucket = self._buckets[key.name, what] = Bucket(per_minute, now)
        return bucket

    def _today(self) -> dict[str, int]:
        day = today()
        if day != self._day:
            self._day, self._used, self._unsaved = day, {}, {}
        return self._used

    def request_ended(self, ended: Ended) -> None:
        """A request to a model has ended: whoever asked pays for it, for the text of a cancelled one too."""
        key = _ASKING.get()
        tokens = ended.usage.total_tokens or ended.pieces
        if not is_named(key) or not tokens:
            return
        if key.tokens_per_minute:
            self._bucket(key, "tokens", key.tokens_per_minute, time.monotonic()).take(tokens)
        for counts in (self._today(), self._unsaved):
            counts[key.name] = counts.get(key.name, 0) + tokens
        if self._saving is None or self._saving.done():
            self._saving = asyncio.get_running_loop().create_task(self._save())

    async def _save(self) -> None:
        while self._unsaved:
            day, used, self._unsaved = self._day, self._unsaved, {}
            try:
                sums = await asyncio.to_thread(self._file.add, day, used)
            except MyllmError as error:
                logger.warning("what keys have used today isn't kept: %s", error)
                return
            if day == self._day:
                self._used = {name: used + self._unsaved.get(name, 0) for name, used in sums.items()}


def _until_midnight() -> float:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return (midnight - now).total_seconds()


class KeyLimits:
    """ASGI middleware: 429 with Retry-After and the numbers for a key that has used what it may."""

    def __init__(self, app: ASGIApp, quotas: Quotas) -> None:
        self.app = app
        self.quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        key = key_in(scope) if scope["type"] == "http" else ANYBODY
        if not is_named(key):
            await self.app(scope, receive, send)
            return
        refusal = None if scope["path"] in UNLIMITED else self.quotas.refusal(key, scope["method"], scope["path"])
        if refusal:
            await refuse(refusal, scope, receive, send)
            return
        token = _ASKING.set(key)
        try:
            await self.app(scope, receive, send)
        finally:
            _ASKING.reset(token)
