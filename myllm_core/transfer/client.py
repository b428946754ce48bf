"""The one HTTP client of the core, made for fetching large files from places that aren't trusted.

http and https only; TLS always verified, against the system's own certificates; bodies as they are, never
compressed; redirects followed here, hop by hop, each address looked up once, checked, and connected to as it was
checked; the caller's headers go to the host that they are for and to no other; no secret of a URL in a message.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from myllm_core import __version__
from myllm_core.errors import InvalidRequest, NetworkError
from myllm_core.transfer.proxies import proxied, proxy_for, proxy_headers
from myllm_core.transfer.urls import Target, follow, is_public, lookup, mask_url, parse_url

MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 2**18
_FAILURES = (HTTPError, HTTPException, OSError)


class Unreachable(NetworkError):
    """No connection could be made: there is nobody to ask."""


class Broken(NetworkError):
    """A connection was made and then broke off, or went silent: worth another try."""


class Response:
    """An answer whose body is still to come. Use it as a context manager."""

    def __init__(self, url: str, connection: HTTPConnection, raw: BaseHTTPResponse) -> None:
        self._connection = connection
        self._raw = raw
        self.shown = mask_url(url)
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, in pieces of at most 256 KiB. Raises ``Broken``, also when it ends too early."""
        while True:
            try:
                data = self._raw.read1(_CHUNK, decode_content=False)
            except _FAILURES as error:
                raise Broken(f"{self.shown}: {_why(error)}") from None
            if not data:
                return
            yield data

    def close(self) -> None:
        """Close the connection, whatever is still to come."""
        with suppress(*_FAILURES):
            self._raw.close()
        self._connection.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HttpClient:
    """Sends GET requests. ``connect_timeout`` is for a whole connection, ``stall_timeout`` for each wait; seconds."""

    def __init__(self, connect_timeout: float = 8.0, stall_timeout: float = 30.0) -> None:
        self.connect_timeout = connect_timeout
        self.stall_timeout = stall_timeout
        self._tls: ssl.SSLContext | None = None

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        own: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> Response:
        """Send a GET request and follow redirects. ``headers`` go to the URL's own host only, ``own`` to every one.

        With ``patience`` the answer must begin within so many seconds. Any status but a redirect is returned.
        Raises ``Unreachable`` or ``Broken``, and ``NetworkError`` for what another try can't mend.
        """
        try:
            target = parse_url(url)
        except ValueError as error:
            raise NetworkError(f"{mask_url(url)}: {error}") from None
        deadline, public = time.monotonic() + (patience or 600.0), False
        private = _own_headers(headers or {}, target)
        for _ in range(MAX_REDIRECTS + 1):
            response, public = self._hop(target, {**private, **(own or {})}, public, deadline)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return _plain(response)
            response.close()
            try:
                new = follow(target, location)
            except ValueError as error:
                raise NetworkError(f"{response.shown}: refused to follow a redirect: {error}") from None
            if new.origin != target.origin:
                private = {}  # for good: where a stranger leads to is a stranger's wish, even when it is back
            target = new
        raise NetworkError(f"{mask_url(url)}: more than {MAX_REDIRECTS} redirects")

    def _hop(
        self, target: Target, headers: Mapping[str, str], was_public: bool, deadline: float
    ) -> tuple[Response, bool]:
        shown = mask_url(target.url)
        left = max(0.1, min(self.connect_timeout, deadline - time.monotonic()))
        path, proxy = target.path, proxy_for(target)
        if proxy:
            public = self._check_proxied(target, was_public, left)
            connection = proxied(proxy, target, left, self._context())
            _open(connection, f"{target.authority} through the proxy {connection.host}:{connection.port}")
            if target.scheme == "http":
                path, headers = target.url, {**headers, **proxy_headers(proxy)}
        else:
            connection, public = self._connect(target, was_public, left)
        wait = min(self.stall_timeout, max(0.1, deadline - time.monotonic()))
        try:
            return Response(target.url, connection, self._ask(connection, path, target, headers, wait)), public
        except _FAILURES as error:
            connection.close()
            raise Broken(f"{shown}: {_why(error)}") from None
        except BaseException:
            connection.close()
            raise

    def _ask(
        self, connection: HTTPConnection, path: str, target: Target, headers: Mapping[str, str], wait: float
    ) -> BaseHTTPResponse:
        sock = connection.sock
        connection.timeout = wait
        sock.settimeout(wait)
        ours = {
            "Host": target.authority,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": f"myllm/{__version__}",
            "Connection": "close",
        }
        connection.request("GET", path, headers={**headers, **ours}, preload_content=False, decode_content=False)
        raw = connection.getresponse()
        sock.settimeout(self.stall_timeout)
        return raw

    def _connect(self, target: Target, was_public: bool, timeout: float) -> tuple[HTTPConnection, bool]:
        deadline = time.monotonic() + timeout
        try:
            addresses = lookup(target.host, target.port, timeout)
        except OSError as error:
            raise Unreachable(f"can't find {target.host}: {_why(error)}; check the address and your network") from None
        allowed = [address for address in addresses if is_public(address) or not was_public]
        if not allowed:
            raise NetworkError(f"refused to follow a redirect from the internet to the private address {target.host}")
        failure: Unreachable | None = None
        for number, address in enumerate(allowed[:4]):
            share = max(0.1, (deadline - time.monotonic()) / (min(4, len(allowed)) - number))
            connection = self._connection(target, address, share)
            try:
                _open(connection, target.authority)
            except Unreachable as error:
                failure = error
            else:
                return connection, is_public(address)
        assert failure is not None
        raise failure

    def _connection(self, target: Target, address: str, timeout: float) -> HTTPConnection:
        if target.scheme == "http":
            return HTTPConnection(address, target.port, timeout=timeout)
        return HTTPSConnection(
            address, target.port, timeout=timeout, server_hostname=target.host, ssl_context=self._context()
        )

    def _check_proxied(self, target: Target, was_public: bool, timeout: float) -> bool:
        """The proxy looks names up, so this sees only what this machine can find out too."""
        if not was_public:
            try:
                return is_public(target.host)
            except ValueError:
                return target.host != "localhost"
        try:
            addresses = lookup(target.host, target.port, timeout)
        except OSError:
            return True
        if not all(is_public(address) for address in addresses):
            raise NetworkError(f"refused to follow a redirect from the internet to the private address {target.host}")
        return True

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import truststore  # python.org's Python on a Mac has no certificates of its own, and companies add theirs

            self._tls = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._tls


def _open(connection: HTTPConnection, where: str) -> None:
    try:
        connection.connect()
    except _FAILURES as error:
        connection.close()
        raise _unreachable(where, error) from None
    except BaseException:
        connection.close()
        raise


def _own_headers(headers: Mapping[str, str], target: Target) -> dict[str, str]:
    ours = {"host", "accept-encoding", "connection", "content-length", "transfer-encoding", "range", "if-range"}
    for name, value in headers.items():
        if not (name + value).isprintable():  # http.client's own message would show the secret
            raise InvalidRequest(f"the header {name!r} for {target.host} holds a line break or control character")
    given = {name: value for name, value in headers.items() if name.lower() not in ours}
    if target.authorization and "authorization" not in {name.lower() for name in given}:
        given["Authorization"] = target.authorization
    return given


def _plain(response: Response) -> Response:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and response.status in (200, 206):
        response.close()
        raise NetworkError(f"{response.shown}: the server compresses the file ({encoding[:40]}), which isn't accepted")
    return response


def _unreachable(host: str, error: Exception) -> NetworkError:
    for cause in (error, error.__cause__, error.args[-1] if error.args else None):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NetworkError(
                f"the certificate of {host} isn't trusted: {cause.verify_message}; add its issuer to the system's "
                "certificates, or name a file with it in SSL_CERT_FILE"
            )
    return Unreachable(f"can't connect to {host}: {_why(error)}; check the address, your network and proxy settings")


def _why(error: BaseException) -> str:
    """A few words for what happened, from the innermost cause; never a library's text, which may hold a URL."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the connection broke off"
