"""What can go from the models directory, and what can't."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from myllm_core.errors import Overloaded
from myllm_core.models.leftovers import Leftover
from myllm_core.models.manifest import Manifest, Model, ModelFile, write_manifest
from myllm_core.models.store import ModelStore
from myllm_core.transfer.partial import Partial, partial_key
from myllm_core.transfer.prune import find, prune
from support.gguf import small_gguf
from support.pulling import Puller

DATA = small_gguf(5000)
DAY = 86400.0


@pytest.fixture
def model(puller: Puller, tmp_path: Path) -> Model:
    """An installed model, and nothing else."""
    origin = tmp_path / "m.gguf"
    origin.write_bytes(DATA)
    model = puller(str(origin), name="m:1")
    assert find(puller.store) == []
    return model


def put(path: Path, data: bytes = b"12345", age: float = DAY) -> Path:
    """A file of an age, in a folder of that age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    for each in (path, path.parent):
        os.utime(each, (time.time() - age,) * 2)
    return path


def partial_of(store: ModelStore, name: str, path: str = "w.gguf", size: int = 1000) -> Path:
    partial = Partial.claim(store.partials_dir, partial_key(name, "x:y", path))
    partial.state.model, partial.state.path, partial.state.size = name, path, 4000
    partial.data.write_bytes(bytes(size))
    partial.state.synced = size
    partial.save()
    partial.release()
    return store.partials_dir / partial_key(name, "x:y", path)


def shown(found: list[Leftover]) -> list[tuple[str, str, str]]:
    return sorted((each.kind, each.model, each.what) for each in found)


def test_an_unfinished_download_says_what_it_is_of(store: ModelStore) -> None:
    folder = partial_of(store, "other:1")
    [each] = find(store)
    assert shown([each]) == [("download", "other:1", "w.gguf: 1.0 kB of 4.0 kB")]
    assert each.path == folder
    assert 1000 < each.size < 2000
    assert each.age < 60
    assert prune(store, [each]) == []
    assert not folder.exists()


def test_only_what_is_old_enough(store: ModelStore) -> None:
    folder = partial_of(store, "other:1")
    assert find(store, older_than=7 * DAY) == []
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - 8 * DAY,) * 2)
    [each] = find(store, older_than=7 * DAY)
    assert 8 * DAY <= each.age < 9 * DAY


def test_what_a_process_is_writing_stays(store: ModelStore) -> None:
    partial = Partial.claim(store.partials_dir, partial_key("other:1", "x:y", "z"))
    partial.data.write_bytes(b"data")
    assert find(store) == []


HOLD = """
import sys
from pathlib import Path
from myllm_core.models.store import ModelStore
with ModelStore(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_holds_stays(store: ModelStore, model: Model) -> None:
    staged = put(model.folder / "r-000000000000" / "w.gguf")
    lone = put(store.models_dir / "gone@1" / "r-000000000000" / "w.gguf")
    waiting = partial_of(store, "m:1")
    before = find(store)
    assert len(before) == 3
    command = [sys.executable, "-c", HOLD, str(store.models_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holders = [subprocess.Popen([*command, name], **pipes) for name in ("m:1", "gone:1")]  # type: ignore[call-overload]
    try:
        for holder in holders:
            assert holder.stdout.readline() == b"held\n"
        assert find(store) == []
        failed = prune(store, [each for each in before if each.kind == "revision"])
        assert [type(error) for _, error in failed] == [Overloaded, Overloaded]
    finally:
        for holder in holders:
            holder.communicate(timeout=20)
    assert staged.exists() and lone.exists() and waiting.exists()
    assert prune(store, before) == []
    assert not staged.exists() and not lone.parent.parent.exists() and not waiting.exists()
    assert find(store) == []


def test_what_may_be_another_machines_pull_stays_for_ten_minutes(store: ModelStore, model: Model) -> None:
    put(model.folder / "r-000000000000" / "w.gguf", age=500)
    put(model.folder / ".manifest.json.0123456789ab", age=500)
    (store.models_dir / "new@1").mkdir()
    assert find(store) == []


def test_what_became_part_of_a_model_in_the_meantime_stays(store: ModelStore, model: Model) -> None:
    staged = put(model.folder / "r-000000000000" / "m.gguf", DATA)
    before = find(store)
    assert len(before) == 1
    file = ModelFile("r-000000000000/m.gguf", len(DATA), hashlib.sha256(DATA).hexdigest())
    write_manifest(model.folder / "manifest.json", Manifest("m:1", "gguf", (file,)))
    assert prune(store, before) == []
    assert staged.exists()


def test_files_that_no_manifest_names(store: ModelStore, model: Model) -> None:
    put(model.folder / "notes.txt")
    put(model.paths[0].parent / "extra.bin")
    put(model.paths[0].parent / "sub" / "deep.bin")
    (model.folder / "link").symlink_to(model.paths[0].parent)
    found = find(store)
    revision = model.paths[0].parent.name
    expected = ["notes.txt", f"{revision}/extra.bin", f"{revision}/sub/deep.bin"]
    assert shown(found) == sorted(("file", "m:1", what) for what in expected)  # the link leads to what is needed
    assert prune(store, found) == []
    assert model.paths[0].read_bytes() == DATA
    assert not (model.paths[0].parent / "sub").exists()


def test_a_link_is_unlinked_and_never_followed(store: ModelStore, model: Model, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside / "precious", age=2 * DAY)
    (model.folder / "link").symlink_to(outside)
    (model.folder / "r-000000000000").symlink_to(outside)
    os.utime(model.folder / "r-000000000000", (0, time.time() - DAY), follow_symlinks=False)
    found = find(store)
    assert [(each.kind, each.size < 100) for each in found] == [("file", True), ("revision", True)]
    assert prune(store, found) == []
    assert (outside / "precious").exists()
    assert find(store) == []


def test_a_file_that_another_model_uses_stays(store: ModelStore, model: Model) -> None:
    shared = put(model.folder / "r-000000000000" / "shared.gguf", DATA)
    user = store.models_dir / "user@1"
    user.mkdir()
    file = ModelFile(str(shared), len(DATA), hashlib.sha256(DATA).hexdigest())
    write_manifest(user / "manifest.json", Manifest("user:1", "gguf", (file,)))
    assert find(store) == []


@pytest.mark.parametrize("text", ["", "{", json.dumps({"schema": 99}), json.dumps({"schema": 1, "files": 5})])
def test_a_model_whose_manifest_cannot_be_read_keeps_all_it_has(store: ModelStore, model: Model, text: str) -> None:
    put(model.folder / "manifest.json", text.encode())
    put(model.folder / "r-000000000000" / "w.gguf")
    assert find(store) == []


def test_without_a_manifest_only_what_myllm_made_goes(store: ModelStore, model: Model) -> None:
    (model.folder / "manifest.json").unlink()
    mine = put(model.folder / "mine.gguf")
    for top, _, names in os.walk(model.folder):
        for path in (Path(top), *(Path(top, name) for name in names)):
            os.utime(path, (time.time() - DAY,) * 2)
    found = find(store)
    assert {each.kind for each in found} == {"revision"}
    assert prune(store, found) == []
    assert mine.exists()
    assert os.listdir(model.folder) == ["mine.gguf"]


def test_what_is_not_myllms_stays(store: ModelStore, model: Model) -> None:
    for name in ("Not A Model", "x", ".hidden", "UPPER@1"):
        put(store.models_dir / name / "r-000000000000" / "w.gguf")
    put(store.models_dir / "loose.gguf")
    assert find(store) == []


def test_locks_of_models_that_are_gone(store: ModelStore, model: Model) -> None:
    with store.lock("never:1"):
        assert find(store) == []  # held, by this very process
    (store.locks_dir / "strange name.lock").write_text("")
    found = find(store)
    assert shown(found) == [("lock", "never:1", "never@1.lock")]
    assert prune(store, found) == []
    assert sorted(path.name for path in store.locks_dir.iterdir()) == ["m@1.lock", "strange name.lock"]


def test_looking_writes_nothing(store: ModelStore, model: Model) -> None:
    partial_of(store, "other:1")
    put(store.models_dir / "gone@1" / "r-000000000000" / "w.gguf")
    before = sorted(str(path) for path in store.models_dir.rglob("*"))
    assert len(find(store)) == 2
    assert sorted(str(path) for path in store.models_dir.rglob("*")) == before


def test_no_models_directory_at_all(tmp_path: Path) -> None:
    assert find(ModelStore(tmp_path / "none")) == []
    (tmp_path / "file").write_text("")
    assert find(ModelStore(tmp_path / "file")) == []


def test_the_models_directory_by_another_path(
    store: ModelStore, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(model.folder / "notes.txt")
    (tmp_path / "link").symlink_to(store.models_dir)
    monkeypatch.chdir(store.models_dir.parent)
    for path in (tmp_path / "link", Path(store.models_dir.name)):
        assert shown(find(ModelStore(path))) == [("file", "m:1", "notes.txt")]
    shutil.rmtree(store.models_dir)
    assert find(store) == []
