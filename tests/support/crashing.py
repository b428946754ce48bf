"""Cutting an operation on models off at every instant: ``python -m support.crashing OPERATION TEMPLATE WORK SOURCE``.

A copy of the models directory TEMPLATE is made for each call of the operation that changes the disk, and a process
that is killed just before that call. In the last copy it runs to its end, and is watched: what is renamed into place
must be on the disk before. Each copy's fate is a line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm_core.models.store import ModelStore
from myllm_core.models.verify import verify
from myllm_core.plugins import load_plugins
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.fetch import Retry
from myllm_core.transfer.prune import find, prune
from myllm_core.transfer.pull import pull
from myllm_core.transfer.repair import repair

NAME = "m:1"
CALLS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "truncate")


class _Silent:
    def message(self, text: str) -> None:
        pass

    def file(self, path: str, done: int, total: int | None) -> None:
        pass


def _pull(store: ModelStore, source: str) -> None:
    retry = Retry(first=0.01, longest=0.02)
    client = HttpClient(connect_timeout=5, stall_timeout=5)
    pull(source, plugins=PLUGINS, store=store, progress=_Silent(), name=NAME, force=True, client=client, retry=retry)


def _repair(store: ModelStore, source: str) -> None:
    model = store.unchecked(NAME)
    problems = verify(model, lambda path, done, size: None)
    repair(model, problems, plugins=PLUGINS, store=store, progress=_Silent())


def _remove(store: ModelStore, source: str) -> None:
    store.remove(NAME)


def _prune(store: ModelStore, source: str) -> None:
    failed = prune(store, find(store))
    assert not failed, failed


PLUGINS = load_plugins()
OPERATIONS: dict[str, Callable[[ModelStore, str], None]] = {
    "pull": _pull, "repair": _repair, "remove": _remove, "prune": _prune,
}  # fmt: skip


@dataclass(frozen=True)
class Fate:
    """A copy of the models directory, and the call before which the process died in it; empty when it didn't."""

    folder: Path
    call: str
    exit_code: int
    unsafe: list[str]


class _Watch:
    """Counts the calls that change the disk, dies before one of them, and notes renames of what isn't on the disk."""

    def __init__(self, die_at: int, report: int) -> None:
        self._left = die_at
        self._report = report
        self._synced: dict[tuple[int, int], int] = {}
        self.unsafe: list[str] = []
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            shown = f"{name} {' '.join(map(str, arguments))}"
            if self._left == 0:
                os.write(self._report, shown.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
            if name in ("replace", "rename"):
                self._check(shown, *arguments)
            result = real(*arguments, **named)
            if name == "fsync":
                self._note(os.fstat(arguments[0]))
            return result

        return call

    def _note(self, found: os.stat_result) -> None:
        self._synced[found.st_dev, found.st_ino] = found.st_mtime_ns

    def _is_synced(self, path: Path) -> bool:
        found = path.stat()
        return self._synced.get((found.st_dev, found.st_ino)) == found.st_mtime_ns

    def _check(self, shown: str, source: Any, target: Any) -> None:
        if os.path.isfile(source) and not self._is_synced(Path(source)):
            self.unsafe.append(f"not on the disk at: {shown}")
        if os.path.basename(target) == "manifest.json":
            folder = Path(target).parent
            named = [folder / file["path"] for file in json.loads(Path(source).read_bytes())["files"]]
            places = {place for path in named for place in (path, path.parent)} | {folder.parent}
            self.unsafe += [f"{place} isn't on the disk at: {shown}" for place in places if not self._is_synced(place)]


def _child(operation: str, folder: Path, source: str, die_at: int, report: int) -> None:
    code = 1
    try:
        watch = _Watch(die_at, report)
        OPERATIONS[operation](ModelStore(folder), source)
        os.write(report, "\n".join(["", *watch.unsafe]).encode())
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(operation: str, template: str, work: str, source: str) -> None:
    """Print a line for each instant, the last for the operation that was left alone."""
    PLUGINS.downloaders()
    for number in itertools.count():
        folder = Path(work) / f"{number:03}"
        shutil.copytree(template, folder, symlinks=True)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(operation, folder, source, number, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            call, *unsafe = pipe.read().split("\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([str(folder), call, code, unsafe]), flush=True)
        if code != -signal.SIGKILL:
            return


def fates(lines: Iterator[str]) -> Iterator[Fate]:
    """What ``main`` printed."""
    for line in lines:
        folder, call, code, unsafe = json.loads(line)
        yield Fate(Path(folder), call, code, unsafe)


if __name__ == "__main__":
    main(*sys.argv[1:])
