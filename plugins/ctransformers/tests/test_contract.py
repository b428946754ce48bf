"""The engine keeps the contract of every engine, on the real model in a file of 2023."""

from __future__ import annotations

from pathlib import Path

import pytest
from myllm_ctransformers.engine import CTransformersEngine

from myllm_core.testing import EngineCase, EngineContract, model_of


@pytest.mark.model
class TestCTransformers(EngineContract):
    @pytest.fixture
    def case(self, early: Path) -> EngineCase:
        model = model_of(early, format="gguf", family="llama")
        return EngineCase(CTransformersEngine, model, {"n_ctx": 512, "n_threads": 1}, patience=120)
