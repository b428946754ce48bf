"""Unfinished files: kept between tries, owned by one process at a time.

Each is a folder in the store's ``.partial``: ``data.part`` holds the bytes so far, ``state.json`` says what they are.
A process takes one by renaming it to a name that holds the process's own mark, which only one can do, even on a disk
where locks do nothing; when it is done without finishing, it renames it back. What a killed process left behind is
taken over.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from myllm_core.models.disk import storage_errors, sync_folder, write_atomically

_FORGOTTEN_AFTER = 14 * 24 * 3600.0
_FOREIGN_ALIVE = 600.0


@dataclass(slots=True)
class State:
    """What a partial's bytes are: enough to know whether they may be added to.

    ``validator`` is the server's strong ETag, else its Last-Modified; ``size`` the whole file's, -1 when unknown;
    ``synced`` how many bytes are surely on the disk and can be gone on from; ``sha256`` is set when the file is whole.
    ``model`` and ``path`` say, for people, what it is for.
    """

    model: str = ""
    path: str = ""
    revision: str = ""
    validator: str = ""
    size: int = -1
    synced: int = 0
    sha256: str = ""


def partial_key(name: str, source: str, path: str) -> str:
    """The folder name for a file of a model: the same for the same model, source and path."""
    return f"{_digest(name)[:12]}-{_digest(source + chr(0) + path)[:24]}"


class Partial:
    """A partial that this process owns. ``release`` or ``discard`` ends the ownership."""

    def __init__(self, root: Path, key: str, folder: Path) -> None:
        self._root = root
        self._key = key
        self.folder = folder
        self.data = folder / "data.part"
        self._state_file = folder / "state.json"
        self.state = _read_state(self._state_file)

    @classmethod
    def claim(cls, root: Path, key: str) -> Partial:
        """Take the partial of this key, free or left behind, else begin a new one. Raises ``StorageError``."""
        mine = root / f"{key}~{_owner()}~{secrets.token_hex(4)}"
        with storage_errors(f"keep a download in {root}"):
            root.mkdir(parents=True, exist_ok=True)
            for folder in [root / key, *_abandoned(root, key)]:
                with suppress(FileNotFoundError):  # another process was quicker
                    os.rename(folder, mine)
                    return cls(root, key, mine)
            mine.mkdir()
        return cls(root, key, mine)

    def save(self) -> None:
        """Write the state. Raises ``OSError``."""
        write_atomically(self._state_file, json.dumps(asdict(self.state)).encode())

    def work_folder(self) -> Path:
        """An empty folder for temporary files. Raises ``StorageError``."""
        folder = self.folder / "work"
        with storage_errors(f"make room for temporary files in {folder}"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def release(self) -> None:
        """Give it back for a later try; what no try could go on from, or is already there, is deleted."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        with suppress(OSError):
            if min(self.state.synced, self.data.stat().st_size) > 0:
                os.utime(self.folder)
                os.rename(self.folder, self._root / self._key)
                sync_folder(self._root)
                return
        self.discard()

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def bytes_kept(root: Path, key: str) -> int:
    """How many bytes of a file are here from earlier tries, to go on from."""
    return max(map(_bytes_in, [root / key, *_abandoned(root, key)]))


def unowned(root: Path) -> list[tuple[Path, State]]:
    """Every partial that no living process writes, and what it is of."""
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return []
    free = (folder for folder in folders if folder.is_dir() and not _alive(folder))
    return [(folder, _read_state(folder / "state.json")) for folder in free]


def delete_unowned(folder: Path) -> None:
    """Delete a partial unless a process took it in the meantime. Raises ``StorageError``."""
    mine = folder.with_name(f"{folder.name.partition('~')[0]}~{_owner()}~{secrets.token_hex(4)}")
    with storage_errors(f"delete {folder}"), suppress(FileNotFoundError):
        if _alive(folder):
            return
        os.rename(folder, mine)  # as claim does: only one process can
        shutil.rmtree(mine)


def sweep(root: Path, name: str) -> None:
    """Delete the partials of a model that is installed now, and those of any model that nobody came back for."""
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            own, old = entry.name.startswith(f"{_digest(name)[:12]}-"), _age(entry.path) > _FORGOTTEN_AFTER
            if (own or old) and not _alive(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _host() -> str:
    return _digest(socket.gethostname())[:8]


def _owner() -> str:
    # The time of its start tells a process from another one that got the same id later (in containers: always).
    return f"{_host()}~{os.getpid()}~{int(psutil.Process().create_time())}"


def _abandoned(root: Path, key: str) -> list[Path]:
    left = [folder for folder in root.glob(f"{key}~*") if not _alive(folder)]
    return sorted(left, key=_bytes_in, reverse=True)


def _alive(folder: Path) -> bool:
    """Whether the process that this partial belongs to may still be writing it."""
    _, *mark = folder.name.split("~")
    if len(mark) != 4:
        return False
    host, pid, started, _ = mark
    if host != _host():
        return _age(folder) < _FOREIGN_ALIVE
    try:
        return int(psutil.Process(int(pid)).create_time()) == int(started)
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):
        return False


def _age(path: str | Path) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return float("inf")


def _bytes_in(folder: Path) -> int:
    try:
        return max(0, min((folder / "data.part").stat().st_size, _read_state(folder / "state.json").synced))
    except OSError:
        return 0


def _read_state(path: Path) -> State:
    """What the file says; a fresh state, for which no bytes count, when it can't be read."""
    try:
        raw = json.loads(path.read_bytes())
        values = {field.name: raw.get(field.name, field.default) for field in fields(State)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return State()
    return State(**values) if all(_is_sane(values[field.name], field.default) for field in fields(State)) else State()


def _is_sane(value: object, default: object) -> bool:
    if isinstance(default, str):
        return isinstance(value, str) and value.isprintable()
    return type(value) is int and value >= -1
