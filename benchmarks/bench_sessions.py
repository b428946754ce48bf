"""How fast the SQLite session store is with 10,000 sessions of 20 messages and one of 10,000 turns.

    python benchmarks/bench_sessions.py [--sessions N] [--turns N]

Each line: the median time of a call of the store, of plain sqlite3 that fetches (or writes) the same rows, and the
ratio of the two.
"""

from __future__ import annotations

import argparse
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from myllm_core.session_store import NewMessage
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.types import Message

LIMIT = 0.05  # seconds; what list, search and continue may take
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000, help="sessions of 20 messages (10000)")
    parser.add_argument("--turns", type=int, default=10_000, help="turns of the long session (10000)")
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions.db"
        with closing(SQLiteStore(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as plain:
            started = time.perf_counter()
            fill(store, sizes.sessions, sizes.turns)
            print(f"filled in {time.perf_counter() - started:.1f} s, {path.stat().st_size / 2**20:.0f} MiB")
            slow = [name for name, seconds in measure(store, plain, sizes.sessions) if seconds > LIMIT]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"largest memory of this process: {memory:.0f} MiB")
    print(f"slower than {LIMIT * 1000:.0f} ms: {', '.join(slow) or 'none'}")
    return 0


def fill(store: SQLiteStore, sessions: int, turns: int) -> None:
    """Make the sessions; ``common`` is a word of every message, ``rare17`` one of session 17 only."""
    words = random.Random(1)
    for number in range(sessions):
        store.import_(document(words, f"s{number}", number, 20))
    store.import_(document(words, "long", sessions, 2 * turns))


def document(words: random.Random, session_id: str, number: int, length: int) -> dict[str, Any]:
    messages = [
        {
            "parent": step - 1 if step else None,
            "role": "assistant" if step % 2 else "user",
            "content": f"common rare{number} " + " ".join("".join(words.choices(LETTERS, k=5)) for _ in range(40)),
            "meta": {"usage": {"prompt_tokens": 12, "completion_tokens": 40}} if step % 2 else {},
            "key": str(step // 2),
        }
        for step in range(length)
    ]
    session = {"id": session_id, "title": f"Talk {number}", "model": "smollm2", "tip": length - 1}
    return {"format": "myllm-session", "version": 1, **session, "messages": messages}


def measure(store: SQLiteStore, plain: sqlite3.Connection, sessions: int) -> Iterator[tuple[str, float]]:
    """Print a line for each case; the name and the seconds of a call of the store."""
    keys = count()
    some = random.Random(2)

    def go_on(session_id: str) -> None:
        store.path(session_id)
        tip = store.get(session_id).tip
        turn = [NewMessage(Message("user", "common question")), NewMessage(Message("assistant", "common answer"))]
        store.append(session_id, turn, parent=tip, key=f"k{next(keys)}")

    def go_on_plain(session_id: str) -> None:
        plain.execute(of_session.format(session_id)).fetchall()
        plain.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            plain.execute("INSERT INTO plain VALUES (?, ?, ?)", (next(keys), "user", "common question"))
        plain.execute("COMMIT")

    def any_session() -> str:
        return f"s{some.randrange(sessions)}"

    def rows(query: str) -> Callable[[], object]:
        return lambda: plain.execute(query).fetchall()

    plain.execute("PRAGMA synchronous = FULL")
    plain.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, role TEXT, content TEXT)")
    of_session = "SELECT * FROM messages WHERE session = (SELECT number FROM sessions WHERE id = '{}') ORDER BY id"
    listing = "SELECT * FROM sessions ORDER BY changed DESC LIMIT 50"
    matches = "SELECT rowid, text FROM texts WHERE texts MATCH '{}' ORDER BY rowid DESC LIMIT 50"
    cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("list 50", store.list_sessions, rows(listing)),
        (
            "list 50, the last page",
            lambda: store.list_sessions(offset=sessions - 50),
            rows(f"{listing} OFFSET {sessions - 50}"),
        ),
        ("search a rare word", lambda: store.search("rare17"), rows(matches.format("rare17"))),
        ("search a word of every message", lambda: store.search("common"), rows(matches.format("common"))),
        ("search two words", lambda: store.search("common rare17"), rows(matches.format("common rare17"))),
        ("search a word that isn't there", lambda: store.search("nowhere"), rows(matches.format("nowhere"))),
        ("read 20 messages", lambda: store.path("s5"), rows(of_session.format("s5"))),
        ("continue: read 20, write a turn", lambda: go_on(any_session()), lambda: go_on_plain(any_session())),
        ("read the long session", lambda: store.path("long"), rows(of_session.format("long"))),
        ("export the long session", lambda: store.export("long"), rows(of_session.format("long"))),
        ("continue the long session", lambda: go_on("long"), lambda: go_on_plain("long")),
        ("search, the long session newest", lambda: store.search("common"), rows(matches.format("common"))),
    ]
    for name, ours, theirs in cases:
        mine, base = median_time(ours), median_time(theirs)
        print(f"{name:34} {mine * 1000:8.2f} ms   plain {base * 1000:8.2f} ms   ratio {mine / base:6.1f}", flush=True)
        yield name, mine


def median_time(call: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
