"""All tests that an engine needs: the kit's."""

import pytest
from myllm_echo.engine import EchoEngine

from myllm_core.testing import EngineCase, EngineContract, model_of


class TestEcho(EngineContract):
    @pytest.fixture
    def case(self, tmp_path):
        file = tmp_path / "echo.txt"
        file.write_text("echo\n")
        return EngineCase(EchoEngine, model_of(file, format="echo"))
