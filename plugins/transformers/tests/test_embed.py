"""Embeddings are those of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from myllm_core import Sequence
from myllm_core.errors import ContextLengthError, InvalidRequest, UnsupportedError
from myllm_core.types import Sampling
from support.vectors import assert_vectors_agree, cosine


def test_vectors_are_those_of_sentence_transformers(load, minilm: Path):
    engine = load(minilm).engine
    assert engine.facts.capabilities == {"embed"}
    assert engine.facts.context_size == 256  # sentence_bert_config.json says so
    assert_vectors_agree(engine, 1e-6)


def test_what_is_too_long_is_refused_by_its_number(load, minilm: Path):
    engine = load(minilm).engine
    with pytest.raises(ContextLengthError) as error:
        engine.embed(["short", "word " * 300])
    assert error.value.data == {"input": 1, "prompt_tokens": 302, "context_size": 256}
    with pytest.raises(InvalidRequest):
        engine.embed(["short", ""])
    with pytest.raises(UnsupportedError):
        engine.add(Sequence(1, [5], Sampling(), 1))


@pytest.mark.parametrize(
    ("pooling", "normalised"),
    [("cls_token", True), ("max_tokens", True), ("mean_sqrt_len_tokens", False), ("lasttoken", False)],
)
def test_the_model_s_own_files_say_how_vectors_are_pooled(load, minilm: Path, tmp_path: Path, pooling, normalised):
    import torch

    folder = tmp_path / "copy"
    shutil.copytree(minilm, folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules if normalised else modules[:2]))
    engine = load(folder).engine
    texts = ["a cat", "a much longer text about a dog"]
    vectors = torch.tensor(engine.embed(texts).vectors)
    module = engine._parts.embedder._encode.__self__._model.module
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([engine._parts.tokenizer.tokenize_whole(text)])
        with torch.no_grad():
            [states] = module(input_ids=ids).last_hidden_state
        expected = {
            "cls_token": states[0],
            "max_tokens": states.amax(0),
            "mean_sqrt_len_tokens": states.sum(0) / len(states) ** 0.5,
            "lasttoken": states[-1],
        }[pooling]
        expected = expected / expected.norm() if normalised else expected
        assert torch.allclose(vector, expected, atol=1e-5)


def test_a_module_that_isn_t_known_is_named(load, minilm: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(minilm, folder)
    modules = [*json.loads((folder / "modules.json").read_text()), {"path": "3_Dense", "type": "x.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="Dense"):
        load(folder)


def test_a_chat_model_makes_embeddings_too(shared):
    same, other, different = shared.embed(["The cat sleeps.", "The cat is asleep.", "Interest rates rose."]).vectors
    assert len(same) == 576
    assert cosine(same, other) > cosine(same, different)
