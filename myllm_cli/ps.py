"""``ps``: what a running server has loaded."""

from __future__ import annotations

import json as json_module
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json, print_table, size_text
from myllm_cli.terminal import say
from myllm_core.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from myllm_core.settings import Settings

_TIMEOUT = 5.0
_MAX_ANSWER = 16 * 2**20
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def server_models(settings: Settings) -> list[dict[str, Any]]:
    """Ask the server at the configured host and port for its models. Raises ``NetworkError``."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"
    headers = {"Accept": "application/json"}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    connection = _connection(host, settings)
    try:
        connection.request("GET", "/api/models", headers=headers)
        response = connection.getresponse()
        body = _body(response)
        if response.status == 401:
            raise NetworkError(f"the server at {address} wants a key; set MYLLM_API_KEY to one")
        return _models(body, response.status)
    except ConnectionRefusedError:
        raise NetworkError(f"no server runs at {address}; start one with: myllm serve") from None
    except (OSError, HTTPException) as error:
        raise NetworkError(f"the server at {address} doesn't answer: {error or type(error).__name__}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NetworkError(f"what answers at {address} is no myllm server; choose another port (MYLLM_PORT)") from None
    finally:
        connection.close()


def _connection(host: str, settings: Settings) -> HTTPConnection:
    if settings.ssl_certfile is None:
        return HTTPConnection(host, settings.port, timeout=_TIMEOUT)
    import ssl
    from http.client import HTTPSConnection

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is trusted, whatever name it is for, and no other
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(settings.ssl_certfile)
    except OSError as error:
        raise ConfigError(f"ssl_certfile: can't read {settings.ssl_certfile}: {error.strerror or error}") from None
    return HTTPSConnection(host, settings.port, timeout=_TIMEOUT, context=context)


def _body(response: HTTPResponse) -> bytes:
    """The answer's body, when all of it comes in time: the socket's time-out only bounds the wait for its next byte."""
    deadline = time.monotonic() + _TIMEOUT
    body = b""
    while piece := response.read1(65536):
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError("its answer doesn't end")
        if len(body) > _MAX_ANSWER:
            raise ValueError("it is too long")
    return body


def _models(body: bytes, status: int) -> list[dict[str, Any]]:
    if status != 200:
        raise ValueError(status)
    document = json_module.loads(body)
    models = document["models"] if isinstance(document, dict) else document
    return [{**model, "name": str(model["name"])} for model in models]


def ps(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the models that a running server has loaded."""
    cli: Cli = ctx.obj
    loaded = [model for model in server_models(cli.settings) if model.get("status") == "loaded"]
    if json:
        print_json(loaded)
        return
    if not loaded:
        say("The server has no model loaded.")
        return
    print_table(
        ("NAME", "ENGINE", "CONTEXT", "MEMORY", "RUNNING", "EXPIRES"),
        [
            (
                model["name"],
                model.get("engine") or "-",
                model.get("context_size") or "-",
                _memory(model.get("memory_bytes")),
                model.get("running", "-"),
                _expiry(model.get("expires_in")),
            )
            for model in loaded
        ],
    )


def _memory(value: Any) -> str:
    return size_text(value) if isinstance(value, int | float) and value > 0 else "-"


def _expiry(value: Any) -> str:
    return f"in {value:.0f} s" if isinstance(value, int | float) else "-"
