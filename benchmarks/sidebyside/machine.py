"""What this machine is, what it does besides, and what a tree of processes takes of it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


def busy() -> float:
    """Processor seconds that all cores have worked, for us and for others (also other guests of the same host)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(None, 9)[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes and all that they have started."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    return found


def processor_seconds(pids: Iterable[int]) -> float:
    """Processor seconds of processes, all that they have started, and what of those has ended."""
    total = 0.0
    for process in tree(pids):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(pids: Iterable[int]) -> float:
    """Resident MB of processes and all that they have started."""
    total = 0
    for process in tree(pids):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


class Watch:
    """How much processor time others take while this is entered: ``others`` in cores, ``ours`` of ``pids`` in seconds.

    This process and what it has started count as ours. ``pids`` may name only a part of that.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self.others = self.ours = 0.0

    def __enter__(self) -> Watch:
        self._before = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        moment, machine, all_ours, named = (
            after - before for before, after in zip(self._before, self._now(), strict=True)
        )
        self.others = max(0.0, machine - all_ours) / moment
        self.ours = named

    def _now(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), busy(), processor_seconds([os.getpid()]), processor_seconds(self._pids)


def description() -> str:
    """The machine and the system in a line, without names of hosts, users or places."""
    found = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = psutil.cpu_count(logical=False) or 1
    threads = len(os.sched_getaffinity(0))
    size = psutil.virtual_memory().total / 2**30
    virtual = ", virtual" if any("hypervisor" in line for line in _lines("/proc/cpuinfo")) else ""
    return (
        f"{found[0] if found else platform.machine()}, {cores} cores ({threads} threads usable{virtual}), "
        f"{size:.0f} GiB of memory, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
