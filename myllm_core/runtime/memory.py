"""How much memory a model may take: what the machine has free, and what this process's control group may still use."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can be allocated now without swapping, within the control group's limit (cgroup v2)."""
    return min(psutil.virtual_memory().available, _cgroup_free())


def _cgroup_free() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return 2**63
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 2**63


def used_memory(pid: int | None) -> int:
    """Bytes of resident memory of a process; 0 when it is gone or there is none."""
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:
        return 0


def readable(size: int) -> str:
    """A size for people: ``1.3 GB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
