"""Names from outside: rows C1 to C3 and G8 of the threats."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.errors import IntegrityError
from myllm_core.models.reference import model_name
from myllm_core.transfer.paths import checked_paths, file_name, name_for, shard_names


@pytest.mark.parametrize("path", ["model.gguf", "a/b/c.json", "onnx/model.onnx_data", ".gitattributes", "ünï.txt"])
def test_good_paths(path: str) -> None:
    assert checked_paths([path]) == (path,)


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "\\x", "a\\..\\b", "C:x", "c:/x", "x:stream",
        "a\0b", "a\nb", "con", "NUL.gguf", "a/aux.txt", "x.", "x ", " x", "a\u202eb", "n" * 201, "a/" * 300 + "b",
        "a|b", "a?b", "a*b",
    ],
)  # fmt: skip
def test_c1_bad_paths(path: str) -> None:
    with pytest.raises(IntegrityError, match="isn't safe"):
        checked_paths(["good.gguf", path])


def test_c1_the_same_file_twice() -> None:
    with pytest.raises(IntegrityError, match="twice"):
        checked_paths(["a.gguf", "A.GGUF"])


@given(st.text())
def test_c1_whatever_passes_stays_inside(path: str) -> None:
    try:
        checked_paths([path])
    except IntegrityError:
        return
    folder = Path("/models/x").resolve()
    assert folder in (folder / path).resolve().parents
    windows = PureWindowsPath("C:/models") / path
    assert windows.drive == "C:"
    assert ".." not in windows.parts


@given(st.text())
def test_g8_a_made_name_is_always_a_good_one(segment: str) -> None:
    name = file_name(segment)
    assert checked_paths([name]) == (name,)
    assert "/" not in name
    assert len(name) <= 150
    assert model_name(name_for(name))


def test_parts_of_a_split_model() -> None:
    assert shard_names("m-00002-of-00003.gguf") == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in ("m.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf", "m-1-of-2.gguf", "m-00000-of-00000.gguf"):
        assert shard_names(name) == [name]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct:q4_1"),
        ("qwen3-0.6b-q8_0.gguf", "qwen3-0.6b:q8_0"),
        ("Llama-3.2-1B-IQ3_XS-00001-of-00002.gguf", "llama-3.2-1b:iq3_xs"),
        ("phi-4-mini-BF16.gguf", "phi-4-mini:bf16"),
        ("mistral-7b.gguf", "mistral-7b:latest"),
        ("noextension", "noextension:latest"),
        ("q4_0.gguf", "q4_0:latest"),
        ("a:b:c.gguf", "a-b-c:latest"),
    ],
)
def test_names_to_install_under(file: str, name: str) -> None:
    assert model_name(name_for(file)) == name
