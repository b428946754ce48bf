"""The kit for session stores: a sound one passes, and every check fails for one that breaks its rule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from myllm_core.testing import SessionStoreContract
from support.kit import TESTING, run_kit, write_site

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


def contract() -> set[str]:
    return {name for name in dir(SessionStoreContract) if name.startswith("test_")}


def test_each_check_passes_for_a_sound_store_and_fails_for_a_faulty_one(site: Path) -> None:
    sys.path.insert(0, str(TESTING))
    try:
        from faulty_stores import FAULTS
    finally:
        del sys.path[0]
    expected = {(owner, test): words for owner, tests in FAULTS.items() for test, words in tests.items()}
    expected["ImportsAtOnce", "test_importing_the_plugin_is_light"] = "importing the plugin imports ray"
    expected["ImportsAtOnce", "test_the_plugin_prints_nothing_when_it_is_asked"] = "standard output"
    assert {test for _, test in expected} == contract(), "each check needs a store that breaks its rule"
    faulty = [f"test_stores.py::Test{owner}::{test}" for owner, test in expected]
    results = run_kit(site, "test_stores.py::TestSound", *faulty)
    assert {test: results["Sound", test][0] for test in contract()} == dict.fromkeys(contract(), "passed")
    assert {key for key in expected if results[key][0] != "failure"} == set()
    assert {key: results[key] for key, words in expected.items() if words not in results[key][1]} == {}


def test_a_kit_without_a_store_passes_nothing(site: Path) -> None:
    results = run_kit(site, "test_stores.py::TestNothing")
    assert {test: results["Nothing", test][0] for test in contract()} == dict.fromkeys(contract(), "error")
