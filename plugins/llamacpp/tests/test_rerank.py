"""Rerankers: a score for each document, by the head that the model's file has."""

from __future__ import annotations

import asyncio
import hashlib
import shutil

import gguf
import numpy as np
import pytest
from myllm_llamacpp.context import Context, ContextSize
from myllm_llamacpp.model import POOLING
from myllm_llamacpp.options import LoadSettings

from myllm_core.errors import ContextLengthError, UnsupportedError
from myllm_core.models.manifest import Manifest, ModelFile, write_manifest
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings

DOCUMENTS = ["hello world", "cat sat", "hello cats", "world"]


def test_scores_are_what_the_head_makes_of_the_first_token(load, tiny):
    engine = load(tiny["reranker"]).engine
    assert engine.facts.capabilities == {"rerank"}
    made = engine.rerank("hello cat", DOCUMENTS)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny["reranker"]).tensors}
    model = engine._model
    pooled = next(number for number, name in POOLING.items() if name == "cls")
    context = Context(model, ContextSize(64, 64, 1, True, pooled), LoadSettings.parse({}))
    try:
        for document, score in zip(DOCUMENTS, made.scores, strict=True):
            context.clear()
            context.batch.clear()
            context.batch.add(np.array(model.tokenize_pair("hello cat", document), np.int32), 0, 0, "all")
            assert context.decode() == 0
            hidden = np.tanh(tensors["cls.weight"] @ context.pooled_embedding(0) + tensors["cls.bias"])
            expected = (tensors["cls.output.weight"] @ hidden + tensors["cls.output.bias"]).item()
            assert score == pytest.approx(expected, abs=2e-2)
    finally:
        context.close()
    assert max(made.scores) - min(made.scores) > 0.1, "the documents differ"


def test_a_pair_has_what_separates_texts_and_no_control_token_of_a_text(load, tiny):
    model = load(tiny["reranker"]).engine._model
    cls, sep, hello, world = 2, 3, 4, 5
    assert model.tokenize_pair("hello", "world") == [cls, hello, sep, world, sep]
    assert model.tokenize_pair("hello [SEP]", "world").count(sep) == 2


def test_many_documents_have_the_scores_of_each_alone(load, tiny):
    engine = load(tiny["reranker"]).engine
    together = engine.rerank("hello cat", DOCUMENTS * 20)
    assert together.prompt_tokens == 20 * engine.rerank("hello cat", DOCUMENTS).prompt_tokens
    for index, document in enumerate(DOCUMENTS):
        [alone] = engine.rerank("hello cat", [document]).scores
        assert together.scores[index::4] == pytest.approx([alone] * 20, abs=1e-2)


def test_what_a_reranker_cant(load, tiny):
    engine = load(tiny["reranker"]).engine
    with pytest.raises(UnsupportedError, match="makes no embeddings"):
        engine.embed(["hello"])
    with pytest.raises(ContextLengthError, match="the model takes 32"):
        engine.rerank("hello", ["world", "cat " * 40])
    assert len(engine.rerank("hello", ["world"]).scores) == 1
    with pytest.raises(UnsupportedError, match="reranker"):
        load(tiny["bert"]).engine.rerank("hello", ["world"])


@pytest.mark.parametrize(("kind", "by"), [("reranker", "model"), ("bert", "embeddings")])
def test_the_runtime_takes_the_models_own_scores_where_it_has_some(load, tiny, tmp_path, kind, by):
    folder = tmp_path / "models" / "tiny@latest"
    folder.mkdir(parents=True)
    file = shutil.copy(tiny[kind], folder / "tiny.gguf")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    write_manifest(
        folder / "manifest.json", Manifest("tiny:latest", "gguf", (ModelFile(file.name, file.stat().st_size, digest),))
    )

    async def ask():
        async with Runtime(Settings(models_dir=tmp_path / "models", data_dir=tmp_path)) as runtime:
            return await runtime.rerank("tiny", "hello cat", DOCUMENTS * 10)

    made = asyncio.run(ask())
    assert made.by == by and len(made.scores) == 40 and made.prompt_tokens > 40
    if by == "model":
        own = load(tiny[kind]).engine.rerank("hello cat", DOCUMENTS).scores
        assert made.scores == pytest.approx(own * 10, abs=1e-2)
    else:
        assert all(-1.001 <= score <= 1.001 for score in made.scores)
