"""The kit for session stores: a sound one passes, and every check fails for one that breaks its rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core.testing import SessionStoreContract
from support.kit import assert_each_check_fails, assert_passes, checks_of, faults_of, run_kit, write_site

PLUGIN = """
from myllm_core import hookimpl

@hookimpl
def myllm_session_stores():
    from faulty_stores import STORES
    return [cls for cls in STORES if " " not in cls.name]
"""
HEAVY_PLUGIN = """
import ray
from myllm_core import hookimpl
from faulty_stores import Sound

print("here I am")

class ImportsAtOnce(Sound):
    name = "imports-at-once"

@hookimpl
def myllm_session_stores():
    return [ImportsAtOnce]
"""
TESTS = """
import pytest
from faulty_stores import STORES
from heavy_plugin import ImportsAtOnce
from myllm_core.testing import SessionStoreContract

class Base(SessionStoreContract):
    cls = None

    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: self.cls.open("", tmp_path)

for cls in (*STORES, ImportsAtOnce):
    globals()["Test" + cls.__name__] = type("Test" + cls.__name__, (Base,), {"cls": cls, "__test__": True})
del cls, Base

class TestNothing(SessionStoreContract):
    pass
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins installed, and the tests of their stores."""
    plugins = {"faulty_plugin": PLUGIN, "heavy_plugin": HEAVY_PLUGIN}
    return write_site(tmp_path_factory.mktemp("site"), plugins, ray="", test_stores=TESTS)


def test_a_sound_store_passes(site: Path) -> None:
    assert_passes(site, "test_stores.py::TestSound", SessionStoreContract)


def test_every_check_fails_for_a_store_that_breaks_its_rule(site: Path) -> None:
    expected = faults_of("faulty_stores", site)
    expected["ImportsAtOnce", "test_the_plugin_prints_nothing_when_it_is_asked"] = "standard output"
    assert_each_check_fails(site, "test_stores.py", expected, SessionStoreContract)


def test_a_kit_without_a_store_passes_nothing(site: Path) -> None:
    results = run_kit(site, "test_stores.py::TestNothing")
    outcomes = {test: outcome for (_, test), (outcome, _) in results.items()}
    assert outcomes == dict.fromkeys(checks_of(SessionStoreContract), "error")
