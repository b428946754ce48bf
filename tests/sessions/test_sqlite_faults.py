"""Faults of the disk, the file and single SQLite calls: a clear error, no half turn, and no restart needed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from myllm_core.errors import MyllmError, SessionConflict, SessionNotFound, StorageError, StoreError
from myllm_core.session_store import SessionStore
from myllm_core.sessions import database
from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.testing.session_store.given import said, texts, turn

Check = Callable[[Path], None]


def failing_at(number: int, after: bool, failures: list[str]) -> partial[sqlite3.Connection]:
    """A ``connect`` whose connections fail once, at the n-th ``execute`` of all: before it, or after it was done."""
    calls = count(1)

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if next(calls) != number:
                return super().execute(sql, *parameters)
            failures.append(sql)
            if after:
                super().execute(sql, *parameters).fetchall()
            raise sqlite3.OperationalError("disk I/O error")

    return partial(sqlite3.connect, factory=Failing)


class Flow:
    """Every method of a store, each repeated once when it fails; ``store`` is opened again when opening failed."""

    def __init__(self, path: Path, connect: Callable[..., sqlite3.Connection], assert_sound: Check) -> None:
        self._path, self._assert_sound, self._connect = path, assert_sound, connect
        self.errors: list[MyllmError] = []
        self.store: SessionStore = self._try(lambda: SQLiteStore(path, connect))

    def _try(self, call: Callable[[], Any], expected: type[MyllmError] | None = None) -> Any:
        try:
            return call()
        except StoreError as error:
            self.errors.append(error)
        with closing(sqlite3.connect(self._path)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0]:
                assert db.execute("SELECT count(*) FROM messages").fetchone()[0] in (0, 2, 4, 8), "half a turn"
                self._assert_sound(self._path)
        try:
            return call()
        except MyllmError as error:
            if expected is None or not isinstance(error, expected):
                raise

    def run(self) -> None:
        """Walk through all methods and check what is there at the end."""
        store = self.store
        self._try(lambda: store.create("s", title="talk"))
        first = self._try(lambda: store.append("s", turn("q one", "a one"), parent=None, key="1"))
        self._try(lambda: store.set_tip("s", first[0].id))
        second = self._try(lambda: store.append("s", turn("new a", "q two"), parent=first[0].id, key="2"))
        assert self._try(lambda: store.path("s")) == [first[0], *second]
        assert self._try(lambda: store.path("s", first[1].id)) == first
        self._try(lambda: store.update("s", title="other"))
        document = self._try(lambda: store.export("s"))
        self._try(lambda: store.import_(document, "t"), SessionConflict)
        assert [hit[0].id for hit in self._try(lambda: store.search("new"))] == ["t", "s"]
        self._try(lambda: store.delete("s"), SessionNotFound)
        assert [(session.id, session.message_count) for session in self._try(lambda: store.list_sessions())] == [
            ("t", 4)
        ]
        assert texts(self._try(lambda: store.path("t"))) == ["q one", "new a", "q two"]
        self._try(lambda: store.get("t"))
        store.close()
        self._assert_sound(self._path)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_error_at_any_sqlite_call_leaves_no_half_turn_and_a_retry_works(
    tmp_path: Path, after: bool, assert_sound: Check
) -> None:
    kinds = set()
    for number in count(1):
        failures: list[str] = []
        flow = Flow(tmp_path / f"{number}.db", failing_at(number, after, failures), assert_sound)
        flow.run()
        if not failures:
            break
        assert len(flow.errors) == 1, f"call {number}, {failures}, was no StoreError"
        kinds.add(failures[0].split()[0])
    assert number > 80
    assert {"BEGIN", "INSERT", "UPDATE", "DELETE", "SELECT", "WITH", "COMMIT", "PRAGMA", "CREATE"} <= kinds


def test_an_error_in_the_rollback_is_survived(tmp_path: Path, assert_sound: Check) -> None:
    class NoRollback(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *parameters)

    path = tmp_path / "sessions.db"
    store = SQLiteStore(path, partial(sqlite3.connect, factory=NoRollback))
    store.create("s")
    with pytest.raises(SessionConflict):
        store.append("s", [said("q")], parent=7, key="1")
    store.append("s", turn("q", "a"), parent=None, key="1")
    store.close()
    assert_sound(path)


def test_an_interrupt_in_a_transaction_undoes_it(tmp_path: Path) -> None:
    class Interrupted(sqlite3.Connection):
        armed = False

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if self.armed and sql == "COMMIT":
                Interrupted.armed = False
                raise KeyboardInterrupt
            return super().execute(sql, *parameters)

    store = SQLiteStore(tmp_path / "sessions.db", partial(sqlite3.connect, factory=Interrupted))
    store.create("s")
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        store.append("s", turn("q", "a"), parent=None, key="1")
    assert store.path("s") == []
    assert len(store.append("s", turn("q", "a"), parent=None, key="1")) == 2
    store.close()


# Damaged and foreign files


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    path.write_bytes(b"these are my notes, not a database " * 100)
    with pytest.raises(StoreError, match=r"sessions\.db is damaged .* move it .* to start afresh"):
        SQLiteStore.open("", tmp_path)
    assert path.read_bytes() == b"these are my notes, not a database " * 100


def test_a_damaged_page_is_named_and_a_backup_put_back_works_without_a_restart(tmp_path: Path) -> None:
    store = SQLiteStore.open("", tmp_path)
    store.create("s")
    tip = None
    for number in range(50):
        tip = store.append("s", turn("word " * 200, "answer " * 200), parent=tip, key=str(number))[-1].id
    store.close()
    path = tmp_path / "sessions.db"
    backup = path.read_bytes()
    damaged = bytearray(backup)
    for start in range(8 * 4096, len(damaged), 4096):
        damaged[start : start + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    store = SQLiteStore.open("", tmp_path)
    with pytest.raises(StoreError, match="is damaged"):
        store.path("s")
    assert path.read_bytes() == damaged
    path.write_bytes(backup)
    assert len(store.path("s")) == 100
    store.close()


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "sessions.db").mkdir()
    with pytest.raises(StoreError, match=r"sessions\.db is a folder.*move it aside"):
        SQLiteStore.open("", tmp_path)


def test_another_programs_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program.*session_url"):
        SQLiteStore.open("", tmp_path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["sessions.db"]


def test_a_newer_format_is_refused_and_not_touched(tmp_path: Path) -> None:
    SQLiteStore.open("", tmp_path).close()
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer myllm .*99.*: update myllm"):
        SQLiteStore.open("", tmp_path)
    assert path.read_bytes() == before


def test_a_missing_table_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = SQLiteStore.open("", tmp_path)
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as db:
        db.execute("DROP TABLE texts")
    with pytest.raises(StoreError, match="no such table"):
        store.search("x")
    store.close()


def test_a_migration_brings_an_old_file_up_and_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore.open("", tmp_path)
    store.create("s", title="kept")
    store.close()
    broken = (*database.MIGRATIONS, ("ALTER TABLE sessions ADD COLUMN pinned INTEGER", "this is no SQL"))
    monkeypatch.setattr(database, "MIGRATIONS", broken)
    with pytest.raises(StoreError):
        SQLiteStore.open("", tmp_path)
    monkeypatch.setattr(database, "MIGRATIONS", (*broken[:-1], broken[-1][:1]))
    store = SQLiteStore.open("", tmp_path)
    assert store.get("s").title == "kept"
    store.close()
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as db:
        assert db.execute("SELECT id, pinned FROM sessions").fetchall() == [("s", None)]
        assert db.execute("PRAGMA user_version").fetchone() == (len(broken),)


def test_a_lock_that_another_program_keeps_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.2)
    store = SQLiteStore.open("", tmp_path)
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.create("s")
        assert store.list_sessions() == []
    store.create("s")
    store.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SQLiteStore.open("", tmp_path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.list_sessions()


# Full and read-only disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 512 KiB, that a test may fill or make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=512k", "none", folder]).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def fill(store: SessionStore, tip: int | None) -> tuple[int | None, int]:
    """Append until it fails; the tip and the number of the turn that failed."""
    for number in range(1000):
        try:
            tip = store.append("s", turn(f"q{number} " * 1000, "a " * 1000), parent=tip, key=str(number))[-1].id
        except StorageError as error:
            assert error.http_status == 507
            return tip, number
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_said_reading_goes_on_and_room_heals_it(small_disk: Path, assert_sound: Check) -> None:
    store = SQLiteStore.open("", small_disk)
    store.create("s")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x")
    tip, number = fill(store, None)
    with ballast.open("r+b", buffering=0) as file:  # not a byte is left now
        file.seek(0, os.SEEK_END)
        with pytest.raises(OSError, match="space"):
            while True:
                file.write(b"x" * 512)
    with pytest.raises(StorageError, match="full.*make room"):
        store.append("s", turn("q " * 5000, "a"), parent=tip, key=str(number))
    assert len(store.path("s")) == 2 * number
    assert store.get("s").tip == tip
    assert len(store.search("q0")) == 1
    remount(small_disk, "size=4m")
    store.append("s", turn("q " * 5000, "a"), parent=tip, key=str(number))
    assert len(store.path("s")) == 2 * number + 2
    store.close()
    assert_sound(small_disk / "sessions.db")


def test_a_full_disk_without_a_mount(tmp_path: Path, assert_sound: Check) -> None:
    class Small(sqlite3.Connection):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            super().execute("PRAGMA max_page_count = 60")

    path = tmp_path / "sessions.db"
    store = SQLiteStore(path, partial(sqlite3.connect, factory=Small))
    store.create("s")
    tip, number = fill(store, None)
    assert len(store.path("s")) == 2 * number
    store.close()
    assert_sound(path)
    store = SQLiteStore(path)
    store.append("s", turn("q", "a"), parent=tip, key=str(number))
    store.close()
    assert_sound(path)


def test_a_read_only_folder_is_said(small_disk: Path) -> None:
    store = SQLiteStore.open("", small_disk)
    store.create("s")
    store.close()
    remount(small_disk, "ro")
    with pytest.raises(StorageError, match="give write permission"):
        SQLiteStore.open("", small_disk)
    with pytest.raises(StorageError, match="give write permission"):
        SQLiteStore.open("", small_disk / "new")
    remount(small_disk, "rw")
    store = SQLiteStore.open("", small_disk)
    assert store.get("s").id == "s"
    store.close()


def test_a_data_dir_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(StorageError, match="can't make the sessions file"):
        SQLiteStore.open("", tmp_path / "data")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    store = SQLiteStore.open("", tmp_path / "data")
    store.create("s")
    for file in (tmp_path / "data").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file.name
    store.close()
