"""The comparison with other programs: its client, and what it makes of the numbers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from sidebyside import report
from sidebyside.client import Refused, Reply, call, stream
from sidebyside.machine import Watch, description

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FACTS = {
    "machine": "a machine",
    "began": "2026-01-01",
    "rounds": 2,
    "minutes": 1.0,
    "model": "m.gguf",
    "threads": 2,
    "slots": 4,
    "context": 512,
    "packages": {},
    "servers": {"myllm": "ours", "llama-server": "theirs"},
    "forced": False,
    "memory_mb": {"myllm": 100.0},
}


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


def served(pieces: Sequence[bytes], pause: float = 0.0) -> Reply:
    """What the client makes of an answer that comes in these pieces."""

    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"}")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            writer.close()
            await writer.wait_closed()
        finally:
            answered.set()

    async def both() -> Reply:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            try:
                return await stream(server.sockets[0].getsockname()[1], "/v1/chat/completions", {"model": "m"})
            finally:
                await answered.wait()

    return asyncio.run(both())


def test_a_reply_is_timed_piece_by_piece() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\ndata: [DONE]\n\n'
    pieces = [HEAD, *(chunk(event(text)) for text in "abc"), chunk(usage) + b"0\r\n\r\n"]
    reply = served(pieces, 0.05)
    assert (reply.text, reply.tokens, reply.prompt_tokens) == ("abc", 3, 7)
    assert all(0.03 < gap < 0.5 for gap in reply.gaps)
    assert reply.first >= 0.05
    assert reply.rate == pytest.approx(2 / sum(reply.gaps))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_it_doesnt_matter_how_an_answer_is_cut(size: int) -> None:
    data = HEAD + b"".join(chunk(event(text)) for text in "abcde") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    reply = served([data[i : i + size] for i in range(0, len(data), size)])
    assert (reply.text, reply.tokens) == ("abcde", 5)
    assert reply.times == sorted(reply.times)


def test_an_answer_may_end_with_the_connection() -> None:
    reply = served([b"HTTP/1.1 200 OK\r\n\r\n" + event("a"), event("b") + b"data: [DONE]\n\n"])
    assert (reply.text, reply.tokens) == ("ab", 2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nwhat", "400 what"),
        (HEAD + chunk(b'data: {"error":{"message":"no"}}\n\n') + b"0\r\n\r\n", "no"),
        (HEAD + chunk(event("a")) + b"0\r\n\r\n", "1 pieces"),
        (b"", "without an answer"),
    ],
)
def test_what_is_no_reply_is_refused(answer: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        served([answer])


def test_a_server_that_isnt_there_is_an_error() -> None:
    with pytest.raises(OSError):
        asyncio.run(call(1, "/health", method="GET"))


def test_the_processor_time_of_a_server_is_measured() -> None:
    with Watch([os.getpid()]) as watch:
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            sum(range(1000))
    assert 0.2 < watch.ours < 0.8
    assert "cores" in description()


def samples(task: str, metric: str, **programs: list[float]) -> list[report.Sample]:
    return [
        report.Sample(task, number, name.replace("_", "-"), {metric: value})
        for name, values in programs.items()
        for number, value in enumerate(values)
    ]


def test_ratios_are_within_a_round() -> None:
    found = samples("stream", "tokens_per_second", myllm=[100.0, 30.0, 90.0], llama_server=[50.0, 60.0, 90.0])
    text = report.markdown(report.Result(found, ["a note"], FACTS))
    assert "| 90.0 | 60.0 · **1.00** (0.50–2.00) |" in text
    assert "- a note" in text


def test_unequal_work_is_told() -> None:
    found = samples("stream", "prompt_tokens", myllm=[70, 71], llama_server=[70, 72], other=[0, 0])
    text = report.markdown(report.Result(found, [], FACTS))
    assert "count the prompt's tokens differently: myllm [70, 71], llama-server [70, 72]" in text


def test_forced_numbers_are_called_that() -> None:
    found = samples("stream", "tokens_per_second", myllm=[1.0])
    text = report.markdown(report.Result(found, [], FACTS | {"forced": True}))
    assert "mean little" in text
    assert "| 1.00 |" in text
