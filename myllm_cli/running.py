"""Asking the server that runs at the configured host and port."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, TypeVar

from myllm_core.errors import ConfigError, NetworkError, error_from_dict

if TYPE_CHECKING:
    from myllm_core.settings import Settings

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds in which a server answers what it can answer at once."""

_MAX_ANSWER = 16 * 2**20
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def ask_server(
    settings: Settings, method: str, path: str, take: Callable[[Any], T], patience: float = PATIENCE, **body: Any
) -> T:
    """What ``take`` makes of the server's answer, which comes within ``patience`` seconds.

    Raises ``NetworkError`` when none answers, it wants a key, or ``take`` fails at what it says; and the error that it
    tells of.
    """
    host = _EVERYWHERE.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    connection = _connection(host, settings, patience)
    try:
        connection.request(method, path, None if method == "GET" else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(_read(response))
        if response.status == 401:
            raise NetworkError(f"the server at {address} wants a key; set MYLLM_API_KEY to one")
        if response.status != 200:
            raise error_from_dict({name: answer["error"].get(name) for name in ("code", "message", "data")})
        return take(answer)
    except ConnectionRefusedError:
        raise NetworkError(f"no server runs at {address}; start one with: myllm serve") from None
    except (OSError, HTTPException) as error:
        raise NetworkError(f"the server at {address} doesn't answer: {error or type(error).__name__}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NetworkError(f"what answers at {address} is no myllm server; choose another port (MYLLM_PORT)") from None
    finally:
        connection.close()


def _connection(host: str, settings: Settings, patience: float) -> HTTPConnection:
    timeout = None if math.isinf(patience) else patience
    if settings.ssl_certfile is None:
        return HTTPConnection(host, settings.port, timeout=timeout)
    import ssl
    from http.client import HTTPSConnection

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is trusted, whatever name it is for, and no other
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(settings.ssl_certfile)
    except OSError as error:
        raise ConfigError(f"ssl_certfile: can't read {settings.ssl_certfile}: {error.strerror or error}") from None
    return HTTPSConnection(host, settings.port, timeout=timeout, context=context)


def _read(response: HTTPResponse) -> bytes:
    """The answer's body, when all of it comes in time: the socket's time-out only bounds the wait for its next byte."""
    deadline = time.monotonic() + PATIENCE
    body = b""
    while piece := response.read1(65536):
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError("its answer doesn't end")
        if len(body) > _MAX_ANSWER:
            raise ValueError("it is too long")
    return body
