"""``serve``: bind, say where, serve until a signal, stop gracefully."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from myllm_core.errors import ConfigError, MyllmError
from myllm_core.plugins import Plugins, load_plugins
from myllm_core.settings import Settings, load_settings
from myllm_server.allocator import collect_often, share_one_heap
from myllm_server.loop import new_event_loop
from myllm_server.records import log_to_stderr

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.trace import Tracer
    from starlette.types import ASGIApp

_BACKLOG = 512


def serve(settings: Settings, plugins: Plugins, *, reload: bool = False) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code.

    One line on standard output says where: ``Listening on http://127.0.0.1:8000``; a second one says where Ollama's API
    is at the root, with ``settings.ollama_port``. A first signal lets running
    replies end within ``settings.shutdown_grace`` seconds while new requests get 503, and the code is 0; a second one
    ends at once, and the code is 128 and its number. 1 when the address can't be bound. ``reload`` starts again
    when Python files below the working directory change.
    """
    share_one_heap()
    from myllm_server.tls import tls_options

    log_to_stderr(settings)
    tls_options(settings)
    with ExitStack() as stack:
        listeners = []
        for option, port in (("port", settings.port), ("ollama-port", settings.ollama_port)):
            if port is None:
                continue
            try:
                listeners.append(stack.enter_context(_bind(settings.host, port)))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                _say(f"can't listen on {settings.host} port {port}: {reason}; try: {_instead(error, option)}")
                return 1
        settings = settings.model_copy(update={"ollama_port": _port(listeners[1]) if listeners[1:] else None})
        try:
            settings = _with_key(settings)
            if reload:
                return _serve_reloading(settings, listeners)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                return runner.run(_serve(settings, plugins, listeners))
        except MyllmError as error:
            _say(error.message)
            return error.exit_code
        except KeyboardInterrupt:  # a second Ctrl+C, while models are being unloaded
            return 130


def _instead(error: OSError | UnicodeError, option: str) -> str:
    if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
        return "myllm serve --host 127.0.0.1, or another address of this machine"
    return f"myllm serve --{option} 0"


def _say(text: str) -> None:
    print(f"myllm: {text}", file=sys.stderr, flush=True)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a port that was just left is free at once; on Windows this would let two share one
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _with_key(settings: Settings) -> Settings:
    """The settings with the key that clients must send; one is made for an address that others can reach."""
    from myllm_core.keys import KeyFile
    from myllm_server.guard import is_loopback

    if settings.no_auth:
        if not is_loopback(settings.host):
            _say(f"WARNING: no key is asked for (--no-auth), and {settings.host} can be reached from other machines")
        return settings.model_copy(update={"api_key": ""})
    if settings.api_key or is_loopback(settings.host) or KeyFile(settings.data_dir).read():
        return settings
    key = secrets.token_urlsafe(32)
    _say(f"others can reach {settings.host}, so clients must send this key (set MYLLM_API_KEY to choose one): {key}")
    return settings.model_copy(update={"api_key": key})


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def _announce(settings: Settings, listeners: list[socket.socket]) -> None:
    host = settings.host
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    scheme = "https" if settings.ssl_certfile else "http"
    for listener, what in zip(listeners, ("Listening", "Ollama's API at the root: listening"), strict=False):
        print(f"{what} on {scheme}://{shown}:{_port(listener)}", flush=True)


async def _serve(settings: Settings, plugins: Plugins, listeners: list[socket.socket]) -> int:
    from myllm_core.runtime.runtime import Runtime
    from myllm_server.app import create_app
    from myllm_server.gate import Gate
    from myllm_server.graceful import GracefulServer, exit_code
    from myllm_server.protocol import ServerConfig
    from myllm_server.retention import deleting_idle_sessions
    from myllm_server.tls import tls_options

    gate = Gate(settings.max_requests)
    with _tracer(settings) as tracer:
        async with Runtime(settings, plugins) as runtime:
            app = create_app(runtime, settings, plugins, gate=gate, tracer=tracer)
            server = GracefulServer(
                ServerConfig(_on_ports(app, settings), settings.read_timeout, lifespan="off", **tls_options(settings)),
                gate,
                settings.shutdown_grace,
                lambda: _announce(settings, listeners),
            )
            collect_often()
            async with deleting_idle_sessions(runtime):
                await server.serve(sockets=listeners)
    return exit_code(server)


def _on_ports(app: FastAPI, settings: Settings) -> ASGIApp:
    from myllm_server.ollama.root import AtRoot

    return app if settings.ollama_port is None else AtRoot(app, settings.ollama_port)


def _tracer(settings: Settings) -> AbstractContextManager[Tracer | None]:
    if not settings.otel:
        return nullcontext()
    try:
        from myllm_server.tracing import exporting

        return exporting()
    except ImportError:
        raise ConfigError('the setting otel needs OpenTelemetry; install it: pip install "myllm[otel]"') from None


def _serve_reloading(settings: Settings, listeners: list[socket.socket]) -> int:
    from uvicorn import Server
    from uvicorn.supervisors import ChangeReload

    from myllm_server.protocol import ServerConfig
    from myllm_server.tls import tls_options

    _export(settings)
    more: dict[str, Any] = {"factory": True, "reload": True, "lifespan": "on", **tls_options(settings)}
    config = ServerConfig(f"{__name__}:reloaded_app", settings.read_timeout, **more)
    _announce(settings, listeners)
    ChangeReload(config, target=Server(config).run, sockets=listeners).run()
    return 0


def _export(settings: Settings) -> None:
    """Put what was set into the environment, where the process that is started again finds it."""
    for name in settings.model_fields_set | {"api_key"}:
        value: Any = getattr(settings, name)
        if value is None:
            continue
        os.environ[f"MYLLM_{name.upper()}"] = json.dumps(value) if isinstance(value, list | dict) else str(value)


def reloaded_app() -> ASGIApp:
    """The app of ``serve --reload``, made anew after each change."""
    from myllm_core.runtime.runtime import Runtime
    from myllm_server.app import create_app
    from myllm_server.retention import deleting_idle_sessions

    share_one_heap()
    settings = load_settings()
    log_to_stderr(settings)
    plugins = load_plugins(settings.disabled_plugins)
    runtime = Runtime(settings, plugins)

    tracing = ExitStack()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with tracing:
            async with runtime, deleting_idle_sessions(runtime):
                yield

    tracer = tracing.enter_context(_tracer(settings))
    return _on_ports(create_app(runtime, settings, plugins, tracer=tracer, lifespan=lifespan), settings)
