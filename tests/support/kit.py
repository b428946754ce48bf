"""Running a kit in a pytest of its own, on plugins that are installed for it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTING = Path(__file__).parents[1] / "testing"


def write_site(site: Path, plugins: dict[str, str], **files: str) -> Path:
    """A folder that modules (by name) are installed in as plugins; ``files`` are modules that aren't any."""
    info = site / "myllm_faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myllm-faulty\nVersion: 1.0\n")
    points = "".join(f"{name} = {name}\n" for name in plugins)
    (info / "entry_points.txt").write_text(f"[myllm]\n{points}")
    for name, text in (plugins | files).items():
        (site / f"{name}.py").write_text(text)
    return site


def run_kit(site: Path, *arguments: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Outcome and message of each test, by its class and name without parameters; the worst one counts."""
    report = site / "report.xml"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(TESTING)]), "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the kit needs none, and some take seconds to import
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *arguments], cwd=site, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for case in ET.parse(report).iter("testcase"):
        key = (case.get("classname", "").rpartition(".Test")[2], case.get("name", "").partition("[")[0])
        result = case.find("failure") if case.find("failure") is not None else next(iter(case), None)
        outcome = "passed" if result is None or result.tag.startswith("system") else result.tag
        message = "" if result is None else f"{result.get('message')}\n{result.text}"
        if found.get(key, ("passed",))[0] in ("passed", "skipped"):
            found[key] = (outcome, message)
    return found


def checks_of(contract: type[Any]) -> set[str]:
    """The names of a contract's tests."""
    return {name for name in dir(contract) if name.startswith("test_")}


def faults_of(module: str, site: Path) -> dict[tuple[str, str], str]:
    """What the message says, by class and test, when a faulty sample of a module beside the tests breaks its rule."""
    sys.path[:0] = [str(TESTING), str(site)]
    try:
        faults: dict[str, dict[str, str]] = importlib.import_module(module).FAULTS
    finally:
        del sys.path[:2]
    expected = {(owner, test): words for owner, tests in faults.items() for test, words in tests.items()}
    expected["ImportsAtOnce", "test_importing_the_plugin_is_light"] = "importing the plugin imports ray"
    return expected


def assert_each_check_fails(
    site: Path, file: str, expected: Mapping[tuple[str, str], str], contract: type[Any]
) -> None:
    """Each check of a contract has a faulty sample, and fails for it with the words that are expected.

    An error isn't enough: it comes from what a check is given, not from what it asks.
    """
    assert {test for _, test in expected} == checks_of(contract), "each check needs a sample that breaks its rule"
    results = run_kit(site, *(f"{file}::Test{owner}::{test}" for owner, test in expected))
    assert {key: results[key] for key in expected if results[key][0] != "failure"} == {}
    assert {key: results[key] for key, words in expected.items() if words not in results[key][1]} == {}


def assert_passes(site: Path, tests: str, contract: type[Any]) -> None:
    """Every check of a contract passes for a sound sample, and none is skipped."""
    results = run_kit(site, tests)
    assert {test: outcome for (_, test), (outcome, _) in results.items()} == dict.fromkeys(
        checks_of(contract), "passed"
    )
