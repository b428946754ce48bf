"""Files of this machine, and plain web addresses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from myllm_core.errors import IntegrityError, InvalidReference, InvalidRequest, NotFound, StorageError
from support.gguf import small_gguf
from support.pulling import Puller, StartServer

DATA = small_gguf(20_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model as people have them: in parts, with things beside it, with other versions of it."""
    folder = tmp_path / "My Model"
    (folder / "onnx").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")
    (folder / "model.gguf").write_bytes(DATA)
    (folder / "README.md").write_text("# read me")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    (folder / "picture.png").write_bytes(b"png")
    return folder


@pytest.mark.parametrize(
    "form", ["{}", "file:{}", "file://{}", "file://localhost{}", "./{name}", "file:./{name}", "~/{name}"]
)
def test_a_file(puller: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "Tiny-1M.Q4_K_M.gguf"
    path.write_bytes(DATA)
    model = puller(form.format(path, name=path.name))
    assert model.name == "tiny-1m:q4_k_m"
    assert model.manifest.source == f"file:{path}"
    assert puller.bytes_of(model) == DATA
    assert path.read_bytes() == DATA
    assert puller.told.files[-1] == (path.name, len(DATA), len(DATA))


def test_percent_signs_count_in_file_urls_only(puller: Puller, tmp_path: Path) -> None:
    (tmp_path / "a b.gguf").write_bytes(DATA)
    assert puller(f"file://{tmp_path}/a%20b.gguf").name == "a-b:latest"
    with pytest.raises(NotFound):
        puller(f"{tmp_path}/a%20b.gguf")


def test_a_folder(puller: Puller, folder: Path) -> None:
    model = puller(f"{folder}/")
    assert model.name == "my-model:latest"
    names = [file.path.partition("/")[2] for file in model.manifest.files]
    assert names[0] == "model.gguf"
    assert sorted(names) == ["README.md", "config.json", "model.gguf"]


def test_a_folder_with_two_models_is_refused_before_anything_is_copied(puller: Puller, folder: Path) -> None:
    (folder / "second.gguf").write_bytes(DATA)
    with pytest.raises(InvalidRequest, match="several models"):
        puller(str(folder))
    assert puller.told.files == []


def test_pickles_are_refused_by_what_they_are(puller: Puller, folder: Path) -> None:
    (folder / "model.gguf").unlink()
    with pytest.raises(IntegrityError, match="pickle"):
        puller(str(folder))
    with pytest.raises(IntegrityError, match="pickle"):
        puller(str(folder / "pytorch_model.bin"))
    puller.assert_nothing_installed()


def test_links_are_copied_as_what_they_lead_to(puller: Puller, folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    os.rename(folder / "model.gguf", blob)
    (folder / "model.gguf").symlink_to(blob)
    model = puller(str(folder))
    assert puller.bytes_of(model) == DATA
    assert not model.paths[0].is_symlink()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda p: None, NotFound, "there is no file or folder"),
        (lambda p: p.mkdir(), NotFound, "there is no model in"),
        (lambda p: os.mkfifo(p), InvalidReference, "neither a file nor a folder"),
        (lambda p: p.write_bytes(b""), IntegrityError, "not a model"),
        (lambda p: p.write_bytes(DATA[:-1000]), IntegrityError, "thing.gguf"),
        (lambda p: p.symlink_to(p), StorageError, "can't read"),
    ],
    ids=["missing", "empty folder", "pipe", "empty", "cut", "endless link"],
)
def test_what_cannot_be_copied(puller: Puller, tmp_path: Path, make: object, error: type[Exception], says: str) -> None:
    path = tmp_path / "thing.gguf"
    make(path)  # type: ignore[operator]
    with pytest.raises(error, match=says):
        puller(str(path))
    puller.assert_nothing_installed()


@pytest.mark.parametrize("reference", ["file://elsewhere/x.gguf", "~nobody_of_this_name/x.gguf", "file:"])
def test_paths_that_cannot_be(puller: Puller, reference: str) -> None:
    with pytest.raises(InvalidReference):
        puller(reference)


def test_a_folder_of_everything(puller: Puller, tmp_path: Path) -> None:
    for number in range(501):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(InvalidReference, match="more than 500 files"):
        puller(str(tmp_path))


def test_a_model_in_parts_needs_them_all(puller: Puller, tmp_path: Path) -> None:
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(DATA)
    with pytest.raises(NotFound, match="split into 3 files.*m-00001-of-00003"):
        puller(str(tmp_path / "m-00002-of-00003.gguf"))


# --- web addresses ---


@pytest.mark.parametrize(
    ("path", "header", "name"),
    [
        ("/a/Tiny-1M.Q4_0.gguf", "", "tiny-1m:q4_0"),
        ("/a/tiny.gguf?token=x", "", "tiny:latest"),
        ("/a%2f..%2f..%2fetc%2fpasswd.gguf", "", "a-.-.-etc-passwd:latest"),
        ("/%2e%2e", 'attachment; filename="../../up.gguf"', "up:latest"),
        ("/download", "attachment; filename*=UTF-8''sm%C3%B6l%2Fx.gguf", "x:latest"),
        ("/download", 'attachment; filename="C:\\\\evil\\\\x.gguf"', "x:latest"),
        ("/named.gguf", 'attachment; filename="other.gguf"', "named:latest"),
        ("/con.gguf", "", "model-con:latest"),
        ("/" + "n" * 300 + ".gguf", "", "n" * 80 + ":latest"),
    ],
)
def test_g8_names_from_urls(serve: StartServer, puller: Puller, path: str, header: str, name: str) -> None:
    server = serve(lambda exchange: exchange.file(DATA, **({"Content_Disposition": header} if header else {})))
    model = puller(server.url(path))
    assert model.name == name
    stored = model.paths[0]
    assert stored.parent.parent == model.folder
    assert len(stored.name) <= 150
    assert puller.store.models_dir in stored.parents


@pytest.mark.parametrize("url", ["http:x", "https://", "http://[::1/x", "https://host:99999/x"])
def test_urls_that_cannot_be(puller: Puller, url: str) -> None:
    with pytest.raises(InvalidReference):
        puller(url)


def test_the_query_of_a_url_is_sent_but_not_kept(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA))
    url = server.url("/m.gguf?token=canary").replace("http://", "http://user:canary@")
    model = puller(url)
    assert server.seen[-1].target == "/m.gguf?token=canary"
    assert "canary" not in (model.folder / "manifest.json").read_text()
    assert "canary" not in puller.told.text
    assert puller(url) == model  # the same source, though its secrets aren't known any more
