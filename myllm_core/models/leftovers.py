"""What lies in models' folders and no model needs: half-written, replaced, abandoned, or put there by somebody."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from myllm_core.errors import IntegrityError, InvalidReference, MyllmError, Overloaded, StorageError
from myllm_core.models.disk import storage_errors
from myllm_core.models.manifest import BLOCKS_SUFFIX, MANIFEST, REVISION, Manifest, read_manifest
from myllm_core.models.reference import name_of_folder

if TYPE_CHECKING:
    from myllm_core.models.store import ModelStore

_BLOCKS = re.escape(BLOCKS_SUFFIX)
_TEMPORARY = rf"\.(?:{re.escape(MANIFEST)}|{REVISION.pattern}{_BLOCKS})\.[0-9a-f]{{12}}"
_MADE = re.compile(rf"(?P<revision>{REVISION.pattern})(?:{_BLOCKS})?|{_TEMPORARY}")
_ABANDONED_AFTER = 24 * 3600.0
_PERHAPS_BUSY = 600.0
"""Where locks do nothing (some network disks), what changed within these seconds may be another process's pull."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can be deleted. ``size`` is in bytes; ``age`` the seconds since anything in it changed.

    ``kind`` is ``download`` (unfinished), ``revision`` (unfinished or replaced), ``temporary`` (half-written),
    ``file`` (no manifest names it), ``folder`` (empty) or ``lock`` (of no model). ``what`` says which, for people.
    ``model`` is empty where it isn't known.
    """

    kind: str
    model: str
    path: Path
    what: str
    size: int
    age: float


def leftover(kind: str, model: str, path: Path, what: str) -> Leftover:
    """A leftover, measured; links are never followed."""
    size, changed = _measured(path)
    return Leftover(kind, model, path, what, size, max(0.0, time.time() - changed))


def _measured(path: Path) -> tuple[int, float]:
    """Bytes of all files in it, and when the newest of all changed."""
    size, newest = 0, 0.0
    walk = () if path.is_symlink() else os.walk(path)
    inner = (Path(top, name) for top, folders, names in walk for name in (*folders, *names))
    for each in (path, *inner):
        with suppress(OSError):
            found = each.lstat()
            newest = max(newest, found.st_mtime)
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size, newest


def collect(folder: Path, kept: set[str], replaced: set[str]) -> None:
    """Delete the ``replaced`` revisions of a model, and what was abandoned long ago, but not those to be ``kept``.

    Call it while holding the model's lock. Where locks do nothing, a folder that no manifest names may be another
    process's pull; that is why anything else must have lain for a day. What can't be deleted is left for next time.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _MADE.fullmatch(entry.name)
            if not match or match["revision"] in kept:
                continue
            abandoned = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_AFTER
            if match["revision"] in replaced or abandoned:
                _delete(Path(entry.path))


def find_leftovers(store: ModelStore) -> list[Leftover]:
    """All leftovers in models' folders that no process holds, and the locks of models that aren't there.

    A model whose manifest can't be read keeps all it has. Raises ``StorageError`` when the folder can't be read.
    """
    locks = list(_locks(store))
    named = _named_anywhere(store)
    found = []
    for name, folder in store.folders():
        here = [each for each in _in_folder(name, folder, named) if _is_settled(each)]
        if here and not is_held(store, name):
            found += here
    return found + locks


def is_held(store: ModelStore, name: str) -> bool:
    """Whether a process works on this model right now. Makes no lock file where there is none."""
    try:
        if not store.lock_file(name).exists():
            return False
        with store.lock(name, timeout=0):
            return False
    except Overloaded:
        return True
    except (StorageError, InvalidReference):  # a disk that can't be written can't be pulled to either
        return False


def delete_leftover(store: ModelStore, each: Leftover) -> None:
    """Delete what ``find_leftovers`` found, if it is a leftover still, and the folders that are empty then.

    Raises ``Overloaded`` while another process works on the model, ``StorageError`` when it can't be deleted.
    """
    with store.lock(each.model, timeout=0), storage_errors(f"delete {each.path}"):
        if each.kind == "lock":
            each.path.unlink()
            return
        folder = dict(store.folders()).get(each.model)
        named = _named_anywhere(store)
        if folder is None or each.path not in {other.path for other in _in_folder(each.model, folder, named)}:
            return
        _delete(each.path)
        with suppress(OSError):
            for parent in each.path.parents:
                if parent == store.models_dir:
                    store.lock_file(each.model).unlink()
                    return
                parent.rmdir()  # only when it is empty


def _delete(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_settled(each: Leftover) -> bool:
    return each.age >= _PERHAPS_BUSY or each.kind == "file"


def _locks(store: ModelStore) -> Iterator[Leftover]:
    there = {folder.name for _, folder in store.folders()}
    for path in sorted(store.locks_dir.glob("*.lock")):
        folder = path.name.removesuffix(".lock")
        name = name_of_folder(folder)
        if name and folder not in there and not is_held(store, name):
            yield leftover("lock", name, path, path.name)


def _named_anywhere(store: ModelStore) -> frozenset[str]:
    """What any manifest names: a model may use files of another one."""
    named: set[str] = set()
    for _, folder in store.folders():
        with suppress(MyllmError):
            for file in read_manifest(folder / MANIFEST).files:
                named |= {os.path.abspath(folder / file.path), os.path.realpath(folder / file.path)}
    return frozenset(named)


def _in_folder(name: str, folder: Path, named: frozenset[str]) -> Iterator[Leftover]:
    manifest = _manifest(folder)
    if isinstance(manifest, MyllmError):
        return
    with storage_errors(f"read {folder}"):
        entries = sorted(folder.iterdir())
    if not entries:
        yield leftover("folder", name, folder, "empty folder")
    for path in entries:
        match = _MADE.fullmatch(path.name)
        if match and not match["revision"]:
            yield leftover("temporary", name, path, path.name)
        elif match and not _is_named(folder / match["revision"], named):
            yield leftover("revision", name, path, f"unfinished or replaced: {path.name}")
        elif match and path.name != match["revision"]:
            continue  # the blocks of what is installed
        elif manifest and path.name != MANIFEST:
            yield from _unnamed(name, folder, path, named)


def _manifest(folder: Path) -> Manifest | MyllmError | None:
    """The manifest, None when there is none, the error when it can't be used."""
    try:
        return read_manifest(folder / MANIFEST)
    except (IntegrityError, StorageError) as error:
        return error if os.path.lexists(folder / MANIFEST) else None


def _is_named(path: Path, named: frozenset[str]) -> bool:
    """Whether a manifest names this file, or one in this folder."""
    for form in (os.path.abspath(path), os.path.realpath(path)):
        if form in named or any(other.startswith(form + os.sep) for other in named):
            return True
    return False


def _unnamed(name: str, folder: Path, path: Path, named: frozenset[str]) -> Iterator[Leftover]:
    """What lies at ``path`` or below that no manifest names."""
    shown = path.relative_to(folder).as_posix()
    if path.is_symlink() or not path.is_dir():
        if not _is_named(path, named):
            yield leftover("file", name, path, shown)
        return
    with storage_errors(f"read {path}"):
        inner = sorted(path.iterdir())
    if not inner:
        yield leftover("folder", name, path, f"empty folder {shown}")
    for each in inner:
        yield from _unnamed(name, folder, each, named)
