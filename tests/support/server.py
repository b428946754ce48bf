"""A real server on a real socket, in a thread of the test, and a plain client for it."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from myllm_core.models.manifest import Manifest, ModelFile, write_manifest
from myllm_core.plugins import load_plugins
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_server.app import create_app
from myllm_server.gate import Gate
from myllm_server.graceful import GracefulServer
from myllm_server.loop import new_event_loop
from myllm_server.protocol import ServerConfig

ECHO_BYTES = b"echo\n"


def install_echo(models_dir: Path, name: str = "echo:latest", **manifest: Any) -> None:
    """Put a model for the echo engine into a models directory."""
    folder = models_dir / name.replace(":", "@")
    folder.mkdir(parents=True)
    (folder / "echo.txt").write_bytes(ECHO_BYTES)
    file = ModelFile("echo.txt", len(ECHO_BYTES), hashlib.sha256(ECHO_BYTES).hexdigest())
    given = {"format": "echo", "family": "echo"} | manifest
    write_manifest(folder / "manifest.json", Manifest(name, files=(file,), **given))


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; asserts that the body has the shape of an error."""
        error = self.json["error"]
        assert set(error) - {"data"} == {"code", "message", "request_id"}, error
        assert error["request_id"] == self.headers["x-request-id"]
        assert error["message"] and "\n" not in error["message"]
        return str(error["code"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def frames(self) -> list[dict[str, Any]]:
        """The data of every Server-Sent Event."""
        return [json.loads(line[6:]) for line in self.body.splitlines() if line.startswith(b"data: ")]


def parse_answer(raw: bytes) -> Answer:
    """The first HTTP response in ``raw``."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), headers, body)


@dataclass
class LiveServer:
    """A server that runs until the ``with`` block ends."""

    settings: Settings
    port: int = 0
    gate: Gate = field(init=False)
    server: GracefulServer = field(init=False)
    runtime: Runtime = field(init=False)
    app: Any = None
    tracer: Any = None
    _ready: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        plugins = load_plugins()
        self.gate = Gate(self.settings.max_requests)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            async with Runtime(self.settings, plugins) as self.runtime:
                self.app = create_app(self.runtime, self.settings, plugins, gate=self.gate, tracer=self.tracer)
                config = ServerConfig(self.app, self.settings.read_timeout, lifespan="off")
                self.server = GracefulServer(config, self.gate, self.settings.shutdown_grace, self._ready.set)
                await self.server.serve(sockets=[listener])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> Answer:
        """Send bytes and read until the connection closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return parse_answer(read_all(connection))

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, raw: bytes = b""
    ) -> Answer:
        """One request; ``body`` is sent as JSON, ``raw`` as it is."""
        sent = {"content-type": "application/json"} if body is not None or raw else {}
        content = raw or (json.dumps(body).encode() if body is not None else None)
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(method, path, content, sent | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("POST", path, body, **more)

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def chat(self, text: str, **more: Any) -> Answer:
        """A chat of one message with the echo model, not streamed."""
        messages = [{"role": "user", "content": text}]
        return self.post("/api/chat", {"model": "echo", "messages": messages, "stream": False, **more})

    def send_chat(self, text: str, connection: socket.socket | None = None, **more: Any) -> socket.socket:
        """Begin a streamed chat and return its connection, nothing read."""
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}], **more}).encode()
        connection = connection or self.connect()
        connection.sendall(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        return connection

    def running(self) -> int:
        """How many requests run or wait in the loaded models."""
        return sum(entry["running"] + entry["queued"] for entry in self.get("/api/ps").json["models"])

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes or resets."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_until(connection: socket.socket, pattern: bytes, seconds: float = 10) -> bytes:
    """Read until ``pattern`` (a regular expression) has been seen."""
    seen, until = b"", time.monotonic() + seconds
    while not re.search(pattern, seen):
        connection.settimeout(max(0.01, until - time.monotonic()))
        part = connection.recv(65536)
        assert part, f"closed before {pattern!r}: {seen[-300:]!r}"
        seen += part
    return seen


def eventually(condition: Any, seconds: float = 5, every: float = 0.02) -> None:
    """Wait until ``condition()`` is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it didn't come true in time"
        time.sleep(every)


class StartServer(Protocol):
    """Starts a server with settings of its own."""

    def __call__(self, **settings: Any) -> AbstractContextManager[LiveServer]: ...


@contextmanager
def live_server(home: Path, *, tracer: Any = None, **settings: Any) -> Iterator[LiveServer]:
    """A server over ``home/models`` and ``home/data``."""
    given = {"models_dir": home / "models", "data_dir": home / "data", "isolation": "thread", "shutdown_grace": 2}
    live = LiveServer(Settings(**(given | settings)), tracer=tracer)
    thread = threading.Thread(target=live.run, name="server")
    thread.start()
    try:
        assert live._ready.wait(90), "the server didn't start"
        yield live
    finally:
        live.stop()
        thread.join(90)
        assert not thread.is_alive(), "the server didn't stop"
