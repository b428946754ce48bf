"""What every engine must do: the docstrings of ``Engine`` and ``TokenEngine`` as tests.

::

    from myllm_core.testing import EngineCase, EngineContract, model_of

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def case(self):
            return EngineCase(MyEngine, model_of(Path("tiny.bin"), format="mine"), {"n_ctx": 512})

The plugin must be installed (``pip install -e .``): workers find it by its entry point.
"""

from __future__ import annotations

from myllm_core.testing.engine.abilities import AbilityTests
from myllm_core.testing.engine.answers import AnswerTests
from myllm_core.testing.engine.declared import DeclaredTests
from myllm_core.testing.engine.given import EngineCase, model_of
from myllm_core.testing.engine.sampling import SamplingTests
from myllm_core.testing.engine.tokens import TokenTests
from myllm_core.testing.engine.vision import VisionTests
from myllm_core.testing.engine.worker import WorkerTests

__all__ = ["EngineCase", "EngineContract", "model_of"]


class EngineContract(DeclaredTests, AnswerTests, SamplingTests, TokenTests, AbilityTests, VisionTests, WorkerTests):
    """Subclass it and give the fixture ``case``, an ``EngineCase``; pytest does the rest.

    Tests that don't apply to the engine are skipped, with the reason. The model is loaded a few times in the test's own
    process, and in a worker process for each test of those.
    """
