"""A model under a second name: one set of weights, two models."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from myllm_core.errors import InvalidReference, InvalidRequest, ModelNotFound, StorageError
from myllm_core.models.manifest import MANIFEST, Manifest, ModelFile, write_manifest
from myllm_core.models.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with ``one``, of two files in its revision and one that lies elsewhere."""
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(b"else")
    folder = tmp_path / "models" / "one@1"
    (folder / "r-0123456789ab" / "deep").mkdir(parents=True)
    (folder / "r-0123456789ab" / "a.bin").write_bytes(b"aa")
    (folder / "r-0123456789ab" / "deep" / "b.bin").write_bytes(b"bbb")
    files = (
        ModelFile("r-0123456789ab/a.bin", 2, "0" * 64),
        ModelFile("r-0123456789ab/deep/b.bin", 3, "1" * 64),
        ModelFile(str(elsewhere), 4, "2" * 64),
    )
    about = {"options": {"temperature": 0.1}, "aliases": ("uno:latest",), "source": "test:one"}
    write_manifest(folder / MANIFEST, Manifest("one:1", "test", files, **about))
    return ModelStore(tmp_path / "models")


def test_a_copy_is_the_same_model_on_the_same_bytes(store: ModelStore) -> None:
    made, one = store.copy("one", "Two"), store.get("one:1")
    assert made.name == "two:latest" and store.get("two") == made
    assert [path.read_bytes() for path in made.paths] == [b"aa", b"bbb", b"else"]
    assert all(os.path.samefile(mine, other) for mine, other in zip(made.paths, one.paths, strict=True))
    assert made.manifest.options == {"temperature": 0.1} and made.manifest.source == "test:one"
    assert store.get("uno").name == "one:1", "an alias stays where it is"


def test_each_of_them_lives_without_the_other(store: ModelStore) -> None:
    store.copy("one", "two")
    store.remove("one")
    assert [path.read_bytes() for path in store.get("two").paths] == [b"aa", b"bbb", b"else"]
    store.copy("two", "one:1")
    store.remove("two")
    assert store.get("one").paths[0].read_bytes() == b"aa"


@pytest.mark.parametrize(
    ("name", "to", "error"),
    [
        ("nope", "two", ModelNotFound),
        ("one", "one:1", InvalidRequest),
        ("one", "../two", InvalidReference),
        ("one", "a/b", InvalidReference),
        ("one", "", InvalidReference),
    ],
)
def test_what_cant_be_copied(store: ModelStore, name: str, to: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.copy(name, to)
    assert [model.name for model in store.list_models()] == ["one:1"]


def test_a_disk_without_hard_links(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="myllm pull test:one --name NAME"):
        store.copy("one", "two")
    assert not (store.models_dir / "two@latest").exists()


def test_a_copy_that_is_cut_off_leaves_nothing_that_is_listed(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = iter([os.link])

    def once(source: str, target: str) -> None:
        try:
            next(links)(source, target)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(os, "link", once)
    with pytest.raises(KeyboardInterrupt):
        store.copy("one", "two")
    assert [model.name for model in store.list_models()] == ["one:1"] and store.broken() == []
