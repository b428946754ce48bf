"""The soak and the server killer, briefly: the same programs that run for long by hand."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from myllm_core.session_store import NewMessage
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.types import Message
from soaking.clients import Acknowledged, Frames, Wrong
from soaking.stored import check_sessions

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KILLS = os.environ.get("MYLLM_FAULT_KILLS", "20")


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(300)
def test_a_crowd_that_leaves_stalls_and_sends_nonsense_while_workers_are_killed(tmp_path: Path) -> None:
    done = run("soak.py", "--model", "echo", "--minutes", "0.33", "--clients", "60", "--kill-every", "4.5",
               "--out", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["worker_kills"] >= 3 and report["turns_acknowledged"] > 20
    assert report["results"]["ok"] > 200 and set(report["results"]) - {"wrong"} == set(report["results"])
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert "no zombie" in (tmp_path / "report.md").read_text()


@pytest.mark.timeout(300)
def test_no_acknowledged_turn_is_lost_or_doubled_when_the_server_is_killed() -> None:
    done = run("kill_server.py", "--times", KILLS, "--longest", "1.4")
    assert done.returncode == 0, done.stdout + done.stderr


def make(path: Path) -> Acknowledged:
    with closing(SQLiteStore(path)) as store:
        store.create("s")
        turn = [NewMessage(Message("user", "q")), NewMessage(Message("assistant", "a"))]
        store.append("s", turn, parent=None, key="k")
    return Acknowledged("s", "k", "q", "a")


DAMAGE = {
    "a reply is lost": "DELETE FROM messages WHERE role = 'assistant'",
    "a turn is lost": "DELETE FROM messages",
    "a turn is doubled": "CREATE TABLE twice AS SELECT * FROM messages; UPDATE twice SET id = id + 9, "
    "turn_key = turn_key || ' 1'; INSERT INTO messages SELECT * FROM twice; DROP TABLE twice",
    "another text": "UPDATE messages SET content = 'b' WHERE role = 'assistant'",
    "not whole": "UPDATE messages SET status = 'cancelled' WHERE role = 'assistant'",
    "torn apart": "UPDATE messages SET parent = NULL",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_tools_find_what_is_wrong_with_a_store(tmp_path: Path, damage: str) -> None:
    turn = make(tmp_path / "s.db")
    assert check_sessions(tmp_path / "s.db", [turn]) == (2, [])
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.executescript(DAMAGE[damage])
    assert check_sessions(tmp_path / "s.db", [turn])[1]


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"token":"a","done":false}\n\n',
        b'data: {"token":"a","done":false}\n\ndata: {"done":true,"full_text":"b"}\n\n',
        b'data: {"done":true,"full_text":""}\n\ndata: {"done":true,"full_text":""}\n\n',
        b'data: {"done":true,"error":{"code":"internal_error"}}\n\n',
        b"",
    ],
)
def test_the_tools_find_what_is_wrong_with_a_stream(stream: bytes) -> None:
    frames = Frames()
    with pytest.raises(Wrong):
        frames.feed(stream)
        frames.end()
