from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.errors import (
    IntegrityError,
    InvalidReference,
    ModelNotFound,
    MyllmError,
    Overloaded,
    StorageError,
)
from myllm_core.models.manifest import MANIFEST, Manifest, Model, ModelFile
from myllm_core.models.store import ModelStore

Install = Callable[..., Model]


def names(store: ModelStore) -> list[str]:
    return [model.name for model in store.list_models()]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_that_is_not_there_is_an_empty_store(store: ModelStore) -> None:
    assert store.list_models() == [] == store.broken()
    with pytest.raises(ModelNotFound, match=r"not installed; install it with: myllm pull smollm2"):
        store.get("smollm2")
    assert not store.models_dir.exists()


def test_installed_models_are_listed_and_found(store: ModelStore, install: Install) -> None:
    installed = install("smollm2:135m", family="llama")
    install("phi-2")
    assert names(store) == ["phi-2:latest", "smollm2:135m"]
    assert store.get("smollm2:135m") == installed
    assert store.get("SmolLM2:135M") == installed
    assert store.get("smollm2") == installed
    assert store.get("phi-2").name == "phi-2:latest"
    assert installed.paths[0].read_bytes().startswith(b"GGUF")
    assert store.broken() == []


def test_the_order_in_which_a_name_is_looked_up(store: ModelStore, install: Install) -> None:
    install("qwen:1b")
    assert store.get("qwen").name == "qwen:1b"
    install("other:x", aliases=("qwen:latest",))
    assert store.get("qwen").name == "other:x"
    install("qwen")
    assert store.get("qwen").name == "qwen:latest"
    assert store.get("qwen:1b").name == "qwen:1b"


def test_a_base_with_several_tags_is_asked_back(store: ModelStore, install: Install) -> None:
    install("qwen:1b")
    install("qwen:2b")
    with pytest.raises(InvalidReference, match=r"qwen means several models; say which one: qwen:1b, qwen:2b"):
        store.get("qwen")
    with pytest.raises(InvalidReference):
        store.remove("qwen")
    with pytest.raises(ModelNotFound, match=r"did you mean qwen:2b or qwen:1b|did you mean qwen:1b or qwen:2b"):
        store.get("qwen:3b")


def test_two_models_with_one_alias_are_asked_back(store: ModelStore, install: Install) -> None:
    install("a:1", aliases=("small:latest",))
    install("b:1", aliases=("small:latest",))
    with pytest.raises(InvalidReference, match="a:1, b:1"):
        store.get("small")


def test_close_names_are_suggested(store: ModelStore, install: Install) -> None:
    install("smollm2:135m", aliases=("smol:latest",))
    with pytest.raises(ModelNotFound) as caught:
        store.get("smolm2:135m")
    assert caught.value.data["suggestions"][0] == "smollm2:135m"
    with pytest.raises(ModelNotFound, match="did you mean tinyllama"):
        store.get("tinylama", known=["tinyllama:latest", "phi-2:latest"])


def test_pulling_again_replaces_the_model_and_deletes_the_old_weights(store: ModelStore, install: Install) -> None:
    old = install("a:1", b"old")
    new = install("a:1", b"newer")
    assert store.get("a:1") == new
    assert not old.paths[0].exists()
    assert tree(new.folder) == sorted([MANIFEST, new.paths[0].parent.name, f"{new.paths[0].parent.name}/model.gguf"])


def test_an_unfinished_first_pull_is_no_model(store: ModelStore) -> None:
    with store.lock("a"):
        (store.staging("a") / "model.gguf").write_bytes(b"half")
        assert store.list_models() == [] == store.broken()
    with pytest.raises(ModelNotFound):
        store.get("a")
    assert [name for name, _ in store.broken()] == ["a@latest"]
    store.remove("a")
    assert store.broken() == []


def test_commit_refuses_files_that_are_not_there_and_keeps_the_old_model(store: ModelStore, install: Install) -> None:
    old = install("a:1")
    with store.lock("a:1"):
        staged = store.staging("a:1")
        for size, text in ((4, "missing"), (5, "should have")):
            file = ModelFile(f"{staged.name}/model.gguf", size, "0" * 64)
            with pytest.raises(IntegrityError, match=text):
                store.commit(Manifest("a:1", "gguf", (file,)))
            (staged / "model.gguf").write_bytes(b"1234")
    assert store.get("a:1") == old


def test_leftovers_of_a_killed_pull_go_after_a_day(store: ModelStore, install: Install) -> None:
    install("a:1")
    young, old = store.staging("a:1"), store.staging("a:1")
    (old / "model.gguf").write_bytes(b"x" * 100)
    stray = old.parent / ".manifest.json.0123456789ab"
    stray.write_text("half")
    for path in (old, stray):
        os.utime(path, (time.time() - 90_000,) * 2)
    install("a:1")
    assert young.exists()  # where locks do nothing it may be another process's pull
    assert not old.exists()
    assert not stray.exists()


def _die(where: str, models_dir: Path) -> None:
    """Install a second revision and be killed at ``where``."""
    import myllm_core.models.disk as disk

    def kill(*_: Any) -> None:
        os._exit(9)

    store = ModelStore(models_dir)
    with store.lock("a:1"):
        staged = store.staging("a:1")
        (staged / "model.gguf").write_bytes(b"second")
        real_replace = os.replace
        if where == "before the replace":
            disk.os.replace = kill  # type: ignore[attr-defined]
        elif where == "after the replace":
            disk.os.replace = lambda *paths: (real_replace(*paths), kill())  # type: ignore[attr-defined]
        file = ModelFile(f"{staged.name}/model.gguf", 6, hashlib.sha256(b"second").hexdigest())
        store.commit(Manifest("a:1", "gguf", (file,)))


@pytest.mark.parametrize(("where", "data"), [("before the replace", b"first"), ("after the replace", b"second")])
def test_a_kill_while_committing_leaves_one_whole_model(
    store: ModelStore, install: Install, where: str, data: bytes
) -> None:
    install("a:1", b"first")
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(where, store.models_dir))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert store.get("a:1").paths[0].read_bytes() == data
    install("a:1", b"third")  # the dead process's lock is gone
    assert store.get("a:1").paths[0].read_bytes() == b"third"


def test_removing_deletes_the_model_only(store: ModelStore, install: Install) -> None:
    install("a:1")
    install("a:2")
    assert store.remove("a:1").name == "a:1"
    assert names(store) == ["a:2"]
    assert not (store.models_dir / "a@1").exists()
    with pytest.raises(ModelNotFound):
        store.remove("a:1")


@pytest.mark.parametrize(
    "name", ["..", "../..", "*", "-rf", "--force", "/", ".", "~", "a/../..", "a@1", ".locks", ".partial", "a\0", ""]
)
def test_hostile_names_remove_nothing(store: ModelStore, install: Install, tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("x")
    install("a:1")
    before = tree(tmp_path)
    with pytest.raises(InvalidReference):
        store.remove(name)
    with pytest.raises(InvalidReference):
        store.get(name)
    assert tree(tmp_path) == before


@given(st.text(alphabet="./\\:@~-a1 *\x00", max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_reaches_beyond_the_models_directory(tmp_path: Path, name: str) -> None:
    store = ModelStore(tmp_path / "models")
    outside = tmp_path / "precious"
    outside.write_text("x")
    for act in (store.get, store.remove, store.staging):
        try:
            act(name)
        except MyllmError:
            continue
    assert outside.read_text() == "x"
    assert {p.name for p in tmp_path.iterdir()} <= {"precious", "models"}


def test_symbolic_links_are_unlinked_and_not_followed(store: ModelStore, install: Install, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    install("good:1")
    (store.models_dir / "linked@1").symlink_to(outside)
    model = install("inner:1")
    (model.folder / "extra").symlink_to(outside)

    assert names(store) == ["good:1", "inner:1"]
    assert store.broken() == [("linked@1", "it is a symbolic link, which is not followed")]
    with pytest.raises(IntegrityError, match=r"linked:1 can't be used"):
        store.get("linked:1")
    with pytest.raises(StorageError, match="symbolic link"):
        store.staging("linked:1")
    store.remove("linked:1")
    store.remove("inner:1")
    assert (outside / "precious").read_text() == "x"
    assert names(store) == ["good:1"]
    assert store.broken() == []


def test_weights_that_lie_elsewhere_are_used_and_never_deleted(store: ModelStore, tmp_path: Path) -> None:
    weights = tmp_path / "hub" / "model.gguf"
    weights.parent.mkdir()
    weights.write_bytes(b"abc")
    file = ModelFile(str(weights), 3, hashlib.sha256(b"abc").hexdigest())
    with store.lock("a"):
        (store.models_dir / "a@latest").mkdir()
        store.commit(Manifest("a:latest", "gguf", (file,)))
    assert store.get("a").paths == (weights,)
    store.remove("a")
    assert weights.read_bytes() == b"abc"
    assert names(store) == []


def test_a_model_without_files_of_its_own(store: ModelStore) -> None:
    with store.lock("remote"):
        (store.models_dir / "remote@latest").mkdir()
        store.commit(Manifest("remote:latest", "remote", ()))
    assert store.get("remote").paths == ()


def _spoil_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def _spoil_newer(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"schema": 99}))


def _spoil_weights_gone(folder: Path) -> None:
    next(folder.glob("r-*/model.gguf")).unlink()


def _spoil_weights_short(folder: Path) -> None:
    next(folder.glob("r-*/model.gguf")).write_bytes(b"x")


def _spoil_other_name(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(body | {"name": "somebody:else"}))


def _spoil_folder_for_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_spoil_json, "no valid JSON"),
        (_spoil_newer, "update myllm"),
        (_spoil_weights_gone, "is missing"),
        (_spoil_weights_short, "has 1 bytes, but should have"),
        (_spoil_other_name, "of another model"),
        (_spoil_folder_for_manifest, "no regular file"),
    ],
)
def test_a_damaged_model_breaks_nothing_else(
    store: ModelStore, install: Install, spoil: Callable[[Path], None], says: str
) -> None:
    install("good:1")
    spoil(install("bad:1").folder)
    assert names(store) == ["good:1"]
    [(folder, reason)] = store.broken()
    assert folder == "bad@1"
    assert says in reason
    for name in ("bad:1", "bad"):
        with pytest.raises(IntegrityError, match=r"bad:1 can't be used: .*; mend it with: myllm verify bad:1 --repair"):
            store.get(name)
    assert store.remove("bad").name == "bad:1"
    assert store.broken() == []


@pytest.mark.parametrize("spoil", [_spoil_json, _spoil_weights_gone, _spoil_weights_short, _spoil_other_name])
def test_pulling_again_mends_a_damaged_model(
    store: ModelStore, install: Install, spoil: Callable[[Path], None]
) -> None:
    spoil(install("bad:1").folder)
    mended = install("bad:1")
    assert store.list_models() == [mended]
    assert store.broken() == []


def test_foreign_things_in_the_folder(store: ModelStore, install: Install) -> None:
    install("good:1")
    for name in ("My Models", "x", "con@1", "..a@b", "A@1", "a@1@2"):
        (store.models_dir / name).mkdir()
    (store.models_dir / "readme.txt").write_text("x")
    (store.models_dir / ".hidden").mkdir()
    (store.models_dir / "dangling@1").symlink_to("nowhere")
    assert names(store) == ["good:1"]
    assert [name for name, _ in store.broken()] == ["A@1", "My Models", "a@1@2", "con@1", "dangling@1", "x"]


def test_a_models_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("x")
    store = ModelStore(tmp_path / "models")
    assert store.list_models() == []
    assert [name for name, _ in store.broken()] == ["models"]
    with pytest.raises(ModelNotFound):
        store.get("a")
    for act in (lambda: store.lock("a").__enter__(), lambda: store.staging("a")):
        with pytest.raises(StorageError, match="a file is where a folder should be"):
            act()


def test_a_models_directory_whose_path_is_too_long(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / ("x" * 300))
    for act in (store.list_models, store.broken, lambda: store.get("a"), lambda: store.staging("a")):
        with pytest.raises(StorageError, match="the path is too long"):
            act()


_AS_NOBODY = """
import os, sys, shutil, filelock, difflib
from pathlib import Path
from myllm_core.models.store import ModelStore
from myllm_core.errors import StorageError
os.setgid(65534); os.setuid(65534)
store = ModelStore(Path(sys.argv[1]))
print([m.name for m in store.list_models()], store.get("a").name, store.broken())
for act in (lambda: store.remove("a"), lambda: store.staging("a"), lambda: store.lock("b").__enter__()):
    try:
        act()
    except StorageError as error:
        print(error.exit_code, error.message)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_models_directory_that_may_only_be_read(install: Install) -> None:
    model = install("a:1")
    with tempfile.TemporaryDirectory() as readable:  # pytest's own folders are closed to other users
        os.chmod(readable, 0o755)
        shutil.copytree(model.folder.parent, Path(readable, "models"))
        command = [sys.executable, "-c", _AS_NOBODY, str(Path(readable, "models"))]
        run = subprocess.run(command, capture_output=True, text=True)
        assert Path(readable, "models", *model.paths[0].parts[-3:]).exists()
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0] == "['a:1'] a:1 []"
    assert len(lines) == 4
    assert all(line.startswith("6 ") and "permission denied" in line for line in lines[1:])


def _hold(models_dir: Path, held: Any, release: Any) -> None:
    with ModelStore(models_dir).lock("a:1"):
        held.set()
        release.wait(30)


def test_the_lock_is_between_processes(store: ModelStore, install: Install) -> None:
    install("a:1")
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.models_dir, held, release))
    process.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(Overloaded, match="another myllm process is working on a:1"),
            store.lock("a:1", timeout=0),
        ):
            pass
        assert store.get("a:1").name == "a:1"  # readers never wait
        assert names(store) == ["a:1"]
        with store.lock("b:1", timeout=0):
            pass
        timer = threading.Timer(0.3, release.set)
        timer.start()
        store.remove("a:1")  # waits for the other process
        assert names(store) == []
        timer.join()
    finally:
        release.set()
        process.join(30)


def test_removing_while_a_reader_has_the_file_open(store: ModelStore, install: Install) -> None:
    with install("a:1").paths[0].open("rb") as weights:
        store.remove("a:1")
        assert weights.read(4) == b"GGUF"


def test_listing_many_models_is_quick(store: ModelStore, install: Install) -> None:
    body = json.loads((install("a:1").folder / MANIFEST).read_text())
    revision = next((store.models_dir / "a@1").glob("r-*"))
    for number in range(200):
        folder = store.models_dir / f"m{number}@1"
        (folder / revision.name).mkdir(parents=True)
        os.link(revision / "model.gguf", folder / revision.name / "model.gguf")
        (folder / MANIFEST).write_text(json.dumps(body | {"name": f"m{number}:1"}))
    begin = time.process_time()
    assert len(store.list_models()) == 201
    assert time.process_time() - begin < 0.5


def test_a_disk_that_is_full_at_the_commit_keeps_the_old_model(store: ModelStore, install: Install) -> None:
    resource = pytest.importorskip("resource")
    old = install("a:1")
    before = tree(store.models_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # as good as full: no file may grow beyond 50 bytes
    try:
        with pytest.raises(StorageError, match=r"can't write .*manifest\.json: the file is larger than"):
            store.commit(old.manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get("a:1") == old
    assert tree(store.models_dir) == before
