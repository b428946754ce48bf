"""Replies and vectors: as llama.cpp's and sentence-transformers' are, whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from myllm_onnx.engine import OnnxEngine

from myllm_core import TokenEngine
from myllm_core.chat.pipeline import Preparer, all_pieces
from myllm_core.engine import Engine, Sequence
from myllm_core.errors import ContextLengthError
from myllm_core.testing import EngineCase, model_of
from myllm_core.testing.engine.given import GREEDY, ask, ask_together, question
from myllm_core.types import Grammar, Sampling

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]  # the models are made when they are first needed

Written = list[tuple[int, float]]
"""Tokens and their log probabilities."""

PATIENCE = 300.0
SAME = 0.02
"""Of log probabilities: what another order of sums may change."""
PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Name three colours, and why you like them.",
)


def load(engine: type[Engine], paths: list[Path], format: str, **options: Any) -> Any:
    paths.sort(key=lambda path: path.suffix != ".onnx")
    return EngineCase(engine, model_of(*paths, format=format), options).load()


def onnx(folder: Path, **options: Any) -> OnnxEngine:
    files = [path for path in folder.rglob("*") if path.is_file()]
    loaded: OnnxEngine = load(OnnxEngine, files, "onnx", intra_op_num_threads=1, max_length=1024, **options)
    return loaded


@pytest.fixture(scope="module")
def genai(smollm2_genai: Path) -> Iterator[OnnxEngine]:
    engine = onnx(smollm2_genai)
    yield engine
    engine.close()


@pytest.fixture
def tiny(tiny_onnx: Path) -> Iterator[OnnxEngine]:
    engine = onnx(tiny_onnx, chunk_size=7)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def llamacpp(smollm2_f32_gguf: Path) -> Iterator[TokenEngine]:
    pytest.importorskip("llama_cpp")
    from myllm_llamacpp.engine import LlamaCppEngine

    engine = load(
        LlamaCppEngine, [smollm2_f32_gguf], "gguf", n_ctx=1024, n_threads=1, cache_disk=0, type_k="f32", type_v="f32"
    )
    yield engine
    engine.close()


def prompt(engine: TokenEngine, text: str) -> list[int]:
    return Preparer(engine.facts, engine.tokenize, lambda: all_pieces(engine)).prepare(question(text)).tokens


def test_prompts_have_the_same_tokens_as_with_llamacpp(genai, llamacpp):
    texts = [*PROMPTS, "Grüße 漢字 👋🏽 1234  x\n\n<|im_end|>", "def f(x):\n\treturn x + 10**3", "\u00a0 don't  \r\n"]
    for text in texts:
        assert prompt(genai, text) == prompt(llamacpp, text)
    assert {2} <= genai.facts.eos_tokens <= llamacpp.facts.eos_tokens
    assert set(genai.facts.special_tokens) == set(llamacpp.facts.special_tokens)
    assert all_pieces(genai) == all_pieces(llamacpp)


def test_greedy_replies_are_llamacpps(smollm2_onnx, llamacpp):
    engine = onnx(smollm2_onnx)
    try:
        requests = [question(text, max_tokens=32, logprobs=2) for text in PROMPTS]
        together = ask_together(engine, requests, PATIENCE)
    finally:
        engine.close()
    for request, found in zip(requests, together, strict=True):
        wanted = ask(llamacpp, request, PATIENCE)
        for one, other in zip(found.positions, wanted.positions, strict=False):
            if one.chosen.bytes != other.chosen.bytes:  # two tokens that rounding can't tell apart
                assert all(p.top[0].logprob - p.top[1].logprob < SAME for p in (one, other))
                break
            assert abs(one.chosen.logprob - other.chosen.logprob) < SAME
        else:
            assert found.text == wanted.text


@pytest.mark.parametrize("seed", range(8))
def test_json_follows_its_schema(genai, seed):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    request = question(
        "Describe a person as JSON.",
        sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed),
        grammar=Grammar("json_schema", json.dumps(schema)),
        max_tokens=200,
    )
    reply = ask(genai, request, PATIENCE)
    assert reply.ended_well().reason == "stop" and set(json.loads(reply.text)) == {"name", "age"}


def run(
    engine: TokenEngine, prompts: dict[int, list[int]], tokens: int, cancel: int = 0
) -> dict[int, list[tuple[int, float]]]:
    """What sequences write side by side; one may be dropped when it has written two."""
    found: dict[int, list[tuple[int, float]]] = {number: [] for number in prompts}
    for number, ids in prompts.items():
        engine.add(Sequence(number, ids, GREEDY, tokens, logprobs=2))
    left = set(prompts)
    while left:
        for out in engine.step():
            assert out.error is None, out.error
            found[out.sequence_id].append((out.token, out.logprob))
            if len(found[out.sequence_id]) == (2 if out.sequence_id == cancel else tokens):
                engine.cancel(out.sequence_id)
                left.discard(out.sequence_id)
    return found


def same(one: Written, other: Written) -> bool:
    return bool(np.allclose(one, other, rtol=0, atol=1e-3))


def test_what_else_is_in_the_batch_changes_nothing(tiny):
    prompts = {
        number: list(range(100 * number, 100 * number + length)) for number, length in ((1, 3), (2, 40), (3, 18))
    }
    alone = {number: run(tiny, {number: ids}, 12)[number] for number, ids in prompts.items()}
    together = run(tiny, prompts, 12, cancel=2)
    assert same(together[1], alone[1]) and same(together[3], alone[3])


def test_what_was_read_is_kept_for_prompts_that_begin_alike(tiny):
    ids = list(range(500, 560))
    first = run(tiny, {1: ids}, 6)[1]
    tiny.add(Sequence(2, [*ids, first[0][0], 77, 78], GREEDY, 4))
    outs = [out for _ in range(3) for out in tiny.step()]
    assert outs[0].cached_tokens == len(ids) + 1
    tiny.cancel(2)
    assert same(run(tiny, {3: ids}, 6)[3], first)


def test_a_long_prompt_doesnt_hold_up_others(tiny):
    tiny.add(Sequence(1, [5, 6, 7], GREEDY, 100))
    assert [out.sequence_id for out in tiny.step()] == [1]
    tiny.add(Sequence(2, list(range(70)), GREEDY, 100))
    for _ in range(9):
        assert [out.sequence_id for out in tiny.step()] == [1]
    assert [out.sequence_id for out in tiny.step()] == [1, 2]


def test_vectors_are_sentence_transformers(minilm_onnx, minilm):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = ["A cat sits on the mat.", "Die Gezeiten des Meeres", "漢字 👋🏽", "x", " ".join(["word"] * 200)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    engine = onnx(minilm_onnx)
    try:
        found = np.array(engine.embed(texts).vectors)
        with pytest.raises(ContextLengthError):
            engine.embed(["word " * 300])
    finally:
        engine.close()
    for text, vector in zip(texts, found, strict=True):  # the mean over a text's tokens, of length 1, as 1_Pooling says
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
        assert float(wanted @ vector) > 1 - 1e-4
        assert abs(np.linalg.norm(vector) - 1) < 1e-5
