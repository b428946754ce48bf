"""Every layout of old files computes what transformers does with the same weights, in 32 bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from myllm_ctransformers.engine import CTransformersEngine
from myllm_ctransformers.header import read_header

from myllm_core import Sampling, Sequence
from myllm_core.errors import IntegrityError
from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from . import legacy_models as legacy  # noqa: E402 - what it makes needs torch

EXACT, PACKED, TURNED = 0.02, 0.4, 0.05
"""Largest differences of log probabilities: the library has keys, values and GELU in 16 bits; rounds to 8 bits what it
multiplies with packed weights; and turns the rest of a head too, a little, where only a part has positions."""
PROMPT, NEW = 40, 16


def _load(path: Path, **options: Any) -> CTransformersEngine:
    model = model_of(path, format="gguf" if path.suffix == ".gguf" else "ggml")
    assert CTransformersEngine.probe(model).score > 0
    given = load_options(CTransformersEngine, {"n_threads": 1}, options)
    return CTransformersEngine.load(model, given, lambda fraction: None)


def _written(engine: CTransformersEngine, prompt: list[int]) -> tuple[list[int], list[dict[int, float]]]:
    size = engine.facts.vocab_size
    engine.add(Sequence(1, prompt, Sampling(temperature=0), NEW, logprobs=size))
    outs = []
    while len(outs) < NEW:
        outs += engine.step()
    return [out.token for out in outs[:NEW]], [dict(out.top) for out in outs[:NEW]]


def _compare(path: Path, reference: Any, tolerance: float, **options: Any) -> None:
    """Greedy tokens are transformers', or as likely within the tolerance; so are all log probabilities."""
    engine = _load(path, **options)
    try:
        size = engine.facts.vocab_size
        prompt = [int(token) for token in np.random.default_rng(3).integers(3, size - 1, PROMPT)]
        tokens, found = _written(engine, prompt)
    finally:
        engine.close()
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + tokens])).logits[0, PROMPT - 1 : -1]
        wanted = torch.log_softmax(logits.float(), -1).numpy()
    ours = np.array([[row[token] for token in range(size)] for row in found])
    assert np.abs(ours - wanted).max() < tolerance and np.abs(ours - wanted).mean() < tolerance / 4
    chosen = wanted[np.arange(NEW), tokens]
    assert (chosen > wanted.max(-1) - 2 * tolerance).all()
    assert wanted.max(-1).min() - wanted.mean() > 20 * EXACT, "these weights would agree with any others"


Make = Callable[..., legacy.Made]
LAYOUTS: tuple[Make, ...] = (
    legacy.gptj, legacy.gptneox, legacy.mpt, legacy.gpt2, legacy.starcoder, legacy.llama,
)  # fmt: skip
CASES: dict[str, tuple[Make, dict[str, Any], float]] = {
    "gptj": (legacy.gptj, {}, EXACT),
    "gptj, some of a head with positions": (legacy.gptj, {"rotated": 8}, TURNED),
    "gptneox": (legacy.gptneox, {}, EXACT),
    "gptneox, some of a head with positions": (legacy.gptneox, {"rotated": 4}, TURNED),
    "gptneox, one part after the other": (legacy.gptneox, {"parallel": False}, EXACT),
    "mpt": (legacy.mpt, {}, EXACT),
    "mpt, clipped": (legacy.mpt, {"heads": 2, "clip": 1.0}, EXACT),
    "gpt2": (legacy.gpt2, {}, EXACT),
    "starcoder": (legacy.starcoder, {}, EXACT),
    "starcoder, keys for each head": (legacy.starcoder, {"one_key": False}, EXACT),
    "llama ggmf": (legacy.llama, {"magic": b"fmgg", "version": 1}, EXACT),
    "llama ggjt 1": (legacy.llama, {"version": 1}, EXACT),
    "llama ggjt 2": (legacy.llama, {"version": 2}, EXACT),
    "llama ggjt 3": (legacy.llama, {"version": 3}, EXACT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    make, arguments, tolerance = CASES[name]
    data, model = make(**arguments)
    path = tmp_path / f"{name.split()[0].strip(',')}.bin"
    path.write_bytes(data)
    _compare(path, model, tolerance)


@pytest.mark.parametrize("ftype", [legacy.F16, legacy.Q8_0, legacy.Q4_0])
@pytest.mark.parametrize("make", LAYOUTS)
def test_packed_weights_are_unpacked_as_they_were_packed(make: Make, ftype: int, tmp_path: Path) -> None:
    data, model = make(ftype)
    path = tmp_path / f"{make.__name__}.bin"
    path.write_bytes(data)
    _compare(path, model, EXACT if ftype == legacy.F16 else PACKED)


@pytest.mark.parametrize("large", [False, True])
def test_falcon(large: bool, tmp_path: Path) -> None:
    path = tmp_path / "falcon.gguf"
    _compare(path, legacy.falcon(path, large=large), EXACT)


def test_dolly_is_a_neox_with_words_of_its_own(tmp_path: Path) -> None:
    data, model = legacy.gptneox()
    path = tmp_path / "some.bin"
    path.write_bytes(data)
    assert read_header(path).kind == "gptneox"
    _compare(path, model, EXACT, model_type="dolly-v2")
    path.write_bytes(data.replace(struct.pack("<I", 4) + b" waa", struct.pack("<I", 7) + b"### End", 1))
    header = read_header(path)
    assert header.kind == "dolly-v2" and header.control["### End"] == 256
    engine = _load(path)
    try:
        assert engine.tokenize("### End", True) == [256]
        assert 256 not in engine.tokenize("### End", False) and 256 in engine.facts.eos_tokens
    finally:
        engine.close()


def test_starcoder_is_told_by_its_words(tmp_path: Path) -> None:
    data, _ = legacy.starcoder()
    path = tmp_path / "some.bin"
    path.write_bytes(data)
    assert read_header(path).kind == "gpt2"
    path.write_bytes(data.replace(struct.pack("<I", 4) + b" waa", struct.pack("<I", 12) + b"<fim-prefix>", 1))
    header = read_header(path)
    assert header.kind == "starcoder"
    engine = _load(path)
    try:
        assert engine.tokenize("<fim-prefix>", True) == [256] and 256 not in engine.tokenize("<fim-prefix>", False)
    finally:
        engine.close()


def test_words_are_found_in_text(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for make in (legacy.gptj, legacy.gptneox, legacy.mpt, legacy.starcoder, legacy.llama):
        path.write_bytes(make()[0])
        engine = _load(path)
        for text in ("plain wab wac", "tab\tand\nlines", "é ✓ 漢字", " led by a space"):
            tokens = engine.tokenize(text, False)
            assert b"".join(map(engine.piece, tokens)) == text.encode()
        engine.close()


def test_words_of_falcon_are_found_in_text(tmp_path: Path) -> None:
    path = tmp_path / "falcon.gguf"
    legacy.falcon(path)
    engine = _load(path)
    try:
        assert engine.tokenize("a wab", False) == [ord("a"), *b" wab"]  # its vocabulary has no such merges
        for text in ("tab\tand\nlines", "é ✓ 漢字", " led by a space", "<|endoftext|>"):
            tokens = engine.tokenize(text, False)
            assert b"".join(map(engine.piece, tokens)) == text.encode() and legacy.VOCABULARY - 1 not in tokens
        assert engine.tokenize("<|endoftext|>", True) == [legacy.VOCABULARY - 1]
    finally:
        engine.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for more: threads would only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<i", value) + data[at + 4 :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: legacy.llama(magic=b"lmgg")[0], "without version"),
        (lambda: legacy.llama(legacy.Q8_0, version=2)[0], "packed before"),
        (lambda: legacy.llama(legacy.Q8_0, b"fmgg", 1)[0], "packed before"),
        (lambda: _changed(legacy.llama()[0], 28, 8), "don't fit together"),
        (lambda: _changed(legacy.gptj()[0], 24, 40), "n_rot"),
        (lambda: _changed(legacy.gptneox()[0], 24, 3), "n_rot"),
        (lambda: _changed(legacy.mpt()[0], 24, 0), "ALiBi"),
        (lambda: legacy.mpt()[0].replace(struct.pack("<I", 1) + b"A", struct.pack("<I", 1) + b"\xff", 1), "UTF-8"),
    ],
)
def test_what_the_library_fails_or_crashes_at_is_refused(data: Callable[[], bytes], said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data())
    support = CTransformersEngine.probe(model_of(path, format="ggml"))
    assert support.score == 0 and said in support.reason
    with pytest.raises(IntegrityError, match=said):
        _load_unasked(path)


def test_a_later_falcon_is_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "falcon.gguf"
    legacy.falcon(path, readable=False)
    support = CTransformersEngine.probe(model_of(path, format="gguf"))
    assert support.score == 0 and "llamacpp" in support.reason


def _load_unasked(path: Path) -> None:
    given = load_options(CTransformersEngine, {"n_threads": 1}, {})
    CTransformersEngine.load(model_of(path, format="ggml"), given, lambda fraction: None)
