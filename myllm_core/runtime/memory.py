"""Whether a model fits into the memory that is free, and what a process takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from myllm_core.engine import MemoryEstimate


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
