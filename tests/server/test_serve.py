"""`myllm serve` as a process: where it listens, what it logs, how it stops."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from myllm_core.sessions.sqlite import SQLiteStore
from support.serve import Served, environment, served
from support.server import eventually, parse_answer, read_all, read_until
from support.sessions import put_session

LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_reply_end_and_takes_no_new_work(home: Path, tmp_path: Path, signum: int) -> None:
    words = " ".join(f"w{number}" for number in range(60))  # 3 s
    with served(home, tmp_path) as server, server.send_chat(words) as connection:
        seen = read_until(connection, rb'"token":')
        server.process.send_signal(signum)
        time.sleep(0.2)
        status, body = server.get("/api/models")
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        assert server.get("/health")[0] == 503
        seen += read_all(connection)
        assert f'"full_text":"{words}"'.encode() in seen and b'"finish_reason":"stop"' in seen
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_when_the_grace_is_over_streams_end_with_an_error(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path, MYLLM_SHUTDOWN_GRACE="500ms") as server:
        with server.send_chat(LONG) as stream, server.send_chat(LONG, stream=False) as whole:
            read_until(stream, rb'"token":')
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            last = json.loads(read_all(stream).split(b"data: ")[-1].split(b"\n\n")[0])
            assert last["error"]["code"] == "stopping" and last["done"] is True
            answer = parse_answer(read_all(whole))
            assert (answer.status, answer.code) == (503, "stopping")
            assert server.wait() == 0 and time.monotonic() - began < 12
        assert "Traceback" not in server.log


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(home: Path, tmp_path: Path, signum: int) -> None:
    with served(home, tmp_path, MYLLM_ISOLATION="process") as server, server.send_chat(LONG) as connection:
        read_until(connection, rb'"token":')
        workers = psutil.Process(server.process.pid).children()
        assert workers
        server.process.send_signal(signum)
        time.sleep(0.3)
        began = time.monotonic()
        server.process.send_signal(signum)
        assert server.wait() == 128 + signum and time.monotonic() - began < 12
        assert not psutil.wait_procs(workers, timeout=5)[1]
        assert "Traceback" not in server.log


def test_idle_connections_dont_hold_the_server_up(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path) as server, socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(idle, rb'"ok"')
        with socket.create_connection(("127.0.0.1", server.port)):
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(12) == 0  # they could be idle for 15 s


@pytest.mark.parametrize("present", [True, False])
def test_uvloop_is_used_where_there_is_one(home: Path, tmp_path: Path, present: bool) -> None:
    settings = {"MYLLM_ISOLATION": "process"}
    if not present:
        (tmp_path / "uvloop.py").write_text("raise ImportError\n")
        settings["PYTHONPATH"] = str(tmp_path)
    with served(home, tmp_path, **settings) as server:
        mapped = {file.path for file in psutil.Process(server.process.pid).memory_maps()}
        assert any("uvloop" in path for path in mapped) is (present and sys.platform != "win32")
        with server.send_chat("one two three") as connection:
            assert b'"full_text":"one two three"' in read_until(connection, rb'"finish_reason"', 60)
        with server.send_chat(LONG) as connection:
            read_until(connection, rb'"token":', 60)
        eventually(lambda: "499" in server.log, 30)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert "Traceback" not in server.log


def serve_at_once(
    home: Path, tmp_path: Path, *arguments: str, timeout: float = 120, **settings: str
) -> subprocess.CompletedProcess[str]:
    """What a server said that doesn't come up."""
    return subprocess.run(
        [sys.executable, "-m", "myllm_cli", "serve", *arguments],
        env=environment(home, tmp_path, **settings),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_port_in_use_is_one_line(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve_at_once(home, tmp_path, "--port", str(port))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and str(port) in done.stderr and "in use" in done.stderr


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "256.1.1.1", "a" * 70 + ".example"])
def test_a_host_that_cant_be_bound_is_one_line(home: Path, tmp_path: Path, host: str) -> None:
    done = serve_at_once(home, tmp_path, "--port", "0", "--host", host)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and host in done.stderr
    assert "--host 127.0.0.1" in done.stderr and "--port 0" not in done.stderr, "another port wouldn't help"


def test_a_wrong_origin_in_the_settings_is_one_line(home: Path, tmp_path: Path) -> None:
    done = serve_at_once(home, tmp_path, "--port", "0", MYLLM_CORS_ORIGINS='["*"]')
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cors_origins" in done.stderr


def test_it_starts_again_on_the_same_port_at_once(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path) as first:
        assert first.get("/health")[0] == 200
        first.process.send_signal(signal.SIGTERM)
        assert first.wait() == 0
    with served(home, tmp_path, "--port", str(first.port)) as second:
        assert second.port == first.port and second.get("/health")[0] == 200


def test_beyond_loopback_a_key_is_made_and_printed_once(home: Path, tmp_path: Path) -> None:
    keys = set()
    for _ in range(2):
        with served(home, tmp_path, "--host", "0.0.0.0") as server:
            (key,) = re.findall(r"key.*: ([A-Za-z0-9_-]{43})$", server.log, re.MULTILINE)
            keys.add(key)
            assert server.get("/api/models")[0] == 401 and server.get("/health")[0] == 200
            assert server.get("/api/models", **{"x-api-key": key})[0] == 200
            server.get("/api/models", authorization=f"Bearer {key}x")
            assert server.log.count(key) == 1
    assert len(keys) == 2


def test_a_configured_key_is_never_printed(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path, "--host", "0.0.0.0", MYLLM_API_KEY="c4nary", MYLLM_LOG_LEVEL="debug") as server:
        assert server.get("/api/models", authorization="Bearer c4nary")[0] == 200
        assert server.get("/api/models", authorization="Bearer c4narY")[0] == 401
        assert "c4nar" not in server.log and "c4nar" not in server.line


def test_no_auth_warns(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path, "--host", "0.0.0.0", "--no-auth") as server:
        assert "WARNING" in server.log and "--no-auth" in server.log
        assert server.get("/api/models")[0] == 200


def test_one_log_line_a_request_without_prompts(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path, MYLLM_LOG_LEVEL="debug") as server:
        with server.send_chat("c4nary bird", stream=False, model="echo") as connection:
            answer = parse_answer(read_until(connection, rb'"message"'))
        eventually(lambda: "POST /api/chat" in server.log)  # a line is written when its answer has gone out
        server.get("/api/chat?model=echo&message=c4nary%20query", accept="text/event-stream")
        eventually(lambda: "GET /api/chat" in server.log)
        server.get("/nope%0d%0aFAKE%1b[31m%e2%80%a8%c2%85x")
        eventually(lambda: "GET /nope" in server.log)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"c4nary\r\n\r\n")
            read_all(connection)
        with server.send_chat(LONG) as connection:
            read_until(connection, rb'"token":')
        eventually(lambda: "499" in server.log)
        log = server.log
    lines = log.splitlines()
    ours = [line for line in lines if "/api/" in line or "/nope" in line]
    assert len(ours) == 4
    assert re.search(r" POST /api/chat 200 \d+ ms [0-9a-f]{16}$", ours[0])
    assert ours[0].endswith(answer.headers["x-request-id"])
    assert re.search(r" GET /api/chat 200 \d+ ms ", ours[1])
    assert r" GET /nope\r\nFAKE\x1b[31m\u2028\x85x 404 " in ours[2]
    assert re.search(r" - - 400 invalid_http [0-9a-f]{16}$", log, re.MULTILINE)
    assert re.search(r" POST /api/chat 499 client gone \d+ ms ", ours[3])
    assert "c4nary" not in log and "w17" not in log


def test_reload_starts_again_when_code_changes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text("x = 1\n")
    with served(home, tmp_path, "--reload", MYLLM_API_KEY="k") as server:
        eventually(lambda: _answers(server), 20)
        assert server.get("/api/models")[0] == 401 and server.get("/api/models", **{"x-api-key": "k"})[0] == 200
        before = set(psutil.Process(server.process.pid).children())
        (tmp_path / "watched.py").write_text("x = 2\n")
        eventually(lambda: not before <= set(psutil.Process(server.process.pid).children()), 15)
        eventually(lambda: _answers(server), 20)
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0


def _answers(server: Served) -> bool:
    try:
        return server.get("/health")[0] == 200
    except OSError:
        return False


def test_old_sessions_are_deleted_at_the_start(home: Path, tmp_path: Path) -> None:
    store = SQLiteStore.open("", tmp_path)
    put_session(store, "old", 31)
    put_session(store, "new", 29)
    store.close()
    with served(home, tmp_path, MYLLM_SESSION_MAX_AGE="30d", MYLLM_LOG_FORMAT="json") as server:
        eventually(lambda: "session_max_age" in server.log, 20)
        sessions = json.loads(server.get("/api/sessions")[1])["sessions"]
        (line,) = [line for line in map(json.loads, server.log.splitlines()) if line["logger"] == "myllm.audit"]
    assert [session["id"] for session in sessions] == ["new"]
    assert (line["sessions"], line["outcome"], line["level"]) == (1, "ok", "info")


def test_an_age_under_an_hour_is_refused(home: Path, tmp_path: Path) -> None:
    done = serve_at_once(home, tmp_path, "--port", "0", timeout=60, MYLLM_SESSION_MAX_AGE="59m")
    assert done.returncode == 2 and "session_max_age" in done.stderr and done.stderr.count("\n") == 1
