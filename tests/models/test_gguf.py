from __future__ import annotations

import ctypes
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from myllm_core.errors import IntegrityError, StorageError
from myllm_core.models.ggml_types import FILE_TYPES, TENSOR_TYPES
from myllm_core.models.gguf import LongArray, Tensor, read_gguf


@pytest.mark.model
def test_the_real_model(smollm2_gguf: Path) -> None:
    header = read_gguf(smollm2_gguf)
    assert (header.version, header.architecture, header.context_length) == (3, "llama", 8192)
    assert (header.quantization, header.parameters, header.split) == ("Q4_1", 134_515_008, (0, 1))
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    assert header.metadata["tokenizer.ggml.tokens"] == LongArray(49152)
    assert header.metadata["general.languages"] == ["en"]
    assert len(header.tensors) == 272
    first, last = header.tensors[0], header.tensors[-1]
    assert first == Tensor("token_embd.weight", (576, 49152), "Q8_0", header.data_offset, 576 * 49152 // 32 * 34)
    assert last.offset + last.nbytes <= smollm2_gguf.stat().st_size


@pytest.mark.model
def test_reading_the_real_model_is_quick(smollm2_gguf: Path) -> None:
    times = []
    for _ in range(3):
        begin = time.process_time()
        read_gguf(smollm2_gguf)
        times.append(time.process_time() - begin)
    assert min(times) < 0.1


def test_a_small_file(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(files.gguf_bytes())
    header = read_gguf(path)
    assert header.quantization == "Q4_0"
    assert header.parameters == 136
    assert [(t.name, t.shape, t.type, t.nbytes) for t in header.tensors] == [
        ("a.weight", (32, 4), "Q4_0", 72),
        ("b.weight", (8,), "F32", 32),
    ]
    assert header.tensors[1].offset == header.data_offset + 96
    assert header.chat_template is None


def test_every_kind_of_value(tmp_path: Path, files: SimpleNamespace) -> None:
    u32, u64, key = files.u32, files.u64, files.key
    keys = [
        key("general.architecture", "x"),
        key("i8", u32(1) + b"\xff"),
        key("f64", u32(12) + b"\0\0\0\0\0\0\xf0\x3f"),
        key("u64", u32(10) + u64(2**64 - 1)),
        key("true", True),
        key("text", "ä\0😀"),
        key("bytes", u32(8) + u64(1) + b"\xff"),
        key("list", u32(9) + u32(8) + u64(2) + files.text("a") + files.text("b")),
        key("empty", u32(9) + u32(4) + u64(0)),
        key("long", u32(9) + u32(0) + u64(2000) + bytes(2000)),
        key("long texts", u32(9) + u32(8) + u64(2000) + files.text("ab") * 2000),
        key("nested", u32(9) + u32(9) + u64(2) + (u32(8) + u64(1) + files.text("a")) * 2),
        key("last", 7),
    ]
    keys = [k for k in keys if not k.startswith(files.text("long texts"))] + [
        key("long_texts", u32(9) + u32(8) + u64(2000) + files.text("ab") * 2000)
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(files.gguf_bytes(keys=keys))
    metadata = read_gguf(path).metadata
    assert metadata == {
        "general.architecture": "x",
        "i8": -1,
        "f64": 1.0,
        "u64": 2**64 - 1,
        "true": True,
        "text": "ä\0😀",
        "bytes": "\ufffd",
        "list": ["a", "b"],
        "empty": [],
        "long": LongArray(2000),
        "nested": LongArray(2),
        "last": 7,
        "long_texts": LongArray(2000),
    }


def test_the_commonest_type_stands_in_for_a_missing_file_type(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files.gguf_bytes(keys=[files.key("general.architecture", "llama")]))
    assert read_gguf(path).quantization == "Q4_0"
    path.write_bytes(files.gguf_bytes(keys=[files.key("general.file_type", 1024 + 15)]))
    assert read_gguf(path).quantization == "Q4_K_M"
    path.write_bytes(files.gguf_bytes(keys=[], tensors=[]))
    assert (read_gguf(path).quantization, read_gguf(path).architecture) == ("", "")


def test_another_alignment(tmp_path: Path, files: SimpleNamespace) -> None:
    keys = [files.key("general.alignment", 4096)]
    tensors = [files.tensor("a", (4,)), files.tensor("b", (4,), offset=4096)]
    path = tmp_path / "m.gguf"
    path.write_bytes(files.gguf_bytes(keys=keys, tensors=tensors, alignment=4096, data=4096 + 16))
    assert read_gguf(path).tensors[1].offset == 8192


def test_version_2_is_read(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files.gguf_bytes(head=b"GGUF" + files.u32(2) + files.u64(2) + files.u64(4)))
    assert read_gguf(path).version == 2


@pytest.mark.parametrize(
    ("version", "says"),
    [(0, "too old"), (1, "too old"), (4, "update myllm"), (3 << 24, "big endian"), (2 << 24, "big endian")],
)
def test_other_versions_are_refused(tmp_path: Path, files: SimpleNamespace, version: int, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files.gguf_bytes(head=b"GGUF" + files.u32(version) + files.u64(2) + files.u64(4)))
    with pytest.raises(IntegrityError, match=says):
        read_gguf(path)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(IntegrityError, match="no regular file"):
        read_gguf(tmp_path)


def test_the_tables_agree_with_the_installed_library() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base.*"))))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    for number in range(max(TENSOR_TYPES) + 1):
        block, size = library.ggml_blck_size(number), library.ggml_type_size(number)
        known = TENSOR_TYPES.get(number)
        if known is None:
            assert size == 0
        else:
            name = library.ggml_type_name(number).decode().upper()
            assert (known.name, known.block, known.size) == (name, block, size)
    named = {
        getattr(llama_cpp, name): name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
        for name in dir(llama_cpp)
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }
    assert {number: FILE_TYPES[number] for number in named} == named
