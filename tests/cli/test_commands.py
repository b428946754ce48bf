"""The other commands: listings, sessions, pull, verify, ps, serve and doctor."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from myllm_core.sessions.sqlite import SQLiteStore
from support.sessions import put_session

from .conftest import Myllm


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_and_show(with_echo: Myllm) -> None:
    (model,) = _json(with_echo("list", "--json"))
    assert {"name", "family", "format", "quantization", "context_size", "size_bytes", "pulled_at", "source"} <= set(
        model
    )
    assert (model["name"], model["format"], model["size_bytes"]) == ("echo:latest", "echo", 5)
    assert "echo:latest" in with_echo("list").stdout
    shown = _json(with_echo("show", "echo", "--json"))
    assert shown["files"][0]["size_bytes"] == 5
    assert len(shown["files"][0]["sha256"]) == 64
    assert shown["files"][0]["sha256"] in with_echo("show", "echo:latest").stdout


def test_a_model_under_a_second_name(with_echo: Myllm) -> None:
    done = with_echo("copy", "echo", "mine:1")
    assert (done.returncode, done.stdout) == (0, "Copied to mine:1.\n"), done.stderr
    assert [model["name"] for model in _json(with_echo("list", "--json"))] == ["echo:latest", "mine:1"]
    assert with_echo("copy", "echo", "mine:1").returncode == 2
    assert with_echo("copy", "nope", "other").returncode == 3
    assert with_echo("remove", "echo", "--yes").returncode == 0
    assert with_echo("show", "mine:1").returncode == 0


def test_broken_models_are_named_on_standard_error(with_echo: Myllm) -> None:
    broken = with_echo.home / "models" / "bad@latest"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"schema": 1, "name": "\\u001b[31mevil"')
    done = with_echo("list", "--json")
    assert [model["name"] for model in _json(done)] == ["echo:latest"]
    assert "bad@latest" in done.stderr
    assert "\x1b" not in done.stderr


def test_models_dir_wins_over_the_environment(with_echo: Myllm, tmp_path: Path) -> None:
    assert _json(with_echo("--models-dir", str(tmp_path / "empty"), "list", "--json")) == []
    with_echo.extra["MYLLM_MODELS_DIR"] = str(tmp_path / "empty")
    moved = with_echo("--models-dir", "models", "list", "--json", cwd=with_echo.home)
    assert [model["name"] for model in _json(moved)] == ["echo:latest"]


def test_the_catalogue(with_echo: Myllm) -> None:
    done = with_echo("pull", "--list")
    assert done.stdout.splitlines()[0].split() == [
        "NAME", "PARAMETERS", "SIZE", "CONTEXT", "LICENCE", "INSTALLED", "DESCRIPTION",
    ]  # fmt: skip
    entries = {entry["name"]: entry for entry in _json(with_echo("pull", "--list", "--json"))}
    assert entries["echo:latest"]["installed"] is True
    assert {"parameters", "size_bytes", "context_size", "licence", "sources"} <= set(entries["echo:latest"])


def test_verify(with_echo: Myllm) -> None:
    assert with_echo("verify", "echo").stdout == "echo:latest: ok\n"
    (weights,) = (with_echo.home / "models").rglob("echo.txt")
    weights.chmod(0o644)
    weights.write_text("EVIL\n")
    done = with_echo("verify", "--all")
    assert done.returncode == 5
    assert "echo:latest: damaged" in done.stdout
    assert "sha256" in done.stdout


def test_sessions(with_echo: Myllm, tmp_path: Path) -> None:
    for text in ("the first apple", "the second pear"):
        assert with_echo("run", "echo", text, "--session", "fruit").returncode == 0
    assert "the first apple" in with_echo("sessions", "list").stdout
    assert [found["id"] for found in _json(with_echo("sessions", "search", "pear", "--json"))] == ["fruit"]
    assert "Fruit salad" in with_echo("sessions", "rename", "fruit", "Fruit salad").stdout
    assert with_echo("sessions", "fork", "fruit", "--at", "2", "--id", "half").stdout == "half\n"
    half = _json(with_echo("sessions", "show", "half", "--json"))
    assert [message["content"] for message in half["path"]] == ["the first apple", "the first apple"]
    assert with_echo("sessions", "fork", "fruit", "--at", "9").returncode == 2
    file = tmp_path / "fruit.json"
    assert with_echo("sessions", "export", "fruit", "--output", str(file)).returncode == 0
    assert file.stat().st_mode & 0o077 == 0
    assert with_echo("sessions", "delete", "fruit").returncode == 2  # nobody can be asked
    assert with_echo("sessions", "delete", "fruit", "--yes").returncode == 0
    assert with_echo("sessions", "show", "fruit").returncode == 3
    assert with_echo("sessions", "import", "-", input=file.read_bytes()).stdout == "fruit\n"
    assert "the second pear" in with_echo("sessions", "show", "fruit").stdout
    assert with_echo("sessions", "import", "-", input="[" * 100_000).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_export_onto_a_full_disk_names_the_file(with_echo: Myllm) -> None:
    assert with_echo("run", "echo", "hello", "--session", "s").returncode == 0
    done = with_echo("sessions", "export", "s", "--output", "/dev/full")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == (
        "Error: can't write /dev/full: No space left on device; make room there, or choose another file\n"
    )


def test_old_sessions_are_pruned_after_a_look(myllm: Myllm) -> None:
    store = SQLiteStore.open("", myllm.home / "data")
    for session_id, days in (("old", 31), ("older", 400), ("new", 1)):
        put_session(store, session_id, days)

    def left() -> set[str]:
        return {session.id for session in store.list_sessions()}

    prune = ("sessions", "prune", "--older-than")
    done = myllm("sessions", "prune", "--yes")
    assert done.returncode == 2 and "--older-than" in done.stderr, "an age must be said"
    for text in ("soon", "30", "59m", "0"):
        done = myllm(*prune, text, "--yes")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert myllm(*prune, "30d", "--json").returncode == 2
    assert "no session that old" in myllm(*prune, "forever", "--yes").stderr
    done = myllm(*prune, "30d", "--dry-run")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", "older", "old", "2"]
    assert [session["id"] for session in _json(myllm(*prune, "30d", "--dry-run", "--json"))] == ["older", "old"]
    done = myllm(*prune, "30d")
    assert done.returncode == 2 and "--yes" in done.stderr and left() == {"old", "older", "new"}, "nobody can be asked"
    terminal = myllm.terminal(*prune, "100d")
    terminal.expect(r"Delete these sessions \(1\)\? .*")
    terminal.sendline("n")
    terminal.expect("Nothing was changed")
    assert left() == {"old", "older", "new"}
    done = myllm(*prune, "100d", "--yes")
    assert done.returncode == 0 and done.stdout.endswith("Deleted 1.\n") and left() == {"old", "new"}
    assert [session["id"] for session in _json(myllm(*prune, "30d", "--yes", "--json"))] == ["old"]
    assert left() == {"new"}
    store.close()


class _Slow(BaseHTTPRequestHandler):
    """A file that comes slowly and never ends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**9))
        self.send_header("ETag", '"one"')
        self.end_headers()
        try:
            self.wfile.write(b"GGUF" + b"\0" * 200_000)
            while not self.server.stop.wait(0.1):  # type: ignore[attr-defined]
                self.wfile.write(b"\0" * 10_000)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _slow_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    server.stop = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/model.gguf"
    finally:
        server.stop.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()


def test_control_c_during_a_pull_says_that_it_can_be_resumed(myllm: Myllm) -> None:
    with _slow_server() as url:
        process = myllm.start("pull", url, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        until = time.monotonic() + 20
        while not any(part.stat().st_size for part in myllm.home.glob("models/.partial/*/data.part")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert re.search(rf"Interrupted. \d.* are kept; resume with: myllm pull {url}".encode(), errors)
    assert b"Traceback" not in errors
    assert _json(myllm("list", "--json")) == []


def test_a_pull_on_a_terminal_draws_a_bar_with_rate_and_time_left(myllm: Myllm) -> None:
    with _slow_server() as url:
        terminal = myllm.terminal("pull", url, dimensions=(24, 120))
        terminal.expect("model.gguf")
        terminal.expect(r"[kM]B/s")
        terminal.expect(r"\d:\d\d:\d\d")
        terminal.sendintr()
        terminal.expect("resume with")
        terminal.close(force=True)


@contextmanager
def _serving(myllm: Myllm) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    process = myllm.start("serve", "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        assert "Listening on http://127.0.0.1:" in line
        yield process, line.rsplit(":", 1)[1].strip()
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_serve_and_ps(with_echo: Myllm) -> None:
    with_echo.extra["MYLLM_PORT"] = "1"
    done = with_echo("ps")
    assert done.returncode == 4
    assert "myllm serve" in done.stderr
    with _serving(with_echo) as (process, port):
        with_echo.extra["MYLLM_PORT"] = port
        assert _json(with_echo("ps", "--json")) == []
        done = with_echo("load", "echo", "--keep-alive", "90s")
        assert re.fullmatch(r"echo:latest is loaded \(echo, \d+\.\d MB\); expires: in (90|89) s\n", done.stdout), done
        [row] = with_echo("ps").stdout.splitlines()[1:]
        assert re.fullmatch(r"echo:latest +echo +4096 +\d+\.\d MB +0 +0 +in \d\d s", row)
        [loaded] = _json(with_echo("ps", "--json"))
        assert loaded["pid"] > 0 and loaded["memory"] > 10_000_000
        assert _json(with_echo("load", "echo", "--keep-alive", "forever", "--json"))["expires_in"] is None
        assert with_echo("ps").stdout.splitlines()[1].endswith("  never")
        assert with_echo("unload", "echo").stdout == "echo:latest isn't loaded any more\n"
        assert _json(with_echo("ps", "--json")) == []
        for words, code, message in (
            (["load", "nonesuch"], 3, "nonesuch"),
            (["unload", "../x"], 2, "../x"),
            (["load", "echo", "--keep-alive", "soon"], 2, "keep_alive: "),
        ):
            done = with_echo(*words)
            assert (done.returncode, done.stdout) == (code, "") and message in done.stderr, done
        findings = {finding["check"]: finding for finding in json.loads(with_echo("doctor", "--json").stdout)}
        assert findings["port"]["message"].startswith("a myllm server runs")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)


@pytest.mark.parametrize("words", [["ps"], ["load", "echo"], ["unload", "echo"]])
def test_something_else_on_the_port(myllm: Myllm, words: list[str]) -> None:
    with _slow_server() as url:
        myllm.extra["MYLLM_PORT"] = url.rsplit(":", 1)[1].partition("/")[0]
        done = myllm(*words)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_another_program_that_has_the_same_routes(myllm: Myllm) -> None:
    """Ollama's list of loaded models has the same path as ours and other fields."""
    with _answering(b'{"models": [{"name": "x", "size": 1}]}') as port:
        myllm.extra["MYLLM_PORT"] = port
        done = myllm("ps")
    assert (done.returncode, done.stdout) == (4, "")
    assert "is no myllm server" in done.stderr


@contextmanager
def _answering(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


def test_doctor_finds_what_is_wrong(with_echo: Myllm) -> None:
    done = with_echo("doctor")
    assert done.returncode in (0, 1), done.stderr
    for check in ("python", "myllm", "settings", "plugins", "engines", "folders", "memory", "models", "sessions"):
        assert f"  {check}: " in done.stdout
    site = with_echo.home / "site" / "myllm-4.2.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: myllm\nVersion: 4.2.0\n")
    broken = with_echo.home / "models" / "bad@latest"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    data = with_echo.home / "data"
    data.mkdir(exist_ok=True)
    for file in data.glob("sessions.db*"):
        file.unlink()
    (data / "sessions.db").mkdir()
    with_echo.extra["PYTHONPATH"] = str(site.parent)
    done = with_echo("doctor", "--json")
    problems = {finding["check"]: finding for finding in json.loads(done.stdout) if finding["status"] == "problem"}
    assert done.returncode == 1
    assert {"myllm", "models", "sessions"} <= set(problems)
    assert "4.2.0" in problems["myllm"]["message"]
    assert all(finding["fix"] for finding in problems.values())


def test_doctor_with_settings_that_cannot_be_read(myllm: Myllm) -> None:
    (myllm.home / "config.toml").write_text("port = 'many'\n")
    done = myllm("doctor")
    assert done.returncode == 1
    assert "problem  settings" in done.stdout


@pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="needs a read-only place that root can't write"
)
def test_a_models_folder_that_is_a_file(myllm: Myllm) -> None:
    (myllm.home / "models").write_text("")
    assert myllm("pull", "echo").returncode == 6
    done = myllm("list")
    assert done.returncode == 0
    assert "not a folder" in done.stderr
