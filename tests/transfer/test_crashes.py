"""Processes killed before every call that changes the disk: afterwards there is the old state or the new one.

Row G13 of the threats, for each instant of pulling, repairing, removing and pruning.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from myllm_core.models import blocks
from myllm_core.models.manifest import Model
from myllm_core.models.store import ModelStore
from myllm_core.models.verify import Problem, verify
from myllm_core.transfer.partial import Partial, partial_key
from myllm_core.transfer.prune import find, prune
from myllm_core.transfer.repair import repair
from support.crashing import NAME, Fate, fates
from support.gguf import small_gguf
from support.pulling import Puller, StartServer
from support.wild_server import WildServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

OLD, NEW = small_gguf(40_000, seed=1), small_gguf(40_000, seed=2)


@pytest.fixture
def server(serve: StartServer) -> WildServer:
    return serve(lambda exchange: exchange.file(NEW, etag='"new"'))


def crashes(operation: str, puller: Puller, work: Path, source: str) -> Iterator[Fate]:
    """Cut the operation on a copy of the models directory off at each instant; the last runs to its end."""
    puller.store.models_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "support.crashing", operation, str(puller.store.models_dir), str(work), source]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *cut, last = fates(iter(done.stdout.splitlines()))
    assert len(cut) > 3
    assert (last.exit_code, last.call, last.unsafe) == (0, "", []), done.stderr
    yield from [*cut, last]


def installed(store: ModelStore) -> bytes | None:
    """The bytes of the one model; it must be whole."""
    models = store.list_models()
    assert len(models) <= 1
    for model in models:
        assert problems_of(model) == []
        return model.paths[0].read_bytes()
    return None


def problems_of(model: Model) -> list[Problem]:
    return verify(model, lambda path, done, size: None)


def age(folder: Path) -> None:
    """Make everything look a day old: what is younger may be another process's work."""
    then = time.time() - 86400
    for top, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            os.utime(Path(top, name), (then, then), follow_symlinks=False)


def assert_pruned_to_nothing_but_the_model(store: ModelStore) -> None:
    age(store.models_dir)
    assert prune(store, find(store)) == []
    assert find(store) == []
    named = {path for model in store.list_models() for path in model.paths}
    rest = {path for path in store.models_dir.rglob("*") if path.is_file()} - named
    assert all(path.name == "manifest.json" or path.name.endswith((".blocks.json", ".lock")) for path in rest), rest


def repair_again(puller: Puller, store: ModelStore) -> None:
    model = store.unchecked(NAME)
    repair(model, problems_of(model), plugins=puller.plugins, store=store, progress=puller.told)


def pull_again(puller: Puller, store: ModelStore, server: WildServer) -> None:
    puller.store = store
    model = puller(server.url(), name=NAME, force=True)
    assert puller.bytes_of(model) == NEW
    assert store.broken() == []


def test_a_first_pull(puller: Puller, server: WildServer, tmp_path: Path) -> None:
    seen = set()
    for fate in crashes("pull", puller, tmp_path / "work", server.url()):
        store = ModelStore(fate.folder)
        seen.add(installed(store))
        pull_again(puller, store, server)
        assert_pruned_to_nothing_but_the_model(store)
    assert seen == {None, NEW}


def test_a_first_pull_that_is_only_pruned_afterwards(puller: Puller, server: WildServer, tmp_path: Path) -> None:
    for fate in crashes("pull", puller, tmp_path / "work", server.url()):
        store = ModelStore(fate.folder)
        before = installed(store)
        assert_pruned_to_nothing_but_the_model(store)
        assert installed(store) == before
        assert store.broken() == []


def test_a_pull_over_an_older_model(puller: Puller, serve: StartServer, server: WildServer, tmp_path: Path) -> None:
    puller(serve(lambda exchange: exchange.file(OLD)).url(), name=NAME)
    seen = []
    for fate in crashes("pull", puller, tmp_path / "work", server.url()):
        store = ModelStore(fate.folder)
        assert store.broken() == []
        seen.append(installed(store))
        pull_again(puller, store, server)
        assert_pruned_to_nothing_but_the_model(store)
    turn = seen.index(NEW)
    assert seen == [OLD] * turn + [NEW] * (len(seen) - turn)


@pytest.mark.parametrize("known", [True, False], ids=["bad blocks", "whole file"])
def test_a_repair(
    puller: Puller, server: WildServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 10_000)
    model = puller(server.url(), name=NAME)
    if not known:
        for path in model.folder.glob("*.blocks.json"):
            path.unlink()
    damaged = NEW[:15_000] + b"damage" + NEW[15_006:]
    model.paths[0].write_bytes(damaged)
    seen = []
    for fate in crashes("repair", puller, tmp_path / "work", ""):
        store = ModelStore(fate.folder)
        there = store.get(NAME)
        seen.append(there.paths[0].read_bytes())
        assert [problem.path for problem in problems_of(there)] == ([there.manifest.files[0].path] * (seen[-1] != NEW))
        repair_again(puller, store)
        assert installed(store) == NEW
        assert_pruned_to_nothing_but_the_model(store)
    turn = seen.index(NEW)
    assert seen == [damaged] * turn + [NEW] * (len(seen) - turn)


def test_removing(puller: Puller, server: WildServer, tmp_path: Path) -> None:
    puller(server.url(), name=NAME)
    seen = []
    for fate in crashes("remove", puller, tmp_path / "work", ""):
        store = ModelStore(fate.folder)
        seen.append(installed(store))
        if store.folders():
            store.remove(NAME)
        assert (store.list_models(), store.broken()) == ([], [])
        pull_again(puller, store, server)
    turn = seen.index(None)
    assert seen == [NEW] * turn + [None] * (len(seen) - turn)


def leave_things_behind(store: ModelStore, model: Model) -> None:
    """One of everything that prune deletes."""
    with store.lock("gone:1"):
        staged = store.staging("gone:1")
        (staged / "model.gguf").write_bytes(OLD)
    with store.lock("never:1"):
        pass
    (store.models_dir / "empty@1").mkdir()
    (model.folder / ".manifest.json.0123456789ab").write_text("{")
    (model.folder / "r-000000000000").mkdir()
    (model.folder / "r-000000000000" / "model.gguf").write_bytes(OLD)
    (model.folder / "r-000000000000.blocks.json").write_text("{}")
    (model.folder / "notes.txt").write_text("mine")
    partial = Partial.claim(store.partials_dir, partial_key("other:1", "x:y", "z"))
    partial.data.write_bytes(OLD)
    partial.state.synced = len(OLD)
    partial.save()
    partial.release()
    age(store.models_dir)


def test_pruning(puller: Puller, server: WildServer, tmp_path: Path) -> None:
    model = puller(server.url(), name=NAME)
    leave_things_behind(puller.store, model)
    kinds = {each.kind for each in find(puller.store)}
    assert kinds == {"download", "revision", "temporary", "file", "folder", "lock"}
    for fate in crashes("prune", puller, tmp_path / "work", ""):
        store = ModelStore(fate.folder)
        assert installed(store) == NEW
        if not fate.call:
            assert find(store) == []
        assert_pruned_to_nothing_but_the_model(store)
        assert installed(store) == NEW
        pull_again(puller, store, server)
