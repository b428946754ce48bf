"""How much memory a model may take: what the machine has free, and what this process's control group may still use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from myllm_core.engine import MemoryEstimate

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Shortage:
    """Bytes that a model needs, and what is free; of the host's memory, or of the accelerator's."""

    needed: int
    free: int
    on_device: bool = False


def shortage(needs: MemoryEstimate, free: int, held_on_device: int = 0) -> Shortage | None:
    """What a model lacks where ``free`` bytes are free; ``held_on_device`` will be there too. None: it fits."""
    if needs.host > free:
        return Shortage(needs.host, free)
    if needs.device_free is None:
        return None
    least = needs.device if needs.device_least is None else needs.device_least
    on_device = needs.device_free + held_on_device
    return Shortage(least, on_device, True) if least > on_device else None


def wants_more(needs: MemoryEstimate) -> bool:
    """Whether a model that fits would be quicker with more of the accelerator's memory."""
    return needs.device_free is not None and needs.device > needs.device_free


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
