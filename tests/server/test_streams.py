"""Streams under strain: clients that leave, that don't read, that are too many; models that die."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from support.patient import install_patient
from support.server import (
    Answer,
    LiveServer,
    StartServer,
    eventually,
    install_echo,
    live_server,
    parse_answer,
    read_all,
    read_until,
)

LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`
TOKEN = rb'"token":'


def reset(connection: socket.socket) -> None:
    """Close with a reset, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_a_stream_ends_the_generation(
    live: LiveServer, leave: Callable[[socket.socket], None]
) -> None:
    session = f"gone-{leave.__name__}"
    connection = live.send_chat(LONG, model="slow", session_id=session)
    read_until(connection, rb"(?s)" + rb".*".join([TOKEN] * 3))
    leave(connection)
    left = time.monotonic()
    eventually(lambda: live.running() == 0, 2)
    assert time.monotonic() - left < 1.5

    def stored() -> list[dict[str, str]]:
        return list(live.get(f"/api/sessions/{session}").json.get("messages", []))

    eventually(lambda: len(stored()) == 2, 2)
    user, reply = stored()
    assert user["content"] == LONG and reply["status"] == "cancelled"
    assert 3 <= len(reply["content"].split()) < 40  # 50 ms each: it stopped soon after, not at the end
    # and the session goes on
    assert live.chat("still there?", session_id=session).json["message"]["content"] == "still there?"


def test_a_client_that_leaves_before_the_answer_ends_the_generation(live: LiveServer) -> None:
    connection = live.send_chat(LONG, model="slow", stream=False)
    eventually(lambda: live.running() == 1)
    connection.close()
    eventually(lambda: live.running() == 0, 1.5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_never_runs(start: StartServer, stream: bool) -> None:
    with start() as server:
        first = server.send_chat(LONG, model="slow", session_id="one")
        read_until(first, TOKEN)
        waiting = server.send_chat("me too", model="slow", session_id="one", stream=stream)
        time.sleep(0.2)
        waiting.close()
        time.sleep(0.2)
        first.close()
        eventually(lambda: server.running() == 0, 2)
        time.sleep(0.2)
        messages = server.get("/api/sessions/one").json["messages"]
        assert [m["content"] for m in messages if m["role"] == "user"] == [LONG]


def test_a_client_that_leaves_while_the_model_loads(start: StartServer) -> None:
    with start(isolation="process") as server:
        workers = len(psutil.Process().children())
        connection = server.send_chat("hi", session_id="s")
        eventually(lambda: len(psutil.Process().children()) > workers)
        connection.close()
        eventually(lambda: not server.gate.running)
        assert server.chat("hello", session_id="s").status == 200 and server.running() == 0
        assert server.get("/api/sessions/s").json["message_count"] == 2


def test_comments_keep_a_silent_stream_alive(start: StartServer) -> None:
    with start(ping_interval="100ms") as server:
        install_echo(server.settings.models_dir, "sleepy:latest", load_options={"delay_ms": 700})
        with server.send_chat("one two", model="sleepy") as connection:
            raw = read_until(connection, rb'"done":true')
        body = raw.partition(b"\r\n\r\n")[2]
        events = [line for line in body.split(b"\r\n") if line.startswith((b":", b"data"))]
        before_first = events.index(next(e for e in events if e.startswith(b"data")))
        assert before_first >= 3  # about 7 in 0.7 s, and more while it loads
        assert events[before_first + 1].startswith(b":")
        assert all(e.startswith((b":\n\n", b": loading")) for e in events if e.startswith(b":"))


def test_a_stream_that_speaks_has_no_comments(live: LiveServer) -> None:
    answer = live.post("/api/chat", {"model": "slow", "messages": [{"role": "user", "content": "a b c d"}]})
    assert b"\n:" not in answer.body and not answer.body.startswith(b":")


def test_a_reader_that_stands_still_is_dropped(start: StartServer) -> None:
    """Little is buffered for it, its place comes free, and others are served meanwhile."""
    words = ("x" * 32_000 + " ") * 200
    with start(read_timeout="1s") as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        server.send_chat(words, connection=connection)
        eventually(lambda: server.running() > 0)
        assert server.chat("and me?").json["message"]["content"] == "and me?"
        most = 0

        def dropped() -> bool:
            nonlocal most
            for one in list(server.server.server_state.connections):
                most = max(most, one.transport.get_write_buffer_size())
            return server.running() == 0

        eventually(dropped, 10)
        assert 0 < most < 1_000_000


def test_slow_heads_are_dropped_and_keep_nobody_waiting(start: StartServer) -> None:
    with start(read_timeout="1500ms") as server:
        began = time.monotonic()
        slow = [server.connect() for _ in range(200)]
        for i, connection in enumerate(slow):
            if i % 2:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert server.get("/health").status == 200 and time.monotonic() - began < 2
        answers = []
        for connection in slow:
            answers.append(parse_answer(read_all(connection)))
            connection.close()
        assert {(answer.status, answer.code) for answer in answers} == {(408, "head_timeout")}
        assert time.monotonic() - began < 10


def test_a_slow_body_is_408(start: StartServer) -> None:
    with start(read_timeout="500ms") as server, server.connect() as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = parse_answer(read_until(connection, rb"\r\n\r\n.*}"))
        stop.set()
        dripping.join()
        assert (answer.status, answer.code) == (408, "body_timeout")


def test_two_hundred_at_once_are_answered_or_sent_away(
    start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_patient(tmp_path / "site", monkeypatch)
    install_echo(tmp_path / "models", "patient:latest", format="patient", load_options={"delay_ms": 50})
    with start(models_dir=tmp_path / "models", queue_size=8, max_requests=256) as server:
        server.chat("warm up", model="patient")
        health: list[tuple[int, float]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                began = time.monotonic()
                health.append((server.get("/health").status, time.monotonic() - began))

        with ThreadPoolExecutor(201) as pool:
            watching = pool.submit(watch)
            answers = list(pool.map(lambda i: server.chat(f"number {i} of many", model="patient"), range(200)))
            done.set()
            watching.result()
        # nine at a time, a fifth of a second each: however slowly they arrive, there is no room for all
        assert {answer.status for answer in answers} == {200, 503}
        for i, answer in enumerate(answers):
            if answer.status == 200:
                assert answer.json["message"]["content"].split() == f"number {i} of many".split()
            else:
                assert answer.code == "overloaded" and int(answer.headers["retry-after"]) >= 1
        assert {status for status, _ in health} == {200}
        assert sorted(seconds for _, seconds in health)[len(health) // 2] < 2
        assert server.chat("after", model="patient").status == 200 and server.running() == 0


def test_more_requests_than_the_limit_are_sent_away(start: StartServer) -> None:
    with start(max_requests=1) as server:
        with server.send_chat(LONG, model="slow") as running:
            read_until(running, TOKEN)
            answer = server.chat("hi")
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "overloaded", "1")
            assert server.get("/health").status == 200
        eventually(lambda: server.chat("hi").status == 200, 2)


def test_a_worker_that_dies_ends_the_stream_with_an_error(start: StartServer) -> None:
    with start(isolation="process") as server:
        with server.send_chat(LONG, model="slow", session_id="s") as connection:
            seen = read_until(connection, TOKEN)
            (loaded,) = server.get("/api/ps").json["models"]
            os.kill(loaded["pid"], signal.SIGKILL)
            began = time.monotonic()
            seen += read_until(connection, rb'"done":true}\n\n')
            assert time.monotonic() - began < 2
        request_id = re.search(rb"x-request-id: (\S+)", seen)
        assert request_id
        last = json.loads(seen.split(b"data: ")[-1].split(b"\n\n")[0])
        assert last["done"] is True and last["error"]["code"] == "engine_died" and last["session_id"] == "s"
        assert last["error"]["request_id"] == request_id[1].decode() and last["full_text"].startswith("w0")
        assert server.chat("and now?", model="slow", session_id="s").json["message"]["content"] == "and now?"


def test_a_worker_that_dies_before_the_answer_is_an_error_status(start: StartServer) -> None:
    with start(isolation="process") as server:
        server.post("/api/models/slow/load")
        (loaded,) = server.get("/api/ps").json["models"]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.chat, LONG, model="slow")
            eventually(lambda: server.running() == 1)
            os.kill(loaded["pid"], signal.SIGKILL)
            answer: Answer = waiting.result(5)
        assert (answer.status, answer.code) == (502, "engine_died")


def test_a_deadline_ends_the_stream_with_an_error(start: StartServer) -> None:
    with start(request_timeout="300ms") as server:
        answer = server.chat(LONG, model="slow", stream=True)
        assert answer.status == 200 and answer.frames[-1]["error"]["code"] == "deadline_exceeded"
        answer = server.chat(LONG, model="slow")
        assert (answer.status, answer.code) == (504, "deadline_exceeded")


def test_nothing_leaks(start: StartServer) -> None:
    """After a hundred clients that left in every way, no connection, task or descriptor is left."""
    with start() as server:
        server.chat("warm up", model="slow")
        eventually(lambda: not server.server.server_state.connections)
        before = psutil.Process().num_fds()
        for i in range(100):
            connection = server.send_chat(LONG, model="slow", stream=bool(i % 2))
            if i % 3 == 0:
                time.sleep(0.01)
            (reset if i % 5 == 0 else socket.socket.close)(connection)
        eventually(lambda: not server.server.server_state.connections and not server.gate.running)
        eventually(lambda: server.running() == 0)
        eventually(lambda: psutil.Process().num_fds() <= before + 1)


def test_a_server_without_a_store_says_so(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with live_server(home, data_dir=tmp_path / "file") as server:
        answer = server.chat("hi")
        assert answer.status in (503, 507) and answer.code in ("store_unavailable", "storage_error")
        assert server.post("/api/generate", {"model": "echo", "prompt": "hi", "stream": False}).status == 200
