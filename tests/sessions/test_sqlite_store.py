"""What is the SQLite store's own, beyond the contract of every store."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.errors import ConfigError, InvalidRequest
from myllm_core.plugins import load_plugins
from myllm_core.session_store import NewMessage, StoredMessage
from myllm_core.sessions import database, sqlite
from myllm_core.sessions.fork import fork_session
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.testing.pictures import picture
from myllm_core.testing.session_store.given import said, texts, turn
from myllm_core.types import Message, Role, ToolCall

Check = Callable[[Path], None]

session_ids = st.text("ABab01._-", min_size=1, max_size=4)
any_text = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore.open("", tmp_path)
    yield store
    store.close()


def test_it_is_the_built_in_store() -> None:
    assert load_plugins().session_store("sqlite") is SQLiteStore


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("", "data/sessions.db"),
        ("other.db", "data/other.db"),
        ("sqlite:///sub/other.db", "data/sub/other.db"),
        ("sqlite:///{tmp}/abs.db", "abs.db"),
        ("{tmp}/deep/er/abs.db", "deep/er/abs.db"),
        ("a?mode=ro&x=%20 #.db", "data/a?mode=ro&x=%20 #.db"),
        ("file:x.db", "data/file:x.db"),
        (":memory:", "data/:memory:"),
    ],
)
def test_where_the_file_lies(tmp_path: Path, url: str, file: str) -> None:
    SQLiteStore.open(url.replace("{tmp}", str(tmp_path)), tmp_path / "data").close()
    assert (tmp_path / file).is_file()


@pytest.mark.parametrize("url", ["redis://localhost/0", "postgresql://u:secret@h/db", "sqlite://x", "http://h/x"])
def test_another_kind_of_url_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///path") as caught:
        SQLiteStore.open(url, tmp_path)
    assert "secret" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_commits_are_durable(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    class Spied(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                seen.append(
                    tuple(
                        super(Spied, self).execute(f"PRAGMA {name}").fetchone()[0]
                        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                    )
                )
            return super().execute(sql, *parameters)

    def connect(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        return sqlite3.connect(*arguments, factory=Spied, **keywords)

    store = SQLiteStore(tmp_path / "sessions.db", connect)
    store.create("s")
    store.append("s", [said("q")], parent=None, key="k")
    store.close()
    assert set(seen) == {("wal", 2, 1, 5000)}


def test_order_comes_from_the_calls_when_the_clock_jumps_back(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(["2026-05-05", "2026-05-05", "2020-01-01", "2019-01-01", "2019-01-01", "2018-01-01"])
    monkeypatch.setattr(sqlite, "now", lambda: next(clock) + "T00:00:00.000+00:00")
    store.create("first")
    store.create("second")
    store.create("third")
    one = store.append("first", turn("q1", "a1"), parent=None, key="1")
    two = store.append("first", turn("q2", "a2"), parent=one[-1].id, key="2")
    store.append("second", [said("q")], parent=None, key="1")
    assert [session.id for session in store.list_sessions()] == ["second", "first", "third"]
    assert store.path("first") == one + two


def test_no_call_walks_through_a_whole_table(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    statements: dict[str, Any] = {}

    class Spied(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH") and "sqlite_master" not in sql:
                statements[sql] = parameters
            return super().execute(sql, *parameters)

    def connect(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        return sqlite3.connect(*arguments, factory=Spied, **keywords)

    store = SQLiteStore(path, connect)
    store.create("s", title="t")
    first = store.append("s", turn("q", "a"), parent=None, key="k")
    store.set_tip("s", first[0].id)
    store.path("s", first[1].id)
    store.list_sessions(offset=1)
    store.search("q")
    store.import_(store.export("s"), "t")
    store.delete("s")
    store.close()
    assert len(statements) > 15
    with closing(sqlite3.connect(path)) as db:
        for sql, parameters in statements.items():
            plan = " ".join(row[3] for row in db.execute("EXPLAIN QUERY PLAN " + sql, *parameters))
            assert not re.search(r"SCAN (messages|sessions)(?! USING INDEX)", plan), (sql, plan)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("今天北京天气很好", "北京"),
        ("東京タワーに行きました", "タワー"),
        ("서울에 갔습니다", "서울"),
        ("วันนี้อากาศดี", "อากาศ"),
        ("Ein Café in Köln", "cafe koln"),
        ("call foo_bar() in main.py", "main.py"),
        ("a NUL\0here", "here"),
        ("100% of C++ users", "100%"),
    ],
)
def test_search_knows_other_scripts_and_accents(store: SQLiteStore, text: str, query: str) -> None:
    store.create("s", title="t")
    store.create("other", title="北海道 other text")
    store.append("s", [said(text)], parent=None, key="k")
    [(session, excerpt)] = store.search(query)
    assert session.id == "s"
    assert excerpt == text.replace("\0", " ")


def test_search_of_twenty_thousand_words_ends(store: SQLiteStore) -> None:
    store.create("s", title="word")
    assert store.search(" ".join(f"word{number}" for number in range(20_000))) == []
    assert len(store.search("word " * 20_000)) == 1


def test_meta_as_deep_as_you_like_is_kept_or_refused(store: SQLiteStore) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    store.create("s")
    with pytest.raises(InvalidRequest):
        store.append("s", [NewMessage(Message("user", "q"), meta=deep)], parent=None, key="k")
    with pytest.raises(InvalidRequest):
        store.import_({"format": "myllm-session", "version": 1, "id": "d", "tip": None, "messages": [], "title": deep})
    assert store.path("s") == []


def test_a_session_of_ten_thousand_messages_goes_at_once(
    store: SQLiteStore, tmp_path: Path, assert_sound: Check
) -> None:
    store.create("big")
    store.create("small", title="small")
    store.append("big", [said(f"word{number}") for number in range(10_000)], parent=None, key="k")
    document = store.export("big")
    copy = store.import_(document, "copy")
    assert copy.message_count == 10_000
    store.delete("big")
    assert_sound(tmp_path / "sessions.db")
    assert texts(store.path("copy")) == [f"word{number}" for number in range(10_000)]
    store.delete("copy")
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as db:
        assert db.execute("SELECT count(*) FROM texts_content").fetchone() == (1,)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            session_ids,
            st.sampled_from(["append", "retry", "delete", "back", "title"]),
            any_text,
            st.sampled_from(["user", "assistant", "tool"]),
        ),
        max_size=25,
    )
)
def test_any_ids_and_texts_stay_apart_and_whole(
    tmp_path_factory: pytest.TempPathFactory, assert_sound: Check, steps: list[tuple[str, str, str, Role]]
) -> None:
    path = tmp_path_factory.mktemp("model") / "sessions.db"
    store = SQLiteStore(path)
    paths: dict[str, list[StoredMessage]] = {}
    try:
        for number, (session_id, action, text, role) in enumerate(steps):
            walk(store, paths, session_id, action, text, role, str(number))
        assert {session.id for session in store.list_sessions(limit=100)} == set(paths)
        for session_id, expected in paths.items():
            assert store.path(session_id) == expected
    finally:
        store.close()
    assert_sound(path)


def walk(
    store: SQLiteStore,
    paths: dict[str, list[StoredMessage]],
    session_id: str,
    action: str,
    text: str,
    role: Role,
    key: str,
) -> None:
    """One step on the store and on what it should hold."""
    if action == "delete" and session_id in paths:
        store.delete(session_id)
        del paths[session_id]
        return
    store.create(session_id)
    path = paths.setdefault(session_id, [])
    tip = path[-1].id if path else None
    if action == "back" and path:
        path.pop()
        store.set_tip(session_id, path[-1].id if path else None)
    elif action == "title":
        store.update(session_id, title=text)
    else:
        new = NewMessage(Message(role, text, text, (ToolCall(text, text, text),)), meta={text: text})
        for _ in range(2 if action == "retry" else 1):
            written = store.append(session_id, [new], parent=tip, key=key)
        assert [NewMessage(item.message, item.status, item.meta) for item in written] == [new]
        path += written


def _count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


def test_an_image_is_stored_once_and_for_as_long_as_a_message_shows_it(
    tmp_path: Path, store: SQLiteStore, assert_sound: Check
) -> None:
    red, blue = picture(9, 9, (255, 0, 0)), picture(9, 9, (0, 0, 255), at=3)
    shown = NewMessage(Message("user", "look", images=(red, red, blue)))
    store.create("s")
    [first] = store.append("s", [shown], parent=None, key="1")
    store.append("s", [said("red", "assistant"), shown], parent=first.id, key="2")
    fork_session(store, "s", "fork")
    file = tmp_path / "sessions.db"
    assert (_count(file, "blobs"), _count(file, "images")) == (2, 12)
    store.create("t")
    store.append("t", [NewMessage(Message("user", "", images=(blue,)))], parent=None, key="1")
    store.delete("s")
    store.delete("fork")
    assert (_count(file, "blobs"), _count(file, "images")) == (1, 1)
    assert_sound(file)
    assert store.path("t")[0].message.images == (blue,)
    store.delete("t")
    assert (_count(file, "blobs"), _count(file, "images")) == (0, 0)


def test_a_file_from_before_images_takes_them(tmp_path: Path) -> None:
    migrations = database.MIGRATIONS
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as db:
        for statement in migrations[0]:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO sessions VALUES (1, 's', 'old', 'm', 1, '', '', 1, 1)")
        db.execute("INSERT INTO messages VALUES (1, 1, NULL, 'k', 'user', 'hello', '', '', NULL, 'complete', '', '')")
        db.execute("INSERT INTO texts (rowid, text) VALUES (1, 'hello'), (-1, 'old')")
    with closing(SQLiteStore.open("", tmp_path)) as old:
        [message] = old.path("s")
        assert (message.message.content, message.message.images) == ("hello", ())
        [new] = old.append("s", [NewMessage(Message("user", "x", images=(picture(),)))], parent=1, key="2")
        assert old.path("s") == [message, new] and new.message.images == (picture(),)
