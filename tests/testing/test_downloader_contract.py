"""The kit for downloaders: a sound one passes, and every check fails for one that breaks its rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core.testing import DownloaderContract
from support.kit import assert_each_check_fails, assert_passes, faults_of, write_site

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


def test_a_sound_downloader_passes(site: Path) -> None:
    assert_passes(site, "test_downloaders.py::TestSound", DownloaderContract)


def test_every_check_fails_for_a_downloader_that_breaks_its_rule(site: Path) -> None:
    expected = faults_of("faulty_downloaders", site)
    assert_each_check_fails(site, "test_downloaders.py", expected, DownloaderContract)
