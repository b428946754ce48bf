"""One request to a server, one connection: nothing is sent twice, and silence never blocks whoever waits.

TLS is verified against the system's certificates, proxies are those of the environment, redirects aren't followed.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import h11
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from myllm_core import __version__
from myllm_core.errors import NetworkError
from myllm_core.transfer.proxies import proxied, proxy_for, proxy_headers
from myllm_core.transfer.urls import Target

TICK = 0.5
"""Seconds of silence after which a waiting reader may look at something else."""
_MAX_HEAD = 65_536
_FAILURES = (HTTPError, OSError)


class Unreachable(NetworkError):
    """No connection could be made, so nothing was sent: another server may be asked."""


@cache
def _tls() -> ssl.SSLContext:
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Exchange:
    """A request that was sent, and its answer. Use it as a context manager: leaving it closes the connection."""

    def __init__(self, target: Target, connection: HTTPConnection, stall: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._target = target
        self._connection = connection
        self._stall = stall
        self._silent_since = time.monotonic()
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Send the whole request. Raises ``NetworkError``: some of it may have arrived."""
        request = h11.Request(method=method, target=path, headers=list(headers.items()))
        events = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        data = b"".join(self._h11.send(event) or b"" for event in events)
        sock = self._sock
        try:
            sock.settimeout(self._stall)
            sock.sendall(data)
            sock.settimeout(TICK)
        except OSError as error:
            raise self._broken(error) from None

    @property
    def _sock(self) -> socket.socket:
        sock = self._connection.sock
        if sock is None:
            raise self._broken(None)
        return sock

    def head(self) -> Iterator[None]:
        """Wait for status and headers: yields at each tick of silence. Raises ``NetworkError``."""
        while not self.status:
            event = self._next()
            if event is None:
                yield
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            elif not isinstance(event, h11.InformationalResponse):
                raise self._broken(None)

    def body(self) -> Iterator[bytes | None]:
        """The body as it comes, None at each tick of silence. Raises ``NetworkError``, also when it ends too early."""
        while True:
            event = self._next()
            if event is None:
                yield None
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    def whole(self, limit: int) -> bytes:
        """All of the body, at most ``limit`` bytes. Raises ``NetworkError``."""
        data = bytearray()
        for piece in self.body():
            data += piece or b""
            if len(data) > limit:
                raise NetworkError(f"{self._target.authority} sent more than {limit} bytes; this is no such answer")
        return bytes(data)

    def _next(self) -> Any:
        """The next event; None at a tick of silence."""
        try:
            event: Any = self._h11.next_event()
            while event is h11.NEED_DATA:
                data = self._receive()
                if data is None:
                    return None
                self._h11.receive_data(data)
                event = self._h11.next_event()
        except (h11.RemoteProtocolError, OSError) as error:
            raise self._broken(error) from None
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise self._broken(None)
        return event

    def _receive(self) -> bytes | None:
        try:
            data = self._sock.recv(65_536)
        except TimeoutError:
            if time.monotonic() - self._silent_since > self._stall:
                raise TimeoutError(f"silent for {self._stall:g} s") from None
            return None
        self._silent_since = time.monotonic()
        return data

    def _broken(self, error: Exception | None) -> NetworkError:
        where = self._target.authority
        if isinstance(error, h11.RemoteProtocolError) and not self.status:
            return NetworkError(f"{where} doesn't answer in HTTP: {_short(error)}; check the address")
        why = _short(error) if isinstance(error, OSError) else "the connection was cut"
        return NetworkError(f"{where} broke off: {why}; what it had begun is lost, send the request again")


def _short(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return " ".join(str(error).split())[:200]


def open_exchange(target: Target, timeout: float, stall: float) -> tuple[Exchange, dict[str, str], bool]:
    """Connect: the exchange, the headers that the proxy wants, and whether it wants whole URLs.

    Raises ``Unreachable``, and ``NetworkError`` for a certificate that isn't trusted.
    """
    proxy = proxy_for(target)
    extra: dict[str, str] = {}
    if proxy:
        connection = proxied(proxy, target, timeout, _tls())
        extra = proxy_headers(proxy) if target.scheme == "http" else {}
    elif target.scheme == "https":
        connection = HTTPSConnection(target.host, target.port, timeout=timeout, ssl_context=_tls())
    else:
        connection = HTTPConnection(target.host, target.port, timeout=timeout)
    try:
        connection.connect()
    except _FAILURES as error:
        connection.close()
        raise _unreachable(target, error) from None
    except BaseException:
        connection.close()
        raise
    return Exchange(target, connection, stall), extra, bool(proxy) and target.scheme == "http"


def _unreachable(target: Target, error: Exception) -> NetworkError:
    for cause in (error, error.__cause__, error.args[-1] if error.args else None):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NetworkError(
                f"the certificate of {target.authority} isn't trusted: {cause.verify_message}; add its issuer to the "
                "system's certificates, or name a file with it in SSL_CERT_FILE"
            )
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    why = _short(inner) if isinstance(inner, OSError) else "no connection"
    return Unreachable(f"{target.authority} can't be reached: {why}; check that the server runs there")


def request(
    target: Target, method: str, path: str, key: str, body: bytes = b"", *, connect: float, stall: float
) -> Exchange:
    """Send a request to ``path`` below the base URL; one with a slash is below that without its ``/v1``.

    The key goes along as a Bearer token.

    Raises ``Unreachable`` when nothing was sent, ``NetworkError`` when it may have been.
    """
    exchange, extra, whole_url = open_exchange(target, connect, stall)
    base = (target.url if whole_url else target.path).rstrip("/")
    if path.startswith("/"):
        base, path = base.removesuffix("/v1"), path[1:]
    headers = {
        "Host": target.authority,
        "User-Agent": f"myllm/{__version__}",
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **({"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}),
        **({"Authorization": f"Bearer {key}"} if key else {}),
        **extra,
    }
    try:
        exchange.send(method, f"{base}/{path}", headers, body)
    except BaseException:
        exchange.__exit__()
        raise
    return exchange
