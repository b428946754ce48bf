"""The engine keeps the contract of every engine, with each kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest
from myllm_onnx.engine import OnnxEngine

from myllm_core.testing import EngineCase, EngineContract, model_of

pytestmark = pytest.mark.timeout(600)  # the models are made when they are first needed
SMALL = {"max_length": 640, "max_batch_size": 3, "intra_op_num_threads": 1}


def case_of(folder: Path) -> EngineCase:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.suffix != ".onnx")
    return EngineCase(OnnxEngine, model_of(*files, format="onnx"), SMALL, patience=120)


class TestGenai(EngineContract):
    @pytest.fixture
    def case(self, smollm2_genai: Path) -> EngineCase:
        return case_of(smollm2_genai)


class TestDecoder(EngineContract):
    @pytest.fixture
    def case(self, tiny_onnx: Path) -> EngineCase:
        return case_of(tiny_onnx)


class TestEmbedding(EngineContract):
    @pytest.fixture
    def case(self, minilm_onnx: Path) -> EngineCase:
        return case_of(minilm_onnx)
