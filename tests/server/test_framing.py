"""How a stream lies on the wire: chunks whose sizes are right, connections that go on, clients of HTTP/1.0."""

from __future__ import annotations

import json
import socket
import time

import pytest

from support.server import LiveServer, eventually, parse_answer, read_all, read_until

WORDS = " ".join(f"wörd{i}" for i in range(60))
LAST_CHUNK = rb"0\r\n\r\n"


def asking(text: str, version: str = "1.1", **more: object) -> bytes:
    """The bytes of a request for a stream."""
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}], **more}).encode()
    head = f"POST /api/chat HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def unchunked(body: bytes) -> tuple[list[bytes], bytes]:
    """The chunks of a body but the empty last one, and what comes behind it."""
    chunks = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        if not length:
            return chunks, body[2:]
        chunks.append(body[:length])
        body = body[length + 2 :]


def text_of(body: bytes) -> str:
    """The tokens of a stream, joined; asserts that they are what its last frame says."""
    frames = [json.loads(frame[6:]) for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]
    text = "".join(frame.get("token", "") for frame in frames)
    assert frames[-1]["done"] is True and frames[-1]["full_text"] == text
    return text


@pytest.mark.parametrize("model", ["echo", "slow"])
def test_each_token_is_a_chunk_and_the_connection_goes_on(live: LiveServer, model: str) -> None:
    text = WORDS if model == "echo" else "a b c d e"
    with live.connect() as connection:
        for _ in range(2):
            connection.sendall(asking(text, model=model))
            raw = read_until(connection, LAST_CHUNK + b"$")
            assert parse_answer(raw).headers["transfer-encoding"] == "chunked"
            chunks, rest = unchunked(raw.partition(b"\r\n\r\n")[2])
            assert rest == b"" and text_of(b"".join(chunks)) == text
            assert all(chunk.endswith(b"\n\n") for chunk in chunks)
            if model == "slow":
                assert len(chunks) >= 6


def test_a_second_request_that_came_too_early_is_answered_after_the_first(live: LiveServer) -> None:
    with live.connect() as connection:
        connection.sendall(asking("one two three", model="slow") + asking("four"))
        raw = b""
        while raw.count(b"HTTP/1.1 200") < 2 or not raw.endswith(b"0\r\n\r\n"):
            raw += connection.recv(65536)
        first, second = unchunked(raw.partition(b"\r\n\r\n")[2])
        assert text_of(b"".join(first)) == "one two three"
        assert text_of(b"".join(unchunked(second.partition(b"\r\n\r\n")[2])[0])) == "four"


def test_http_1_0_knows_no_chunks(live: LiveServer) -> None:
    with live.connect() as connection:
        connection.sendall(asking(WORDS, "1.0"))
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body.startswith(b"data: ") and text_of(body) == WORDS


def test_a_slow_reader_misses_nothing(live: LiveServer) -> None:
    text = " ".join(f"{i:05}" + "x" * 20_000 for i in range(150))  # 3 MB; buffers hold a part of it
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", live.port))
        connection.settimeout(30)
        connection.sendall(asking(text))
        eventually(lambda: any(c.flow.write_paused for c in list(live.server.server_state.connections)), 20)
        time.sleep(0.3)
        raw = bytearray()
        while not raw.endswith(b"\r\n0\r\n\r\n"):
            raw += connection.recv(2**20)
    chunks, rest = unchunked(bytes(raw).partition(b"\r\n\r\n")[2])
    assert rest == b"" and text_of(b"".join(chunks)) == text
