"""What of this machine is really ours: cores and memory, after affinity and control groups."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_OURS = Path("/proc/self/cgroup")
_CPU = Path("/sys/devices/system/cpu")


def free_memory() -> int:
    """Bytes that can be allocated now without swapping, within the limits of the control groups."""
    free = int(psutil.virtual_memory().available)
    for folder in _groups("memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used + _droppable(folder)))
    return free


def free_cores() -> int:
    """Physical cores that this process may use, at least one.

    A second thread on a core, or one without a share of time, slows all threads of a model, which wait for each other.
    """
    quota = cpu_quota()
    cores = _physical_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def cpu_quota() -> float | None:
    """How many cores' time the control groups allow; None when they don't limit it."""
    quotas = []
    for folder in _groups("cpu"):
        text = _text(folder / "cpu.max")
        quota, period = text.split() if text else (_text(folder / "cpu.cfs_quota_us"), "")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _physical_cores() -> int:
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # only Linux has affinity
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    siblings = set()
    for cpu in usable:
        try:
            siblings.add((_CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return min(len(usable), psutil.cpu_count(logical=False) or len(usable))
    return len(siblings)


def _groups(controller: str) -> list[Path]:
    """This process's control group and all above it, of version 1 or 2: the tightest limit counts."""
    folders: list[Path] = []
    for line in _text(_OURS).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _CGROUP / names if names else _CGROUP
        inside = root / path.lstrip("/")
        folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def _droppable(group: Path) -> int:
    """Bytes of a group's use that the kernel gives up at once when they are wanted: files that nobody reads now."""
    stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _number(*paths: Path) -> int | None:
    """What the first of these files holds that is a number."""
    return next((int(text) for text in map(_text, paths) if text.isdigit()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
