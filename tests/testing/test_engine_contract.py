"""The kit for engines: sound ones pass, and every check fails for an engine that breaks its rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core.testing import EngineContract
from support.kit import assert_each_check_fails, checks_of, faults_of, run_kit, write_site

SOUND = ("SoundTokens", "SeeingTokens", "SoundMessages", "EmbedsOnly")
PLUGIN = """
from myllm_core import hookimpl

@hookimpl
def myllm_engines():
    from faulty_engines import ENGINES
    from sound_engines import EmbedsOnly, SeeingTokens
    return [EmbedsOnly, SeeingTokens, *ENGINES]
"""
HEAVY_PLUGIN = """
import ray
from myllm_core import hookimpl
from sound_engines import SoundTokens

class ImportsAtOnce(SoundTokens):
    name = "imports-at-once"

@hookimpl
def myllm_engines():
    return [ImportsAtOnce]
"""
TESTS = """
import faulty_engines, heavy_plugin, pytest
from sound_engines import EmbedsOnly, SeeingTokens, SoundMessages, SoundTokens
from myllm_core.options import parse_options
from myllm_core.testing import EngineCase, EngineContract, model_of
from myllm_core.testing.engine import worker

worker._GONE = 2.0  # those who stay, stay

class Base(EngineContract):
    engine_class = None

    @pytest.fixture
    def case(self, tmp_path):
        file = tmp_path / "weights.sound"
        file.write_text("sound\\n")
        return EngineCase(self.engine_class, model_of(file, format="sound"), patience=5)

class Lenient:
    @pytest.fixture(autouse=True)
    def _a_core_that_refuses_nothing(self, monkeypatch):
        from myllm_core.runtime import request
        from myllm_core.types import Sampling
        monkeypatch.setattr(request, "sampling", lambda *args: Sampling())

ALL = [SoundTokens, SeeingTokens, SoundMessages, EmbedsOnly, heavy_plugin.ImportsAtOnce, *faulty_engines.ENGINES[2:]]
for cls in ALL:
    bases = (Lenient, Base) if cls.__name__ == "TakesEverything" else (Base,)
    globals()["Test" + cls.__name__] = type("Test" + cls.__name__, bases, {"engine_class": cls, "__test__": True})
del cls, Base
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins installed, and the tests of their engines."""
    plugins = {"faulty_plugin": PLUGIN, "heavy_plugin": HEAVY_PLUGIN}
    return write_site(tmp_path_factory.mktemp("site"), plugins, ray="", test_engines=TESTS)


def test_sound_engines_pass(site: Path) -> None:
    """In workers too: the echo engine and llama.cpp's show that, by the same class."""
    sound = [f"test_engines.py::Test{name}" for name in SOUND]
    results = run_kit(site, *sound, "-k", "not worker")
    assert {key: value for key, value in results.items() if value[0] not in ("passed", "skipped")} == {}
    ran = {test for (_, test), (outcome, _) in results.items() if outcome == "passed"}
    assert {test for test in checks_of(EngineContract) - ran if "worker" not in test} == set()


def test_every_check_fails_for_an_engine_that_breaks_its_rule(site: Path) -> None:
    assert_each_check_fails(site, "test_engines.py", faults_of("faulty_engines", site), EngineContract)
