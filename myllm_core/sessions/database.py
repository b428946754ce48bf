"""The SQLite file that sessions live in: opened, brought up to date, and its errors made ours."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from myllm_core.errors import InvalidRequest, MyllmError, StorageError, StoreError

APPLICATION_ID = 0x6D794C4D  # "myLM", in the file's header: tells our file from any other SQLite file
BUSY_TIMEOUT = 5.0
_MAKE_ROOM = "make room on the disk or give write permission in its folder (reading needs it too), or set data_dir"

# Each item brings a file from the version of its index to the next; `user_version` holds the version. Never edit one
# that was released: add another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE sessions (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            title TEXT NOT NULL,
            model TEXT NOT NULL,
            tip INTEGER,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            message_count INTEGER NOT NULL,
            changed INTEGER NOT NULL UNIQUE
        )
        """,
        """
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
            parent INTEGER REFERENCES messages (id) CHECK (parent < id),
            turn_key TEXT NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            reasoning TEXT NOT NULL,
            tool_calls TEXT NOT NULL,
            tool_call_id TEXT,
            status TEXT NOT NULL,
            created_at TEXT NOT NULL,
            meta TEXT NOT NULL
        )
        """,
        "CREATE INDEX messages_by_turn ON messages (session, turn_key)",
        "CREATE INDEX messages_by_parent ON messages (parent)",
        "CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2')",
    ),
    (
        "ALTER TABLE messages ADD COLUMN images INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE blobs (number INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, data BLOB NOT NULL)",
        """
        CREATE TABLE images (
            message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
            place INTEGER NOT NULL,
            blob INTEGER NOT NULL REFERENCES blobs (number),
            media_type TEXT NOT NULL,
            at INTEGER NOT NULL,
            PRIMARY KEY (message, place)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX images_by_blob ON images (blob)",
        """
        CREATE TRIGGER forget_blob AFTER DELETE ON images
        WHEN NOT EXISTS (SELECT 1 FROM images WHERE blob = OLD.blob)
        BEGIN DELETE FROM blobs WHERE number = OLD.blob; END
        """,
    ),
)


class Database:
    """One SQLite file, shared by the threads of this process and by other processes.

    One connection behind a lock: SQLite lets one writer in at a time anyway, reads take
    milliseconds, and a single connection can be closed for certain, whichever thread is done. After an
    error of SQLite the connection is thrown away and the next call opens a new one, so a full
    disk or a file put back heals without a restart. ``connect`` is called as ``sqlite3.connect`` is.
    """

    def __init__(self, path: Path, connect: Callable[..., sqlite3.Connection] = sqlite3.connect) -> None:
        self.path = path
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the file. Raises as ``writing`` does."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable when the block ends, and undone when it raises.

        Raises ``StoreError``, ``StorageError``, and ``InvalidRequest`` for text that isn't valid Unicode.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._closed = True
            self._drop()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._open()
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if _kind(error) == sqlite3.SQLITE_FULL:
                    self._undo()  # a new connection might need room; this one can still read
                else:
                    self._drop()
                raise self._explained(error) from error
            except UnicodeEncodeError as error:
                self._undo()
                raise InvalidRequest(
                    "the text holds half a character (a lone surrogate); send valid Unicode"
                ) from error
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop()  # closing rolls back as well

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError("the session store is closed")
        if self._connection is None:
            self._make_file()
            connection = self._connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _make_file(self) -> None:
        try:
            if self.path.is_dir():
                raise StoreError(f"{self.path} is a folder, where the sessions file should be: move it aside")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)  # conversations are private; SQLite's own default is readable to all
        except OSError as error:
            raise StorageError(f"can't make the sessions file {self.path}: {error.strerror}; {_MAKE_ROOM}") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Before anything is written into somebody else's file; in one look, for another process may be making this one.
        connection.execute("BEGIN")
        self._check_owner(connection)
        connection.execute("END")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        _use_wal(connection)
        if _version(connection) < len(MIGRATIONS):
            self._migrate(connection)

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION_ID and (owner or tables):
            raise StoreError(
                f"{self.path} is a SQLite file of another program; move it aside or set session_url to another file"
            )
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} was written by a newer myllm (format {version}, this one knows {len(MIGRATIONS)}): "
                "update myllm, or set session_url to another file"
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")  # the version is read again inside: another process may have been faster
        self._check_owner(connection)
        for statements in MIGRATIONS[_version(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")

    def _explained(self, error: sqlite3.Error) -> MyllmError:
        kind = _kind(error)
        if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return StorageError(f"can't write the sessions file {self.path}: {error}; {_MAKE_ROOM}")
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreError(
                f"the sessions file {self.path} is damaged ({error}); put back a backup, or move it and the files "
                f"{self.path.name}-wal and {self.path.name}-shm beside it to another folder to start afresh"
            )
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"another program keeps the sessions file {self.path} locked; close it, then try again")
        if kind == sqlite3.SQLITE_TOOBIG:
            return InvalidRequest("the message is too large to be stored; send a shorter one")
        return StoreError(f"can't use the sessions file {self.path}: {error}; {_MAKE_ROOM}")


def _kind(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the low byte is the kind, the rest its detail


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite doesn't always wait its busy timeout when two processes switch a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
