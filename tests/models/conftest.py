"""Small model files, whole or broken on purpose."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from myllm_core.models.manifest import Manifest, Model, ModelFile
from myllm_core.models.store import ModelStore

UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def key(name: str, value: Any) -> bytes:
    """A metadata key with a value: str, bool, int (uint32) or bytes (type and value as they stand in the file)."""
    if isinstance(value, bytes):
        return text(name) + value
    if isinstance(value, str):
        return text(name) + u32(STRING) + text(value)
    if isinstance(value, bool):
        return text(name) + u32(BOOL) + bytes([value])
    return text(name) + u32(UINT32) + u32(value)


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def gguf_bytes(
    keys: Sequence[bytes] | None = None,
    tensors: Sequence[bytes] | None = None,
    data: int = 256,
    alignment: int = 32,
    head: bytes | None = None,
) -> bytes:
    """A GGUF file, by default a whole one of two tensors."""
    if keys is None:
        keys = [
            key("general.architecture", "llama"),
            key("llama.context_length", 2048),
            key("llama.block_count", 1),
            key("general.file_type", 2),
        ]
    if tensors is None:
        tensors = [tensor("a.weight", (32, 4), 2), tensor("b.weight", (8,), 0, offset=96)]
    head = head if head is not None else b"GGUF" + u32(3) + u64(len(tensors)) + u64(len(keys))
    described = head + b"".join(keys) + b"".join(tensors)
    return described + bytes(-len(described) % alignment) + bytes(data)


def safetensors_bytes(header: Any = None, data: int = 16) -> bytes:
    if header is None:
        header = {"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}
    text_ = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(text_)) + text_ + bytes(data)


@pytest.fixture(scope="session")
def files() -> SimpleNamespace:
    """The builders above, for tests: a conftest can't be imported."""
    builders = (u32, u64, text, key, tensor, gguf_bytes, safetensors_bytes)
    return SimpleNamespace(**{builder.__name__: builder for builder in builders})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def install(store: ModelStore) -> Callable[..., Model]:
    """Install a small model the way a pull does: ``install("smollm2:135m", aliases=("smol",))``."""

    def install_(name: str, data: bytes = b"", **facts: Any) -> Model:
        data = data or gguf_bytes()
        with store.lock(name):
            staged = store.staging(name)
            (staged / "model.gguf").write_bytes(data)
            file = ModelFile(f"{staged.name}/model.gguf", len(data), hashlib.sha256(data).hexdigest())
            canonical = name if ":" in name else f"{name}:latest"
            return store.commit(Manifest(**{"name": canonical, "format": "gguf", "files": (file,), **facts}))

    return install_
