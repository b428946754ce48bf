"""The engine keeps the contract of every engine, on the real test model."""

from __future__ import annotations

from pathlib import Path

import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.testing import EngineCase, EngineContract, model_of


class TestLlamaCpp(EngineContract):
    @pytest.fixture
    def case(self, smollm2_gguf: Path) -> EngineCase:
        # A cache for each sequence: in a shared one the others' tokens change the rounding, and with it close choices.
        options = {"n_ctx": 768, "n_parallel": 3, "n_threads": 1, "kv_unified": False, "cache_disk": 0, "cache_ram": 0}
        return EngineCase(LlamaCppEngine, model_of(smollm2_gguf, format="gguf"), options)
