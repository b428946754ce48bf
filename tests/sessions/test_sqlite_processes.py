"""Several processes at one sessions file, and processes that are killed."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.testing.session_store.given import texts

Check = Callable[[Path], None]

KILLS = 20

# Appends turns for ever; says which one is acknowledged.
APPEND = """
import sys
from pathlib import Path
from myllm_core.session_store import NewMessage
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.types import Message

run = sys.argv[2]
store = SQLiteStore(Path(sys.argv[1]))
tip = store.create("s").tip
for number in range(100_000):
    key = f"{run}.{number}"
    turn = [NewMessage(Message("user", f"q {key}")), NewMessage(Message("assistant", f"a {key} " * 200))]
    tip = store.append("s", turn, parent=tip, key=key)[-1].id
    print(key, flush=True)
"""

# Four threads, each of which appends turns to one session and begins again when another was faster.
COMPETE = r"""
import sys, threading
from pathlib import Path
from myllm_core.errors import SessionConflict
from myllm_core.session_store import NewMessage
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.types import Message

store = SQLiteStore(Path(sys.argv[1]))
store.create("s")
print("ready", flush=True)
sys.stdin.readline()

def write(name):
    for number in range(10):
        key = f"{name}.{number}"
        turn = [NewMessage(Message("user", "q " + key)), NewMessage(Message("assistant", "a " + key))]
        while True:
            try:
                store.append("s", turn, parent=store.get("s").tip, key=key)
            except SessionConflict:
                continue
            sys.stdout.write(key + "\n")  # in one piece, unlike print
            break

threads = [threading.Thread(target=write, args=[sys.argv[2] + letter]) for letter in "abcd"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
store.close()
"""

# Opens a file that isn't there yet, at the same moment as others.
OPEN_FIRST = """
import sys
from pathlib import Path
from myllm_core.sessions.sqlite import SQLiteStore

print("ready", flush=True)
sys.stdin.readline()
store = SQLiteStore(Path(sys.argv[1]))
store.create("s" + sys.argv[2])
store.close()
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def release(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let the processes go on at the same moment, once all are ready; what they print until they end."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [output for output, _ in outputs]


def test_every_acknowledged_turn_survives_kill_9(tmp_path: Path, assert_sound: Check) -> None:
    path = tmp_path / "sessions.db"
    chance = random.Random(7)
    acknowledged: list[str] = []
    for run in range(KILLS):
        with start(APPEND, path, run) as process:
            assert process.stdout is not None
            acknowledged.append(process.stdout.readline().strip())
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
            acknowledged += process.stdout.read().split()
        assert_sound(path)
    assert len(acknowledged) > 2 * KILLS, "the writers were killed before they wrote"
    store = SQLiteStore(path)
    contents = texts(store.path("s"))
    assert store.get("s").message_count == len(contents)
    store.close()
    questions = [content.removeprefix("q ") for content in contents[::2]]
    assert contents[1::2] == [f"a {key} " * 200 for key in questions]
    assert len(set(questions)) == len(questions)
    assert [key for key in questions if key in set(acknowledged)] == acknowledged
    assert len(questions) - len(acknowledged) <= KILLS, "at most one turn a run was written and not yet acknowledged"


def test_twelve_writers_in_three_processes_lose_no_turn(tmp_path: Path, assert_sound: Check) -> None:
    path = tmp_path / "sessions.db"
    processes = [start(COMPETE, path, number) for number in range(3)]
    outputs = release(processes)
    acknowledged = [key for output in outputs for key in output.split()]
    store = SQLiteStore(path)
    contents = texts(store.path("s"))
    store.close()
    questions = [content.removeprefix("q ") for content in contents[::2]]
    assert contents[1::2] == ["a " + key for key in questions]
    assert sorted(questions) == sorted(acknowledged)
    assert len(questions) == 3 * 4 * 10
    for writer in {key.split(".")[0] for key in questions}:
        assert [key for key in questions if key.startswith(writer + ".")] == [f"{writer}.{n}" for n in range(10)]
    assert_sound(path)


def test_processes_that_make_the_file_at_the_same_moment(tmp_path: Path, assert_sound: Check) -> None:
    path = tmp_path / "sessions.db"
    processes = [start(OPEN_FIRST, path, number) for number in range(6)]
    release(processes)
    store = SQLiteStore(path)
    assert sorted(session.id for session in store.list_sessions()) == [f"s{number}" for number in range(6)]
    store.close()
    assert_sound(path)


def test_a_file_that_another_one_makes_in_the_midst_of_opening_it(tmp_path: Path, assert_sound: Check) -> None:
    path = tmp_path / "sessions.db"
    other = start(OPEN_FIRST, path, 1)
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    go = iter(["go\n"])

    class Interrupted(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if "sqlite_master" in sql:  # the file's owner was read just before
                other.stdin.write(next(go, ""))
                other.stdin.flush()
                with suppress(subprocess.TimeoutExpired):  # it waits for us, as it should
                    other.wait(timeout=2)
            return super().execute(sql, *parameters)

    store = SQLiteStore(path, partial(sqlite3.connect, factory=Interrupted))
    assert (*other.communicate(timeout=60), other.returncode) == ("", "", 0)
    assert [session.id for session in store.list_sessions()] == ["s1"]
    store.close()
    assert_sound(path)
