"""The engine keeps the contract of every engine, with each kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest
from myllm_onnx.engine import OnnxEngine

from myllm_core.testing import EngineCase, EngineContract
from support.cases import case_in

pytestmark = pytest.mark.timeout(600)  # the models are made when they are first needed
SMALL = {"max_length": 640, "max_batch_size": 3, "intra_op_num_threads": 1}


class TestGenai(EngineContract):
    @pytest.fixture
    def case(self, smollm2_genai: Path) -> EngineCase:
        return case_in(smollm2_genai, OnnxEngine, SMALL)


class TestDecoder(EngineContract):
    @pytest.fixture
    def case(self, tiny_onnx: Path) -> EngineCase:
        return case_in(tiny_onnx, OnnxEngine, SMALL)


class TestEmbedding(EngineContract):
    @pytest.fixture
    def case(self, minilm_onnx: Path) -> EngineCase:
        return case_in(minilm_onnx, OnnxEngine, SMALL)
