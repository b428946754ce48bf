"""What of the machine is ours: the tightest limit of the control groups, of either version and at any level."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from myllm_core import machine

MIB = 2**20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of ``/sys/fs/cgroup``; the process is in ``office/myllm``, in each hierarchy."""
    ours = tmp_path / "ours"
    ours.write_text("5:cpu,cpuacct:/office/myllm\n4:memory:/office/myllm\n0::/office/myllm\n")
    monkeypatch.setattr(machine, "_OURS", ours)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_physical_cores", lambda: 8)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_the_machine_is_all_ours(groups: Path) -> None:
    write(groups / "office/myllm", memory__max="max", memory__current="1", cpu__max="max 100000")
    assert machine.cpu_quota() is None
    assert machine.free_cores() == 8
    assert 0 < machine.free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize("level", ["", "office", "office/myllm"])
def test_a_limit_counts_at_every_level(groups: Path, level: str) -> None:
    """A service's own group, its slice, and a container, whose root this is."""
    write(groups / level, memory__max=str(300 * MIB), memory__current=str(100 * MIB), cpu__max="250000 100000")
    assert machine.free_memory() == 200 * MIB
    assert machine.free_cores() == 2


@pytest.mark.parametrize("level", ["", "office", "office/myllm"])
def test_limits_of_the_first_version(groups: Path, level: str) -> None:
    write(
        groups / "memory" / level,
        memory__limit_in_bytes=str(300 * MIB),
        memory__usage_in_bytes=str(100 * MIB),
        memory__stat=f"inactive_file 5\ntotal_inactive_file {20 * MIB}",
    )
    write(groups / "cpu,cpuacct" / level, cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    assert machine.free_memory() == 220 * MIB
    assert machine.free_cores() == 1
    write(groups / "cpu,cpuacct" / level, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert machine.free_cores() == 8


def test_the_tightest_limit_counts_and_files_that_nobody_reads_are_free(groups: Path) -> None:
    write(groups / "office", memory__max=str(900 * MIB), memory__current=str(100 * MIB), cpu__max="300000 100000")
    write(
        groups / "office/myllm",
        memory__max=str(300 * MIB),
        memory__current=str(290 * MIB),
        memory__stat=f"anon 7\ninactive_file {50 * MIB}",
        cpu__max="50000 100000",
    )
    assert machine.free_memory() == 60 * MIB
    assert machine.free_cores() == 1, "half a core is one thread"


def test_a_group_that_is_over_its_limit_has_nothing_free(groups: Path) -> None:
    write(groups / "office/myllm", memory__max=str(100 * MIB), memory__current=str(101 * MIB))
    assert machine.free_memory() == 0


def test_this_machine() -> None:
    assert 1 <= machine.free_cores() <= (psutil.cpu_count() or 1)
    assert 0 < machine.free_memory() <= psutil.virtual_memory().total
