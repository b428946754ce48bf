"""The engine keeps the contract of every engine, on the real test models."""

from __future__ import annotations

from pathlib import Path

import pytest
from myllm_transformers.engine import TransformersEngine

from myllm_core.testing import EngineCase, EngineContract, model_of
from myllm_core.testing.engine.abilities import AbilityTests
from myllm_core.testing.engine.declared import DeclaredTests

_OPTIONS = {"n_ctx": 320, "max_sequences": 3, "n_threads": 1}
_PATIENCE = 240.0


@pytest.mark.timeout(600)
class TestTransformers(EngineContract):
    @pytest.fixture
    def case(self, smollm2_safetensors: Path) -> EngineCase:
        names = (
            "model.safetensors",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        )
        model = model_of(*(smollm2_safetensors / name for name in names), format="safetensors")
        return EngineCase(TransformersEngine, model, _OPTIONS, _PATIENCE)


class TestEmbeddings(DeclaredTests, AbilityTests):
    """What concerns a model that only makes embeddings."""

    @pytest.fixture
    def case(self, minilm: Path) -> EngineCase:
        names = ("config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
        model = model_of(minilm / "model.safetensors", *(minilm / name for name in names), format="safetensors")
        return EngineCase(TransformersEngine, model, {"n_threads": 1})
