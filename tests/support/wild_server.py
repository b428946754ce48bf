"""An HTTP server on a real socket that does to its clients whatever a test wants."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

Handler = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request, and the ways to answer it. The connection is closed afterwards."""

    server: WildServer
    method: str
    target: str
    headers: dict[str, str]
    sock: socket.socket
    number: int
    body: bytes = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(self, status: int = 200, **headers: str | int) -> None:
        """A status line and headers; ``_`` in a name stands for ``-``."""
        lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def answer(self, body: bytes = b"", status: int = 200, **headers: str | int) -> None:
        self.head(status, Content_Length=len(body), **headers)
        self.send(body)

    def redirect(self, location: str, status: int = 302) -> None:
        self.answer(status=status, Location=location)

    @property
    def start(self) -> int:
        """Where the wanted range begins; 0 when the whole is wanted."""
        return self._range[0]

    @property
    def _range(self) -> tuple[int, int | None]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1 if match[2] else None) if match else (0, None)

    def file(self, data: bytes, etag: str = '"v1"', stop: int | None = None, **headers: str | int) -> None:
        """The file as a good server sends it, with Range and If-Range; at byte ``stop`` the connection is cut."""
        start, end = self._range if self.headers.get("if-range", etag) == etag else (0, None)
        part, end = start > 0 or end is not None, min(end or len(data), len(data))
        sizes: dict[str, str | int] = {"Content_Length": end - start}
        if part:
            sizes["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if etag:
            sizes["ETag"] = etag
        self.head(206 if part else 200, **sizes, **headers)
        self.send(data[start : end if stop is None else min(end, max(start, stop))])

    def slowly(self, data: bytes, pieces: int, seconds: float) -> None:
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            self.send(data[at : at + size])
            self.wait(seconds / pieces)

    def wait(self, seconds: float) -> None:
        """Say nothing for a while; the end of the test ends it."""
        self.server.stopped.wait(seconds)


@dataclass
class WildServer:
    """Answers each request by ``handler``, in a thread of its own; ``seen`` are the requests so far."""

    handler: Handler
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    seen: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def url(self, path: str = "/model.gguf") -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{path}"

    def __enter__(self) -> WildServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with sock, suppress(OSError):
            if self.tls:
                with self.tls.wrap_socket(sock, server_side=True) as wrapped:
                    self._exchange(wrapped)
            else:
                self._exchange(sock)

    def _exchange(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(65536)
            if not more:
                return
            head += more
        first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = head.partition(b"\r\n\r\n")[2]
        while len(body) < int(headers.get("content-length", 0)) and (more := sock.recv(65536)):
            body += more
        exchange = Exchange(self, method, target, headers, sock, len(self.seen), body)
        self.seen.append(exchange)
        with suppress(OSError):  # the client hung up
            self.handler(exchange)
