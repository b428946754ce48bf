from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.errors import IntegrityError, MyllmError, StorageError
from myllm_core.models.manifest import MANIFEST, Manifest, Model, ModelFile, read_manifest, write_manifest

SHA = "0123456789abcdef" * 4
FULL = Manifest(
    name="smollm2:135m",
    format="gguf",
    files=(ModelFile("r-0123456789ab/m.gguf", 5, SHA), ModelFile("r-0123456789ab/sub/b.bin", 0, SHA)),
    source="hf:owner/repo@main",
    revision="abc",
    licence="apache-2.0",
    family="llama",
    quantization="Q4_1",
    context_size=8192,
    parameters=134_515_008,
    options={"temperature": 0.2, "stop": ["x"]},
    load_options={"n_ctx": 4096},
    system="Be brief.\nAnd kind: ä 😀",
    engine="llamacpp",
    pulled_at="2026-11-22T12:00:00Z",
    aliases=("smol:latest", "tiny:1b"),
)


def raw(**changes: Any) -> dict[str, Any]:
    file = {"path": "r-0123456789ab/m.gguf", "size": 5, "sha256": SHA}
    base = {"schema": 1, "name": "a:latest", "format": "gguf", "files": [file]}
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def read(tmp_path: Path, body: Any) -> Manifest:
    path = tmp_path / MANIFEST
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return read_manifest(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    write_manifest(path, FULL)
    assert read_manifest(path) == FULL
    assert read_manifest(path).size == 5
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]
    assert "ä 😀" in path.read_text(encoding="utf-8")


def test_paths_are_absolute_and_in_order(tmp_path: Path) -> None:
    model = Model(FULL, tmp_path)
    assert model.paths[0] == tmp_path / "r-0123456789ab" / "m.gguf"
    assert (model.name, model.format) == ("smollm2:135m", "gguf")


def test_unknown_keys_are_left_alone_and_missing_ones_have_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, raw(colour="red")) == Manifest(
        "a:latest", "gguf", (ModelFile(raw()["files"][0]["path"], 5, SHA),)
    )


def test_aliases_are_made_canonical(tmp_path: Path) -> None:
    assert read(tmp_path, raw(aliases=["Smol", "b:C"])).aliases == ("smol:latest", "b:c")


def test_weights_elsewhere_are_absolute(tmp_path: Path) -> None:
    elsewhere = str(tmp_path.parent / "hub" / "x.gguf")
    manifest = read(tmp_path, raw(files=[{"path": elsewhere, "size": 1, "sha256": SHA}]))
    assert Model(manifest, tmp_path).paths == (Path(elsewhere),)


def test_a_newer_schema_says_update(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"schema 2, this myllm knows 1; update myllm"):
        read(tmp_path, raw(schema=2, files="something new"))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": ...}, {"schema": "1"}, {"schema": True}, {"schema": 0}, {"schema": 1.0},
        {"name": ...}, {"name": "../x"}, {"name": "a"}, {"name": "A:latest"}, {"name": 3},
        {"format": ...}, {"format": ""}, {"format": "../x"}, {"format": None},
        {"files": ...}, {"files": {}}, {"files": []}, {"files": [3]},
        {"context_size": "8192"}, {"context_size": True}, {"context_size": -1}, {"context_size": 2**63},
        {"parameters": 1.5}, {"options": []}, {"system": 1}, {"licence": "\x1b[2J"}, {"source": None},
        {"aliases": "x"}, {"aliases": ["../x"]}, {"aliases": [1]}, {"family": "\ud800"}, {"system": "\ud800"},
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, raw(**change))
    assert MANIFEST in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "../x", "a/../b", "a/../../b", "a//b", "a/", "./a", "a\\..\\b", "..\\x", "C:\\x", "C:x",
        "\\\\host\\x", "a:b", "a\0b", "a\nb", "a/b.", "a /b", "/a/../b",
    ],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(IntegrityError):
        read(tmp_path, raw(files=[{"path": path, "size": 1, "sha256": SHA}]))


@pytest.mark.parametrize(
    "file",
    [
        {"path": "a", "size": 1},
        {"path": "a", "sha256": SHA},
        {"size": 1, "sha256": SHA},
        {"path": "a", "size": -1, "sha256": SHA},
        {"path": "a", "size": 1, "sha256": "x"},
        {"path": "a", "size": 1, "sha256": SHA.upper()},
        {"path": 1, "size": 1, "sha256": SHA},
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, file: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        read(tmp_path, raw(files=[file]))


@pytest.mark.parametrize("link", ["folder", "file"])
def test_a_symbolic_link_that_leads_out_is_refused(tmp_path: Path, link: str) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    (outside / "m.gguf").write_bytes(b"12345")
    model.mkdir()
    if link == "folder":
        (model / "r-0123456789ab").symlink_to(outside)
    else:
        (model / "r-0123456789ab").mkdir()
        (model / "r-0123456789ab" / "m.gguf").symlink_to(outside / "m.gguf")
    with pytest.raises(IntegrityError, match="leads out"):
        read(model, raw())


def test_a_manifest_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / MANIFEST).symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError) as caught:
        read_manifest(tmp_path / MANIFEST)
    assert "SECRET" not in caught.value.message
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(IntegrityError, match="no regular file"):
        read_manifest(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": ' + b"1" * 5000 + b"}", b'{"schema": NaN}'],
)
def test_damaged_json_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(IntegrityError):
        read(tmp_path, body)


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="there is no manifest.json"):
        read_manifest(tmp_path / MANIFEST)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(IntegrityError, match="larger than 16 MiB"):
        read_manifest(tmp_path / MANIFEST)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    write_manifest(path, FULL)
    bad = Manifest("a:latest", "gguf", (ModelFile("../x", 1, SHA),))
    with pytest.raises(IntegrityError):
        write_manifest(path, bad)
    assert read_manifest(path) == FULL
    with pytest.raises(StorageError, match="can't write"):
        write_manifest(tmp_path / "absent" / MANIFEST, FULL)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from([*raw(), "options", "aliases", "system", "context_size"]), value=json_values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, key: str, value: Any) -> None:
    try:
        manifest = read(tmp_path, {**raw(), key: value})
    except MyllmError as error:
        assert error.code == "integrity_error"
    else:
        write_manifest(tmp_path / MANIFEST, manifest)
        assert read_manifest(tmp_path / MANIFEST) == manifest


def test_importing_is_light() -> None:
    code = (
        "import sys, myllm_core.models.store; "
        "print([m for m in ('pydantic', 'filelock', 'asyncio', 'pluggy', 'urllib3') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
