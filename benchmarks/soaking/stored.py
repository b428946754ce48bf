"""Whether the sessions file holds what it must: every acknowledged turn, once, and no half of one."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from soaking.clients import Acknowledged


@dataclass(frozen=True, slots=True)
class Row:
    """A stored message."""

    id: int
    parent: int | None
    role: str
    content: str
    status: str


def check_sessions(database: Path, turns: Iterable[Acknowledged]) -> tuple[int, list[str]]:
    """How many messages are stored, and what is wrong with them."""
    with closing(sqlite3.connect(database)) as db:
        problems = [f"integrity_check: {row[0]}" for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        rows = db.execute(
            "SELECT s.id, m.turn_key, m.id, m.parent, m.role, m.content, m.status "
            "FROM messages m JOIN sessions s ON s.number = m.session ORDER BY m.id"
        ).fetchall()
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    by_id = {row[2]: Row(*row[2:]) for row in rows}
    for session, key, *message in rows:
        groups[session, key].append(Row(*message))
    for (session, key), messages in groups.items():
        problems += [f"session {session}, turn {key}: {problem}" for problem in _turn(messages, by_id)]
    for turn in turns:
        problems += _acknowledged(turn, groups)
    return len(rows), problems


def _turn(messages: list[Row], by_id: dict[int, Row]) -> list[str]:
    """A turn is new messages and one reply; or a reply alone, to a message that was stored with an interrupted one."""
    *asked, reply = messages
    problems = []
    if reply.role != "assistant" or any(message.role == "assistant" for message in asked):
        problems.append(f"it is {[message.role for message in messages]}")
    for before, after in zip(messages, messages[1:], strict=False):
        if after.parent != before.id:
            problems.append("its messages don't follow each other")
    first = by_id.get(messages[0].parent or 0)
    above = first.role if first else None
    if above not in ((None, "assistant") if asked else ("user", "tool")):
        problems.append(f"it follows {above}")
    return problems


def _acknowledged(turn: Acknowledged, groups: dict[tuple[str, str], list[Row]]) -> list[str]:
    keys = [key for session, key in groups if session == turn.session and key.split(" ")[0] == turn.key]
    replies = [row for key in keys for row in groups[turn.session, key] if row.role == "assistant"]
    questions = [row for key in keys for row in groups[turn.session, key] if row.role == "user"]
    problems = []
    whole = [row.content for row in replies if row.status == "complete"]
    if whole != [turn.reply]:
        problems.append(f"its client got {turn.reply[:60]!r}, and the store has {[text[:60] for text in whole]}")
    if [row.content for row in questions] != [turn.question]:
        problems.append(f"its question is stored {len(questions)} times")
    return [f"acknowledged turn {turn.key} of session {turn.session}: {problem}" for problem in problems]
