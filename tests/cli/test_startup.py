"""``--help``, ``list`` and ``show`` start quickly and import no plugin, whatever is installed (K1 to K3)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import COMMAND, Myllm

BROKEN_MODULES = {
    "sleeps": "import time\ntime.sleep(5)\n",
    "raises": "raise ImportError('no such library')\n",
    "leaves": "raise SystemExit(3)\n",
    "prints": "import os\nprint('noise from python')\nos.write(1, b'noise from the descriptor\\n')\n",
    "wrong_syntax": "def f(:\n",
}
UNWANTED = {"rich", "prompt_toolkit", "urllib3", "fastapi", "llama_cpp", "myllm_echo", "pluggy", "myllm_core.plugins"}


def _distribution(folder: Path, name: str, body: str, entry_points: str) -> None:
    (folder / f"plug_{name}.py").write_text(body)
    info = folder / f"plug_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def troubled(with_echo: Myllm) -> Myllm:
    """An installation with plugins that sleep, raise, leave and print while they are imported."""
    folder = with_echo.home / "site"
    folder.mkdir()
    for name, body in BROKEN_MODULES.items():
        points = f"[myllm]\n{name} = plug_{name}\n\n[myllm.commands]\ndo-{name.replace('_', '-')} = plug_{name}:run\n"
        _distribution(folder, name, body, points)
    working = "def run(text: str) -> None:\n    print(text[::-1])\n"
    offers_nothing = "from myllm_core import hookimpl\n\n\n@hookimpl\ndef myllm_catalog():\n    return []\n"
    _distribution(folder, "lacks", offers_nothing, "[myllm]\nlacks = plug_lacks\n")
    with (folder / "plug_lacks-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Requires-Dist: no-such-distribution-here>=1\n")
    _distribution(folder, "works", working, "[myllm.commands]\nreverse = plug_works:run\nlist = plug_works:run\n")
    with_echo.extra["PYTHONPATH"] = str(folder)
    return with_echo


QUICK = [["--help"], ["list"], ["show", "echo"], ["run", "--help"]]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_no_plugin_is_imported(troubled: Myllm, arguments: list[str]) -> None:
    troubled.extra["PYTHONPROFILEIMPORTTIME"] = "1"
    done = troubled(*arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    assert "typer" in imported
    assert not [name for name in imported if name.startswith("plug_")]
    if arguments[0] != "--help":  # which reads the names of plugins' commands
        assert not imported & UNWANTED


LIBRARIES = [
    ("typer", ["--help"]),
    ("typer, pydantic_settings", ["list"]),
    ("typer, pydantic_settings", ["show", "echo"]),
]


@pytest.mark.parametrize(("libraries", "arguments"), LIBRARIES)
def test_start_takes_little_more_than_its_libraries(troubled: Myllm, libraries: str, arguments: list[str]) -> None:
    # Processor time, for others may use the machine; the best of several, for the first ones warm the disk cache.
    needed = [sys.executable, "-c", f"import {libraries}"]
    times = [
        (_processor_seconds(troubled, [*COMMAND, *arguments]), _processor_seconds(troubled, needed)) for _ in range(5)
    ]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    assert ours < 2 * theirs


def _processor_seconds(myllm: Myllm, command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=myllm.env, check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_lists_commands_of_plugins_without_importing_them(troubled: Myllm) -> None:
    done = troubled("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("do-sleeps", "do-raises", "reverse", "shout"):
        assert f"  {name} " in done.stdout
    assert "(from plug-works)" in done.stdout
    assert done.stdout.count("  list ") == 1  # a plugin's command never takes a built-in one's place


def test_a_command_of_a_plugin_runs(troubled: Myllm) -> None:
    done = troubled("reverse", "abc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cba\n", "")


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("do-raises", "ImportError: no such library"),
        ("do-leaves", "SystemExit: 3"),
        ("do-wrong-syntax", "SyntaxError"),
        ("do-prints", "AttributeError"),
    ],
)
def test_a_broken_command_gives_one_clear_line(troubled: Myllm, command: str, cause: str) -> None:
    done = troubled(command)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("noise")]
    assert done.returncode == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: the command {command} (from plug-")
    assert cause in lines[0]
    assert done.stdout == ""


def test_plugins_shows_what_is_broken_and_keeps_its_output_clean(troubled: Myllm) -> None:
    troubled.extra["MYLLM_DISABLED_PLUGINS"] = '["sleeps"]'
    done = troubled("plugins", "--json")
    described = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}  # noise would break this
    assert done.returncode == 0
    assert {name for name, plugin in described.items() if plugin["status"] == "broken"} >= {"raises", "leaves"}
    assert "no such library" in described["raises"]["error"]
    assert described["raises"]["distribution"] == "plug-raises"
    assert described["raises"]["fix"]
    assert described["lacks"]["status"] == "incomplete"
    assert described["lacks"]["missing"] == ["no-such-distribution-here>=1"]
    assert described["echo"]["status"] == "ok"
    assert described["echo"]["offers"]["commands"] == ["shout"]


def test_two_plugins_with_one_command_are_both_named(with_echo: Myllm) -> None:
    folder = with_echo.home / "site"
    folder.mkdir()
    for name in ("one", "two"):
        _distribution(folder, name, "def run() -> None: ...\n", f"[myllm.commands]\nboth = plug_{name}:run\n")
    with_echo.extra["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path[:0]])
    done = with_echo("both")
    assert done.returncode == 1
    assert "plug-one, plug-two" in done.stderr
    assert with_echo("--help").returncode == 0
