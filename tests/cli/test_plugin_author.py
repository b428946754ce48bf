"""The author's path: ``plugins new`` writes a plugin that works, ``plugins check`` tests one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from myllm_cli.plugin_check import _references
from myllm_core.errors import InvalidRequest
from myllm_core.plugins import load_plugins
from support.kit import TESTING, write_site

ROOT = Path(__file__).parents[2]
STORE = ROOT / "docs" / "examples" / "myllm-echo" / "myllm_echo" / "store.py"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a process needs to use the plugins in ``tmp_path / "site"``, and data of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MYLLM_", "PYTEST_"))}
    places = {"MYLLM_MODELS_DIR": "models", "MYLLM_DATA_DIR": "data", "MYLLM_CONFIG": "config.toml"}
    paths = {name: str(tmp_path / place) for name, place in places.items()}
    return kept | paths | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(TESTING)]), "COLUMNS": "100"}


def myllm(environment: dict[str, str], *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "myllm_cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 or done.stdout else done.stderr


def install(project: Path, site: Path) -> None:
    """Build the wheel, and put it where the test's processes look."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=project, check=True, capture_output=True, timeout=60)
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


@pytest.mark.parametrize(
    ("kind", "subjects"),
    [("engine", {"engine", "downloader"}), ("downloader", {"downloader"}), ("store", {"store"})],
)
def test_a_new_plugin_passes_its_tests_and_the_check(
    environment: dict[str, str], tmp_path: Path, kind: str, subjects: set[str]
) -> None:
    project, name = tmp_path / "project", f"my-{kind}"
    myllm(environment, "plugins", "new", name, "--kind", kind, "--dir", str(project))
    install(project, tmp_path / "site")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not worker"]  # the check runs those
    done = subprocess.run(tests, cwd=project, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    if kind == "engine":
        myllm(environment, "pull", name)
        assert myllm(environment, "run", name, "Hello  there").rstrip("\n") == "Hello  there"
    report = json.loads(myllm(environment, "plugins", "check", name, "--json"))
    assert report["ok"] is True
    assert {check["subject"].split()[0] for check in report["checks"]} == {"plugin", *subjects}
    ran = [check for check in report["checks"] if check["outcome"] == "ok"]
    assert len(ran) > {"engine": 35, "downloader": 3, "store": 35}[kind]


def test_the_engine_of_a_new_plugin_is_short(environment: dict[str, str], tmp_path: Path) -> None:
    myllm(environment, "plugins", "new", "tiny", "--dir", str(tmp_path / "tiny"))
    text = (tmp_path / "tiny" / "myllm_tiny" / "engine.py").read_text()
    assert len(text.splitlines()) < 60
    for path in (tmp_path / "tiny").rglob("*.py"):
        assert "@" not in re.sub(r"@(hookimpl|classmethod|property|pytest\.fixture)", "", path.read_text())


def test_the_store_of_a_new_plugin_is_the_example(environment: dict[str, str], tmp_path: Path) -> None:
    myllm(environment, "plugins", "new", "memory", "--kind", "store", "--dir", str(tmp_path / "new"))
    written = (tmp_path / "new" / "myllm_memory" / "store.py").read_text()
    assert written.splitlines()[1:] == STORE.read_text().splitlines()[1:]


@pytest.mark.parametrize("name", ["Upper", "a b", "../up", "-a", "a_b", "", "1st", "x" * 31])
def test_a_name_that_cant_be_a_package_is_refused(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    said = myllm(environment, "plugins", "new", "--dir", str(tmp_path / "new"), "--", name, code=2)
    assert "can't be a plugin's name" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["builtin", "taken"])
def test_the_name_of_an_installed_plugin_is_refused(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    write_site(tmp_path / "site", {"taken": ""})
    said = myllm(environment, "plugins", "new", name, "--dir", str(tmp_path / "new"), code=2)
    assert f"a plugin named {name} is installed already" in said
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_never_written_over(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "pyproject.toml").write_text("mine")
    assert "is there already" in myllm(environment, "plugins", "new", "x", "--dir", str(tmp_path / "new"), code=2)
    assert (tmp_path / "new" / "pyproject.toml").read_text() == "mine"


FAULTY = """
from myllm_core import hookimpl
from faulty_downloaders import Sound

class Breaks(Sound):
    name = "breaks"
    schemes = frozenset({"breaks"})
    def resolve(self, reference):
        return {}["nothing"]

@hookimpl
def myllm_downloaders():
    from faulty_downloaders import PrintsWhenMade
    return [PrintsWhenMade, Breaks]

@hookimpl
def myllm_engines():
    from sound_engines import SoundMessages
    return [SoundMessages]
"""


def test_a_faulty_plugin_fails_and_says_where(environment: dict[str, str], tmp_path: Path) -> None:
    write_site(tmp_path / "site", {"faulty": FAULTY, "broken": "raise RuntimeError('no good')"})
    said = myllm(environment, "plugins", "check", "faulty", "--reference", "printswhenmade:tiny", code=1)
    assert re.search(r"^downloader printswhenmade$", said, re.MULTILINE)
    assert re.search(r"^  FAILED +the plugin prints nothing when it is asked: .*standard output", said, re.MULTILINE)
    assert re.search(r"^  ok +the source resolves to the same$", said, re.MULTILINE)
    assert re.search(r"^  skipped +what isnt there is not found: no references", said, re.MULTILINE)
    assert re.search(r"^  skipped +all: no model of its formats \(sound\) is installed", said, re.MULTILINE)
    assert re.search(r"\d+ ok, \d+ skipped, 1 failed$", said.rstrip())
    said = myllm(environment, "plugins", "check", "faulty", "--reference", "breaks:tiny", code=1)
    assert re.search(r"^  FAILED +a reference becomes files: .*KeyError.* \(at faulty\.py:9\)$", said, re.MULTILINE)
    broken = json.loads(myllm(environment, "plugins", "check", "broken", "--json", code=1))
    assert broken["ok"] is False and "no good" in broken["checks"][0]["reason"]


OBEDIENT = """
from myllm_core import LoadOption, hookimpl
from sound_engines import SoundMessages

class Obedient(SoundMessages):
    name = "obedient"
    formats = frozenset({"echo"})
    load_options = (LoadOption("n_ctx", 4096, "tokens"),)
    @classmethod
    def load(cls, model, options, progress):
        raise RuntimeError(f"a context of {options['n_ctx']}")

@hookimpl
def myllm_engines():
    return [Obedient]
"""


def test_engines_are_checked_with_the_load_options_that_are_given(environment: dict[str, str], tmp_path: Path) -> None:
    write_site(tmp_path / "site", {"obedient": OBEDIENT})
    said = myllm(environment, "plugins", "check", "obedient", "--load-option", "n_ctx=512", code=2)
    assert "none of the plugin's engines is tested" in said
    myllm(environment, "pull", "echo")
    said = myllm(environment, "plugins", "check", "obedient", "--load-option", "n_ctx=512", code=1)
    assert re.search(r"^  FAILED +the facts are sane: .*a context of 512", said, re.MULTILINE)
    said = myllm(environment, "plugins", "check", "obedient", "--load-option", "ctx=512", code=2)
    assert said == "Error: the engine obedient has no load option ctx; known: n_ctx\n"


def test_a_catalogue_may_name_what_other_plugins_fetch() -> None:
    plugins = load_plugins(warn=lambda text: None)
    builtin, *_ = plugins.entries(load=True)
    assert builtin.name == "builtin" and "catalog" in builtin.offers
    assert _references(plugins, builtin, None) == {}
    assert _references(plugins, builtin, "file:a/b.gguf") == {"file": "file:a/b.gguf"}
    with pytest.raises(InvalidRequest, match="takes hf:a/b"):
        _references(plugins, builtin, "hf:a/b")


def test_a_check_of_what_isnt_there(environment: dict[str, str]) -> None:
    assert "no plugin named none" in myllm(environment, "plugins", "check", "none", code=3)
    said = myllm(environment, "plugins", "check", "echo", "--model", "none", code=3)
    assert "the model none is not installed" in said
    assert "takes nothing:" in myllm(environment, "plugins", "check", "echo", "--reference", "nothing:x", code=2)
