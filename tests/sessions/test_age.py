"""Sessions deleted for their age: those that nobody goes on with, whole, and no others."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from myllm_core import Runtime
from myllm_core.errors import InvalidRequest, StorageError, StoreError
from myllm_core.session_store import SessionStore
from myllm_core.sessions.age import LEAST_AGE, delete_idle, idle_sessions, note_use
from myllm_core.sessions.fork import fork_session, import_document
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.settings import load_settings
from myllm_server.retention import deleting_idle_sessions
from support.server import install_echo
from support.sessions import DAY, put_session


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    store = SQLiteStore.open("", tmp_path)
    yield store
    store.close()


def ids(store: SessionStore) -> set[str]:
    return {session.id for session in store.list_sessions(limit=10_000)}


def settings(home: Path, **more: Any) -> Any:
    install_echo(home / "models")
    return load_settings(models_dir=home / "models", data_dir=home, isolation="thread", **more)


def test_those_of_that_age_are_deleted_whole(
    store: SessionStore, tmp_path: Path, assert_sound: Callable[[Path], None]
) -> None:
    for session_id, days in (("old", 31), ("a", 30.01), ("b", 29.99), ("new", 0), ("from-the-future", -400)):
        put_session(store, session_id, days)
    assert {session.id for session in idle_sessions(store, 30 * DAY)} == {"old", "a"}
    assert idle_sessions(store, math.inf) == []
    assert [delete_idle(store, session_id, 30 * DAY) for session_id in ("old", "a", "b", "gone")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert ids(store) == {"b", "new", "from-the-future"}
    assert {session.id for session, _ in store.search("purple")} == {"b", "new", "from-the-future"}
    assert_sound(tmp_path / "sessions.db")


def test_more_sessions_than_a_page(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm_core.sessions.age._PAGE", 10)
    for number in range(25):
        put_session(store, f"s{number}", 10 if number % 3 else 0, messages=1)
    idle = [session.id for session in idle_sessions(store, DAY)]
    assert sorted(idle) == sorted(f"s{number}" for number in range(25) if number % 3)


def test_less_than_an_hour_is_refused(store: SessionStore) -> None:
    with pytest.raises(InvalidRequest, match="1h or more"):
        idle_sessions(store, LEAST_AGE - 1)


def test_a_copy_and_an_import_are_new_however_old_what_they_are_made_of_is(store: SessionStore) -> None:
    put_session(store, "old", 400)
    document = store.export("old")
    fork_session(store, "old", "fork")
    fork_session(store, "old", "half", 1)
    assert import_document(store, document, "import").id == "import"
    assert {session.id for session in idle_sessions(store, LEAST_AGE)} == {"old"}


def test_a_turn_that_begins_is_seen_by_other_processes(store: SessionStore) -> None:
    put_session(store, "old", 400)
    put_session(store, "lately", 0)
    before = store.get("lately")
    note_use(store, "old")
    note_use(store, "lately")
    assert idle_sessions(store, LEAST_AGE) == []
    assert store.get("lately") == before, "a chat that goes on isn't written to for it"


@pytest.mark.parametrize("error", [StoreError, StorageError])
def test_a_turn_begins_also_when_that_cant_be_written(
    store: SessionStore, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_session(store, "old", 400)

    def refuse(session_id: str) -> None:
        raise error("the disk is full")

    monkeypatch.setattr(store, "update", refuse)
    note_use(store, "old")
    assert len(idle_sessions(store, LEAST_AGE)) == 1


def test_a_session_that_answers_stays_here_and_for_other_processes(tmp_path: Path, store: SessionStore) -> None:
    for session_id in ("old", "in-use"):
        put_session(store, session_id, 400)

    async def test() -> None:
        async with Runtime(settings(tmp_path)) as runtime:
            slow = {"delay_ms": 20}
            events = runtime.chat("echo", "one two three four", session_id="in-use", load_options=slow)
            assert await anext(events)
            seen_from_outside = [session.id for session in idle_sessions(store, LEAST_AGE)]
            assert seen_from_outside == ["old"]
            with pytest.MonkeyPatch.context() as patch:  # as if it looked old: its lock alone keeps it
                patch.setattr("myllm_core.sessions.age._age", lambda session: 400 * DAY)
                assert [session_id async for session_id in runtime.delete_idle_sessions(LEAST_AGE)] == ["old"]
            assert [event async for event in events]
            assert len(await runtime.sessions(lambda opened: opened.path("in-use"))) == 4
            assert [session_id async for session_id in runtime.delete_idle_sessions(LEAST_AGE)] == []

    asyncio.run(test())


def test_one_that_somebody_goes_on_with_meanwhile_stays(tmp_path: Path, store: SessionStore) -> None:
    for session_id in ("a", "b", "c"):
        put_session(store, session_id, 400)

    async def test() -> None:
        async with Runtime(settings(tmp_path)) as runtime:
            deleting = runtime.delete_idle_sessions(LEAST_AGE)
            assert await anext(deleting) == "c"
            store.update("b", title="gone on with")
            assert [session_id async for session_id in deleting] == ["a"]

    asyncio.run(test())
    assert ids(store) == {"b"}


def test_again_and_again_and_after_an_error(
    tmp_path: Path, store: SessionStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "myllm.audit")
    put_session(store, "first", 31)

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it didn't come true in time")

    async def gone(session_id: str) -> None:
        await until(lambda: session_id not in ids(store))

    async def test() -> None:
        async with Runtime(settings(tmp_path, session_max_age="30d")) as runtime:
            async with deleting_idle_sessions(runtime, every=0.02):
                await gone("first")
                for error in (StoreError("locked"), ZeroDivisionError("a stranger's")):
                    with monkeypatch.context() as patch:
                        patch.setattr(SQLiteStore, "delete", _raising(error))
                        _put_at_once(store, type(error).__name__)
                        await until(lambda said=str(error): said in caplog.text)
                    await gone(type(error).__name__)
            put_session(store, "later", 31)
            await asyncio.sleep(0.1)

    asyncio.run(test())
    assert ids(store) == {"later"}, "it ended with the server"
    lines = [record for record in caplog.records if record.levelno == logging.INFO]
    assert [record.getMessage() for record in lines] == ["old sessions deleted (session_max_age, 30 days): 1"] * 3
    fields = lines[0].fields  # type: ignore[attr-defined]
    assert (fields["action"], fields["sessions"], fields["outcome"]) == ("delete old sessions", 1, "ok")
    assert "deleted session first" in caplog.text


def _raising(error: Exception) -> Callable[..., None]:
    def delete(self: SQLiteStore, session_id: str) -> None:
        raise error

    return delete


def _put_at_once(store: SessionStore, session_id: str) -> None:
    time = "2020-01-31T12:00:00+00:00"
    document = {"format": "myllm-session", "version": 1, "id": session_id, "title": "", "model": "", "messages": []}
    store.import_(document | {"tip": None, "created_at": time, "updated_at": time})


def test_nothing_is_deleted_when_no_age_is_set(tmp_path: Path, store: SessionStore) -> None:
    put_session(store, "old", 10_000)

    async def test() -> None:
        async with Runtime(settings(tmp_path)) as runtime, deleting_idle_sessions(runtime, every=0.01):
            assert len(asyncio.all_tasks()) == 1
            await asyncio.sleep(0.05)

    asyncio.run(test())
    assert ids(store) == {"old"}


def test_times_of_any_zone(store: SessionStore) -> None:
    put_session(store, "s", 0)
    document = store.export("s")
    store.delete("s")
    store.import_(document | {"updated_at": "2020-01-31T12:00:00+05:30"})
    assert datetime.fromisoformat(store.get("s").updated_at).year == 2020
    assert [session.id for session in idle_sessions(store, DAY)] == ["s"]
