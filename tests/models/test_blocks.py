"""Hashes of blocks, and the file that they are kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.models import blocks
from myllm_core.models.blocks import BlockHasher, Blocks, read_blocks, write_blocks
from myllm_core.models.manifest import ModelFile

REVISION = "r-0123456789ab"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 10)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashed(data: bytes) -> Blocks:
    hasher = BlockHasher()
    hasher.update(data)
    return hasher.finish()


def file_of(data: bytes, path: str = "w.gguf") -> ModelFile:
    return ModelFile(f"{REVISION}/{path}", len(data), sha256(data))


@given(pieces=st.lists(st.binary(max_size=35), max_size=5))
def test_pieces_of_any_size_give_the_hash_of_each_block(pieces: list[bytes]) -> None:
    hasher, data = BlockHasher(), b"".join(pieces)
    for piece in pieces:
        hasher.update(piece)
    assert hasher.finish().digests == tuple(sha256(data[at : at + 10]) for at in range(0, len(data), 10))


@pytest.mark.parametrize("data", [b"", b"short", b"just ten b", b"more than ten bytes"])
def test_what_is_written_is_read_again(tmp_path: Path, data: bytes) -> None:
    write_blocks(tmp_path, REVISION, {"w.gguf": (sha256(data), hashed(data))})
    assert read_blocks(tmp_path, file_of(data)) == hashed(data)
    assert read_blocks(tmp_path, file_of(data + b"x")) is None
    assert read_blocks(tmp_path, file_of(data, "other.gguf")) is None


def test_what_is_known_of_other_files_stays(tmp_path: Path) -> None:
    write_blocks(tmp_path, REVISION, {"a": (sha256(b"a"), hashed(b"a"))})
    write_blocks(tmp_path, REVISION, {"sub/b": (sha256(b"b"), hashed(b"b"))})
    assert read_blocks(tmp_path, file_of(b"a", "a")) and read_blocks(tmp_path, file_of(b"b", "sub/b"))
    assert [path.name for path in tmp_path.iterdir()] == [f"{REVISION}.blocks.json"]


Change = Callable[[dict[str, Any]], Any]
CHANGES: list[Change] = [
    lambda body: body.update(schema=2),
    lambda body: body.update(block_size=0),
    lambda body: body.update(block_size="10"),
    lambda body: body.update(block_size=5),
    lambda body: body.update(files=[]),
    lambda body: body["files"].update({"w.gguf": 5}),
    lambda body: body["files"]["w.gguf"].update(sha256="0" * 64),
    lambda body: body["files"]["w.gguf"].update(blocks=None),
    lambda body: body["files"]["w.gguf"].update(blocks=body["files"]["w.gguf"]["blocks"][::-1]),
    lambda body: body["files"]["w.gguf"].pop("check"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_true_counts_for_nothing(tmp_path: Path, change: Change) -> None:
    data = b"more than ten bytes"
    write_blocks(tmp_path, REVISION, {"w.gguf": (sha256(data), hashed(data))})
    path = tmp_path / f"{REVISION}.blocks.json"
    body = json.loads(path.read_bytes())
    change(body)
    path.write_text(json.dumps(body))
    assert read_blocks(tmp_path, file_of(data)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", "[" * 100_000])
def test_a_file_that_cannot_be_read_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{REVISION}.blocks.json").write_text(text, "latin-1")
    assert read_blocks(tmp_path, file_of(b"data")) is None


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "w.gguf", "r-0123456789AB/w"])
def test_only_files_of_a_revision_have_blocks(tmp_path: Path, path: str) -> None:
    assert read_blocks(tmp_path, ModelFile(path, 4, sha256(b"data"))) is None
