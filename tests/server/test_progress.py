"""What a stream says before its first token, and how health is told while models are slow or silent."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.patient import install_patient
from support.server import LiveServer, StartServer, eventually, install_echo, read_all, read_until

SHORT = "one two three four five six"
LONG = " ".join(f"w{i}" for i in range(400))


@pytest.fixture
def patient(start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with the model `patient`, whose load options are given."""
    install_patient(tmp_path / "site", monkeypatch)

    def begin(options: dict[str, Any], **settings: Any) -> Any:
        install_echo(tmp_path / "models", "patient:latest", format="patient", load_options=options)
        return start(models_dir=tmp_path / "models", **settings)

    return begin


def comments(raw: bytes) -> list[str]:
    return re.findall(r"^: (.+)$", raw.decode(), re.MULTILINE)


def test_a_stream_says_how_far_the_model_is_loaded(patient: Any) -> None:
    with patient({"load_ms": 4500}) as server, server.send_chat("hello there", model="patient") as connection:
        raw = read_until(connection, rb'"done":true')
    told = comments(raw)
    percent = [int(match[1]) for match in (re.fullmatch(r"loading (\d+) %", one) for one in told) if match]
    assert len(percent) == len(told) >= 2 and percent == sorted(set(percent)) and 30 < percent[0] < 100
    assert raw.index(b": loading") < raw.index(b'"token"')
    assert b'"full_text":"hello there "' in raw


def test_a_stream_says_how_many_wait(patient: Any) -> None:
    with patient({"delay_ms": 100}, ping_interval="300ms") as server, ExitStack() as stack:
        server.post("/api/models/patient/load")
        running = [stack.enter_context(server.send_chat(LONG, model="patient")) for _ in range(2)]
        eventually(lambda: server.running() == 2)
        waiting = [stack.enter_context(server.send_chat("me too", model="patient")) for _ in range(2)]
        for connection in waiting:
            read_until(connection, rb"\n: queue 2 waiting\n\n")
        whole = ThreadPoolExecutor(1)
        answer = whole.submit(server.chat, "whole", model="patient")
        for connection in running:
            connection.close()
        for connection in waiting:
            assert b'"full_text":"me too "' in read_until(connection, rb'"done":true')
        assert answer.result(10).json["message"]["content"] == "whole "
        whole.shutdown()


def test_a_load_that_fails_soon_has_a_status_of_its_own(patient: Any) -> None:
    with patient({"load_ms": 200, "fails": True}) as server:
        answer = server.chat("hi", model="patient", stream=True)
        assert answer.status == 500 and answer.code == "engine_error" and "no such tensor" in answer.message


def test_a_load_that_fails_late_is_an_error_frame(patient: Any) -> None:
    with patient({"load_ms": 1000, "fails": True}, ping_interval="200ms") as server:
        answer = server.chat("hi", model="patient", stream=True)
        assert answer.status == 200 and comments(answer.body)
        assert answer.frames[-1]["error"]["code"] == "engine_error" and answer.frames[-1]["done"] is True


def test_what_an_engine_calls_its_progress_is_one_line() -> None:
    from myllm_core.types import Progress
    from myllm_server.stream import comment

    assert comment(Progress("load", 0.42)) == b": loading 42 %\n\n"
    assert comment(Progress("load", 0.0, "unloading x")) == b": loading 0 % unloading x\n\n"
    assert comment(Progress("queue", None, "3 waiting")) == b": queue 3 waiting\n\n"
    hostile = comment(Progress("x\n\ndata: {}", None, "\x1b[2J\u2028\ud800"))
    assert hostile.count(b"\n") == 2 and hostile.endswith(b"\n\n") and b"\x1b" not in hostile


def health(server: LiveServer) -> int:
    began = time.monotonic()
    answer = server.get("/health")
    assert answer.json["status"] in ("ok", "unhealthy") and answer.json.keys() == {"status"}
    assert (answer.status == 200) is (answer.json["status"] == "ok")
    assert time.monotonic() - began < 4
    return answer.status


def test_health_of_an_idle_worker_that_doesnt_answer(start: StartServer) -> None:
    with start(isolation="process") as server:
        assert health(server) == 200
        pid = server.post("/api/models/echo/load").json["pid"]
        assert health(server) == 200
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: health(server) == 503, 6)
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: health(server) == 200, 3)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: server.get("/api/ps").json["models"] == [])
        eventually(lambda: health(server) == 200, 3)  # it isn't loaded any more; the next request starts it again
        assert server.chat("hi").status == 200


def test_health_of_a_busy_worker_bears_a_long_step_but_not_for_ever(start: StartServer) -> None:
    with start(isolation="process", hang_timeout="8s") as server, server.send_chat(LONG, model="slow") as connection:
        read_until(connection, b'"token"')
        (loaded,) = server.get("/api/ps").json["models"]
        os.kill(loaded["pid"], signal.SIGSTOP)
        stopped = time.monotonic()
        while time.monotonic() - stopped < 3:
            began = time.monotonic()
            assert health(server) == 200
            assert time.monotonic() - began < 1, "a long step isn't waited for"
            time.sleep(0.3)
        eventually(lambda: health(server) == 503, 5)  # silent for half of hang_timeout
        assert b"engine_died" in read_until(connection, rb'"done":true', 12)  # and ended after all of it
        eventually(lambda: health(server) == 200, 3)


def test_a_flood_of_health_checks_is_one_check(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with start() as server:
        asked = 0
        ask = server.runtime.dead_models

        async def counted(*given: Any) -> list[str]:
            nonlocal asked
            asked += 1
            return await ask(*given)

        monkeypatch.setattr(server.runtime, "dead_models", counted)
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: server.get("/health").status, range(200))) == {200}
        assert 1 <= asked <= 1 + (time.monotonic() - began)


def test_health_while_the_server_stops(start: StartServer) -> None:
    with start(shutdown_grace=30) as server, server.connect() as late, server.send_chat(SHORT, model="slow") as stream:
        read_until(stream, b'"token"')
        late.sendall(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{")
        eventually(lambda: len(server.gate.running) == 2)
        server.stop()
        assert server.get("/health").status == 503
        late.sendall(b"}")  # until now the server had to stay
        assert b"HTTP/1.1 415" in read_all(late)
        assert b'"finish_reason":"stop"' in read_all(stream)
