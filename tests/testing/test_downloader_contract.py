"""The kit for downloaders: a sound one passes, and every check fails for one that breaks its rule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from myllm_core.testing import DownloaderContract
from support.kit import TESTING, run_kit, write_site

PLUGIN = """
from myllm_core import hookimpl

@hookimpl
def myllm_downloaders():
    from faulty_downloaders import DOWNLOADERS
    return DOWNLOADERS[:-1]
"""
HEAVY_PLUGIN = """
import ray
from myllm_core import hookimpl
from faulty_downloaders import Sound

class ImportsAtOnce(Sound):
    name = "imports-at-once"
    schemes = frozenset({"heavy"})

@hookimpl
def myllm_downloaders():
    return [ImportsAtOnce]
"""
TESTS = """
import pytest
from faulty_downloaders import DOWNLOADERS
from heavy_plugin import ImportsAtOnce
from myllm_core.testing import DownloaderCase, DownloaderContract

class Base(DownloaderContract):
    cls = None

    @pytest.fixture
    def case(self):
        scheme = min(self.cls.schemes, default="none")
        return DownloaderCase(self.cls, f"{scheme}:tiny", (f"{scheme}:none",), (f"{scheme}:a/b",))

for cls in (*DOWNLOADERS, ImportsAtOnce):
    globals()["Test" + cls.__name__] = type("Test" + cls.__name__, (Base,), {"cls": cls, "__test__": True})
del cls, Base
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins installed, and the tests of their downloaders."""
    plugins = {"faulty_plugin": PLUGIN, "heavy_plugin": HEAVY_PLUGIN}
    return write_site(tmp_path_factory.mktemp("site"), plugins, ray="", test_downloaders=TESTS)


def contract() -> set[str]:
    return {name for name in dir(DownloaderContract) if name.startswith("test_")}


def test_each_check_passes_for_a_sound_downloader_and_fails_for_a_faulty_one(site: Path) -> None:
    sys.path.insert(0, str(TESTING))
    try:
        from faulty_downloaders import FAULTS
    finally:
        del sys.path[0]
    expected = {(owner, test): words for owner, tests in FAULTS.items() for test, words in tests.items()}
    expected["ImportsAtOnce", "test_importing_the_plugin_is_light"] = "importing the plugin imports ray"
    assert {test for _, test in expected} == contract(), "each check needs a downloader that breaks its rule"
    faulty = [f"test_downloaders.py::Test{owner}::{test}" for owner, test in expected]
    results = run_kit(site, "test_downloaders.py::TestSound", *faulty)
    assert {test: results["Sound", test][0] for test in contract()} == dict.fromkeys(contract(), "passed")
    assert {key for key in expected if results[key][0] == "passed"} == set()
    assert {key: results[key] for key, words in expected.items() if words not in results[key][1]} == {}
