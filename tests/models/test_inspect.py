from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.errors import IntegrityError, InvalidRequest, StorageError
from myllm_core.models.file_kinds import file_kind
from myllm_core.models.inspect import Inspection, inspect_files

Put = Callable[..., list[str]]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write files into ``tmp_path``; dicts become JSON. Returns their names."""

    def put_(contents: dict[str, Any]) -> list[str]:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / name).write_bytes(data)
        return list(contents)

    return put_


class Canary:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.model
def test_the_real_model(smollm2_gguf: Path) -> None:
    assert inspect_files(smollm2_gguf.parent, [smollm2_gguf.name]) == Inspection(
        "gguf", (smollm2_gguf.name,), "llama", "Q4_1", 8192, 134_515_008, "apache-2.0"
    )


def test_a_gguf_file_under_any_name(tmp_path: Path, files: SimpleNamespace) -> None:
    (tmp_path / "blob").write_bytes(files.gguf_bytes())
    (tmp_path / "README.md").write_text("<!-- hello -->\n# A model")
    found = inspect_files(tmp_path, ["README.md", "blob"])
    assert (found.format, found.files, found.family) == ("gguf", ("blob", "README.md"), "llama")
    assert (found.context_size, found.quantization, found.parameters) == (2048, "Q4_0", 136)


def split(files: SimpleNamespace, number: int, count: int) -> bytes:
    keys = [files.key("split.no", number), files.key("split.count", count)]
    if number == 0:
        keys += [files.key("general.architecture", "llama"), files.key("llama.context_length", 4096)]
    return bytes(files.gguf_bytes(keys=keys))


def test_a_split_model_is_ordered_and_counted_together(tmp_path: Path, files: SimpleNamespace) -> None:
    names = [f"m-0000{n + 1}-of-00003.gguf" for n in range(3)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(split(files, number, 3))
    found = inspect_files(tmp_path, [names[2], names[0], names[1]])
    assert found.files == tuple(names)
    assert (found.parameters, found.context_size, found.quantization) == (3 * 136, 4096, "Q4_0")
    with pytest.raises(IntegrityError, match="split into 3 files, and not all are here"):
        inspect_files(tmp_path, names[:2])
    with pytest.raises(IntegrityError, match="not all are here"):
        inspect_files(tmp_path, names[1:])


def test_a_projector_beside_the_model(tmp_path: Path, files: SimpleNamespace) -> None:
    (tmp_path / "a-mmproj.gguf").write_bytes(files.gguf_bytes(keys=[files.key("general.architecture", "clip")]))
    (tmp_path / "b-model.gguf").write_bytes(files.gguf_bytes())
    assert inspect_files(tmp_path, ["a-mmproj.gguf", "b-model.gguf"]).files == ("b-model.gguf", "a-mmproj.gguf")
    with pytest.raises(IntegrityError, match="only adds to a model"):
        inspect_files(tmp_path, ["a-mmproj.gguf"])


def test_several_models_at_once_are_asked_back(tmp_path: Path, files: SimpleNamespace) -> None:
    for name in ("m-Q4.gguf", "m-Q8.gguf"):
        (tmp_path / name).write_bytes(files.gguf_bytes())
    with pytest.raises(InvalidRequest, match=r"several models: m-Q4.gguf, m-Q8.gguf"):
        inspect_files(tmp_path, ["m-Q8.gguf", "m-Q4.gguf"])


def test_gguf_files_that_are_no_model(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.gguf"
    for keys, tensors, says in [
        ([], None, "no architecture"),
        ([files.key("general.architecture", "llama")], [], "no weights"),
        ([files.key("general.architecture", "llama"), files.key("general.type", "adapter")], None, "only adds"),
    ]:
        path.write_bytes(files.gguf_bytes(keys=keys, tensors=tensors))
        with pytest.raises(IntegrityError, match=says):
            inspect_files(tmp_path, ["m.gguf"])


def test_safetensors_with_their_config(tmp_path: Path, files: SimpleNamespace, put: Put) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}
    names = put(
        {
            "config.json": config,
            "tokenizer.json": {"version": "1.0"},
            "model-00002.safetensors": files.safetensors_bytes(),
            "model-00001.safetensors": files.safetensors_bytes(),
        }
    )
    found = inspect_files(tmp_path, names)
    assert found.files == ("model-00001.safetensors", "model-00002.safetensors", "config.json", "tokenizer.json")
    assert (found.format, found.family, found.quantization) == ("safetensors", "llama", "F16")
    assert (found.context_size, found.parameters) == (8192, 16)


def test_safetensors_need_their_config(tmp_path: Path, files: SimpleNamespace, put: Put) -> None:
    with pytest.raises(IntegrityError, match=r"without its config.json; pull the whole repository"):
        inspect_files(tmp_path, put({"model.safetensors": files.safetensors_bytes()}))


def test_what_a_config_says_otherwise(tmp_path: Path, files: SimpleNamespace, put: Put) -> None:
    config = {
        "model_type": "gemma\x1b[2J3",
        "text_config": {"max_position_embeddings": 131072},
        "quantization_config": {"quant_method": "awq"},
        "max_position_embeddings": "many",
    }
    found = inspect_files(tmp_path, put({"config.json": config, "m.safetensors": files.safetensors_bytes()}))
    assert (found.family, found.context_size, found.quantization) == ("gemma[2J3", 131072, "AWQ")


def test_onnx(tmp_path: Path, put: Put) -> None:
    names = put(
        {
            "genai_config.json": {"model": {"type": "phi3", "context_length": 4096}},
            "model.onnx": b"\x08\x07\x12\x04test",
            "model.onnx.data": bytes(100),
        }
    )
    found = inspect_files(tmp_path, names)
    assert (found.format, found.family, found.context_size, found.files[0]) == ("onnx", "phi3", 4096, "model.onnx")


def test_old_ggml(tmp_path: Path, put: Put) -> None:
    found = inspect_files(tmp_path, put({"model.bin": b"tjgg\x03\0\0\0" + bytes(64)}))
    assert found == Inspection("ggml", ("model.bin",))


def test_formats_that_only_a_plugin_knows(tmp_path: Path, put: Put) -> None:
    names = put({"weights.rwkv": bytes(range(1, 100))})
    assert inspect_files(tmp_path, names, format="rwkv") == Inspection("rwkv", ("weights.rwkv",))
    for known in ("", "gguf"):
        with pytest.raises(IntegrityError, match="no kind of model file"):
            inspect_files(tmp_path, names, format=known)
    with pytest.raises(IntegrityError, match="pickle"):
        inspect_files(tmp_path, put({"weights.rwkv": pickle.dumps({})}), format="rwkv")


def test_no_model_among_the_files(tmp_path: Path, put: Put) -> None:
    with pytest.raises(IntegrityError, match=r"there is no model in config.json, notes.txt"):
        inspect_files(tmp_path, put({"config.json": {}, "notes.txt": b"hello"}))
    with pytest.raises(IntegrityError, match="there is no model in the download"):
        inspect_files(tmp_path, [])
    with pytest.raises(StorageError):
        inspect_files(tmp_path, ["absent.gguf"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf \n<HTML>", "web page"),
        (b'<?xml version="1.0"?><Error>', "web page"),
    ],
)
@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "config.json", "model"])
def test_what_servers_send_instead_of_a_model(tmp_path: Path, content: bytes, says: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=says) as caught:
        inspect_files(tmp_path, [name])
    assert "not a model" in caught.value.message


def torch_zip(payload: bytes, name: str = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr(name, payload)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "renamed.onnx", "model", "x.model"])
def test_pickles_are_refused_under_any_name_and_never_run(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    for content in [
        *(pickle.dumps(Canary(canary), protocol) for protocol in range(6)),
        torch_zip(pickle.dumps(Canary(canary))),
        torch_zip(b"", "x/Y.PKL"),
        pickle.dumps({"weights": [1.0] * 1000}),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IntegrityError, match="is a pickle"):
            file_kind(tmp_path / name, strict=False)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["modeling_x.py", "x.so", "a.DLL", "site.pth", "m.pyc"])
def test_code_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"print(1)")
    with pytest.raises(IntegrityError, match="program code"):
        file_kind(tmp_path / name, strict=False)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"auto_map": {"AutoModel": "somebody/repo--modeling.Model"}},
        {"text_config": {"auto_map": {"AutoConfig": "x.Y"}}},
        {"nested": [{"deep": [{"custom_pipelines": {"x": {"impl": "x.Y"}}}]}]},
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": "https://example.com/kernel"},
        {"model": {"custom_ops_library": "evil.so"}},
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "genai_config.json"])
def test_configs_that_want_code_run_are_refused(
    tmp_path: Path, files: SimpleNamespace, config: dict[str, Any], name: str
) -> None:
    (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "m.safetensors").write_bytes(files.safetensors_bytes())
    with pytest.raises(IntegrityError, match="wants to run code"):
        inspect_files(tmp_path, [name, "m.safetensors"])


def test_harmless_configs_pass(tmp_path: Path, files: SimpleNamespace, put: Put) -> None:
    config = {"model_type": "x", "auto_map": None, "_attn_implementation": "sdpa"}
    assert inspect_files(tmp_path, put({"config.json": config, "m.safetensors": files.safetensors_bytes()}))


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 200_000, b'{"a": ' * 50_000, b"\xff{}"])
def test_damaged_configs(tmp_path: Path, files: SimpleNamespace, content: bytes, put: Put) -> None:
    with pytest.raises(IntegrityError):
        inspect_files(tmp_path, put({"config.json": content, "m.safetensors": files.safetensors_bytes()}))


def one(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "no object": b"[]",
    "no JSON": b"{{",
    "deep": b'{"a":' * 100_000,
    "a list for a tensor": {"w": []},
    "no dtype": {"w": {"shape": [4], "data_offsets": [0, 16]}},
    "unknown dtype": {"w": one(dtype="Q4")},
    "dtype as a list": {"w": one(dtype=[])},
    "negative shape": {"w": one(shape=[-4])},
    "shape as a bool": {"w": one(shape=[True], offsets=[0, 4])},
    "shape that overflows": {"w": one(shape=[2**62, 2**62])},
    "shape as text": {"w": one(shape="4")},
    "wrong size": {"w": one(shape=[5])},
    "end before begin": {"w": one(offsets=[16, 0])},
    "three offsets": {"w": one(offsets=[0, 8, 16])},
    "overlap": {"a": one(), "b": one()},
    "gap": {"a": one((2,), (0, 8)), "b": one((1,), (12, 16))},
    "gap at the begin": {"a": one((3,), (4, 16))},
    "beyond the end": {"a": one((5,), (0, 20))},
    "bytes left over": {"a": one((3,), (0, 12))},
}


def test_broken_safetensors_are_refused(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.safetensors"
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    contents = {name: files.safetensors_bytes(header) for name, header in SAFETENSORS.items()}
    contents |= {
        "header of 2^63": files.u64(2**63) + b"{}",
        "header of 2^64-1": files.u64(2**64 - 1) + b"{}",
        "header longer than the file": files.u64(100) + b"{}",
        "only a length": files.u64(0),
        "three bytes": b"abc",
    }
    accepted = []
    for name, content in contents.items():
        path.write_bytes(content)
        try:
            inspect_files(tmp_path, ["m.safetensors", "config.json"])
            accepted.append(name)
        except IntegrityError as error:
            assert "m.safetensors is no usable safetensors file" in error.message, name
    assert accepted == []


def test_a_safetensors_header_of_300_megabytes_is_not_read(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(files.u64(300_000_000) + b"{")
    os.truncate(path, 400_000_000)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    with pytest.raises(IntegrityError, match="can't be 300000000 bytes long"):
        inspect_files(tmp_path, ["m.safetensors", "config.json"])


@given(
    content=st.binary(max_size=80) | st.sampled_from([b"GGUF", b"PK\3\4", b"\x80\4", b"(dp0\n"]),
    suffix=st.sampled_from([".gguf", ".safetensors", ".bin", ".onnx", ".json", ".model", ""]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
def test_noise_is_refused_or_harmless(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    for format in ("", "other"):
        try:
            inspect_files(tmp_path, [path.name], format=format)
        except IntegrityError as error:
            assert error.message.isprintable()
