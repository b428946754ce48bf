"""A load generator's client: it writes down what comes and when, and looks into it only afterwards.

So it takes little of the processor that the servers need too. One connection a request; loopback only.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT = 300.0


class Refused(Exception):
    """A server didn't answer as asked; the text says why."""


@dataclass
class Reply:
    """A streamed reply. Times are of ``time.perf_counter``; ``times`` holds one for each piece of text.

    ``tokens`` is what the server counted; of one that doesn't count, how many pieces came.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    finish: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece of text."""
        return self.times[0] - self.sent

    @property
    def rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0])

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class _Recorder(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self.request = request
        self.sent = 0.0
        self.came: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.sent = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.came.append((time.perf_counter(), data))
        if data.endswith(b"\r\n0\r\n\r\n") and not self.done.done():  # the end of a chunked body
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _exchange(port: int, method: str, path: str, body: object) -> _Recorder:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, recorder = await loop.create_connection(lambda: _Recorder(head.encode() + content), "127.0.0.1", port)
    try:
        async with asyncio.timeout(TIMEOUT):
            await recorder.done
    finally:
        recorder.transport.close()
    return recorder


def _body(recorder: _Recorder) -> tuple[int, list[tuple[float, bytes]]]:
    """Status and body; of a chunked body each chunk with the time when its end came."""
    data = b"".join(piece for _, piece in recorder.came)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        raise Refused("the connection was closed without an answer")
    status = int(head.split(None, 2)[1])
    if b"transfer-encoding: chunked" not in head.lower():
        return status, [(recorder.came[-1][0], body)]
    return status, list(_chunks(body, len(head) + 4, recorder.came))


def _chunks(body: bytes, begin: int, came: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    ends, total = [], 0
    for moment, piece in came:
        total += len(piece)
        ends.append((total, moment))
    place, index = 0, 0
    while True:
        line = body.find(b"\r\n", place)
        size = int(body[place:line].split(b";")[0], 16) if line > place else 0
        if not size:
            return
        place = line + 2 + size
        while index < len(ends) - 1 and ends[index][0] < begin + place:
            index += 1
        yield ends[index][1], body[line + 2 : place]
        place += 2


async def call(port: int, path: str, body: object = None, method: str = "POST") -> Any:
    """The JSON answer of a request. Raises ``Refused`` for a status other than 200."""
    status, chunks = _body(await _exchange(port, method, path, body))
    content = b"".join(chunk for _, chunk in chunks)
    if status != 200:
        raise Refused(f"{path}: {status} {content[:300].decode('utf-8', 'replace')}")
    return json.loads(content)


async def stream(port: int, path: str, body: dict[str, Any]) -> Reply:
    """A chat's streamed reply in OpenAI's dialect. Raises ``Refused`` when there is none."""
    recorder = await _exchange(port, "POST", path, body)
    status, chunks = _body(recorder)
    if status != 200:
        content = b"".join(chunk for _, chunk in chunks)
        raise Refused(f"{path}: {status} {content[:300].decode('utf-8', 'replace')}")
    reply = Reply(recorder.sent)
    for moment, event in _events(chunks):
        _take(reply, moment, event)
    if len(reply.times) < 2:
        raise Refused(f"{path}: a reply in {len(reply.times)} pieces")
    reply.tokens = reply.tokens or len(reply.times)
    return reply


def _events(chunks: list[tuple[float, bytes]]) -> Iterator[tuple[float, Any]]:
    """Server-Sent Events with the time when each was complete."""
    rest = b""
    for moment, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield moment, json.loads(line[5:])


def _take(reply: Reply, moment: float, event: dict[str, Any]) -> None:
    if event.get("error"):
        raise Refused(f"the stream ended with {str(event['error'])[:300]}")
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        reply.finish = choice.get("finish_reason") or reply.finish
        if text:
            reply.text += text
            reply.times.append(moment)
    if usage := event.get("usage"):
        reply.prompt_tokens = usage["prompt_tokens"]
        reply.tokens = usage["completion_tokens"]
        reply.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
