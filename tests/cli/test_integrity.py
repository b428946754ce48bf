"""``verify --repair`` and ``prune`` as a person and a program use them, and Ctrl+C where a pull can't be resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.gguf import small_gguf

from .conftest import Myllm

DATA = small_gguf(50_000)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def weights(myllm: Myllm, origin: Path) -> Path:
    """The file of an installed model ``tiny``."""
    done = myllm("pull", str(origin))
    assert done.returncode == 0, done.stderr
    [path] = (myllm.home / "models").rglob("tiny.gguf")
    return path


def results(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def test_damage_is_found_and_mended(myllm: Myllm, weights: Path) -> None:
    weights.write_bytes(DATA[:-4] + b"evil")
    done = myllm("verify", "tiny")
    assert done.returncode == 5
    assert done.stdout.startswith("tiny:latest: damaged\n")
    assert f"damaged: bytes 0-{len(DATA) - 1}" in done.stdout
    assert "myllm verify NAME --repair" in done.stderr
    [result] = results(myllm("verify", "--all", "--json"))
    assert result["ok"] is False
    assert result["problems"][0]["ranges"] == [[0, len(DATA) - 1]]
    done = myllm("verify", "tiny", "--repair")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tiny:latest: repaired\n  repaired r-[0-9a-f]{12}/tiny\.gguf\n", done.stdout)
    assert weights.read_bytes() == DATA
    assert myllm("verify", "tiny", "--repair").stdout == "tiny:latest: ok\n"


def test_what_is_missing_or_cut_is_found_though_the_model_cannot_be_used(myllm: Myllm, weights: Path) -> None:
    weights.unlink()
    for arguments in (["show", "tiny"], ["verify", "tiny"], ["verify", "--all"]):
        assert myllm(*arguments).returncode == 5
    assert "myllm verify tiny:latest --repair" in myllm("show", "tiny").stderr
    [result] = results(myllm("verify", "--all", "--repair", "--json"))
    assert (result["name"], result["ok"], result["problems"], result["error"]) == ("tiny:latest", True, [], None)
    assert [path.rpartition("/")[2] for path in result["repaired"]] == ["tiny.gguf"]
    os.truncate(weights, 100)
    assert "has 100 bytes" in myllm("verify", "tiny").stdout
    assert myllm("verify", "tiny", "--repair").returncode == 0
    assert weights.read_bytes() == DATA


def test_a_source_that_is_gone_or_another(myllm: Myllm, weights: Path, origin: Path) -> None:
    damaged = b"GGUF" + bytes(len(DATA) - 4)
    weights.write_bytes(damaged)
    origin.write_bytes(small_gguf(50_000, seed=1))
    done = myllm("verify", "tiny", "--repair")
    assert done.returncode == 5
    assert "can't be repaired: " in done.stdout
    assert "has changed since it was pulled" in done.stdout
    assert "still damaged: tiny:latest; mend with: myllm pull NAME --force" in done.stderr
    origin.unlink()
    [result] = results(myllm("verify", "tiny", "--repair", "--json"))
    assert "there is no file or folder" in result["error"]
    assert weights.read_bytes() == damaged


def test_a_model_without_a_manifest_to_check_against(myllm: Myllm, weights: Path) -> None:
    weights.parent.with_name("manifest.json").write_text("{")
    for arguments in (["tiny"], ["--all"]):
        done = myllm("verify", *arguments, "--repair")
        assert done.returncode == 5
        assert "no valid JSON" in done.stdout
    assert myllm("verify", "other").returncode == 3


@pytest.fixture
def rest(myllm: Myllm, weights: Path) -> Path:
    """A file that nobody needs."""
    path = weights.with_name("notes.txt")
    path.write_bytes(bytes(2_000_000))
    return path


def test_pruning_off_a_terminal_needs_yes(myllm: Myllm, weights: Path, rest: Path) -> None:
    done = myllm("prune")
    assert done.returncode == 2
    assert "say --yes" in done.stderr
    assert myllm("prune", "--json").returncode == 2
    assert myllm("prune", "--older-than", "soon").returncode == 2
    assert "nothing to delete" in myllm("prune", "--older-than", "7d", "--yes").stderr
    done = myllm("prune", "--dry-run")
    assert done.stdout.splitlines()[0].split() == ["KIND", "MODEL", "SIZE", "AGE", "WHAT"]
    assert "2.0 MB could be freed." in done.stdout
    assert rest.exists()
    report = json.loads(myllm("prune", "--json", "--yes").stdout)
    assert report["freed_bytes"] == 2_000_000
    [each] = report["leftovers"]
    assert (each["kind"], each["model"], each["path"]) == ("file", "tiny:latest", str(rest))
    assert not rest.exists()
    assert weights.exists()
    done = myllm("prune", "--yes")
    assert (done.returncode, done.stdout) == (0, "")


def test_pruning_asks_on_a_terminal(myllm: Myllm, rest: Path) -> None:
    for answer, freed in (("n", False), ("y", True)):
        terminal = myllm.terminal("prune")
        terminal.expect(r"Delete these \(2\.0 MB\)\?")
        terminal.sendline(answer)
        terminal.expect(r"Freed 2\.0 MB" if freed else "Nothing was changed")
        terminal.wait()
        terminal.close()
        assert rest.exists() is not freed


SLOW = """
import time
from myllm_core import Downloader, RemoteFile, Resolution, hookimpl

MYLLM_API = 1


class Slow(Downloader):
    name, schemes = "slow", frozenset({"slow"})

    def resolve(self, reference):
        return Resolution((RemoteFile("s.txt"),), "slow", "slow:it", "1", format="slow")

    def fetch(self, file, sink):
        for _ in range(600):
            sink.write(bytes(1000))
            time.sleep(0.1)


@hookimpl
def myllm_downloaders():
    return [Slow]
"""


def test_control_c_where_nothing_can_be_resumed_does_not_say_so(myllm: Myllm) -> None:
    site = myllm.home / "site"
    info = site / "slow-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plug_slow.py").write_text(SLOW)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[myllm]\nslow = plug_slow\n")
    myllm.extra["PYTHONPATH"] = str(site)
    process = myllm.start("pull", "slow:it", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 20
    while not any(part.stat().st_size for part in myllm.home.glob("models/.partial/*/data.part")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Interrupted. Nothing new is kept; start again with: myllm pull slow:it" in errors
    assert list(myllm.home.glob("models/.partial/*")) == []
