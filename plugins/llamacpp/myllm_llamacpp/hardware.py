"""What of this machine is really ours: cores and memory, after affinity and control groups."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CPU = Path("/sys/devices/system/cpu")
_GPU_BACKENDS = ("cuda", "metal", "vulkan", "hip", "sycl", "musa", "cann", "opencl")


def free_cores() -> int:
    """Physical cores that this process may use. A second thread on a core, or one without a share of time, slows all.

    llama.cpp's threads wait for each other after every operation, so one thread too many costs more than it brings.
    """
    cores = _physical_cores()
    quota = _cpu_quota()
    return max(1, min(cores, int(quota)) if quota else cores)


def free_memory() -> int:
    """Bytes that can be taken without swapping, after the control group's limit."""
    free = int(psutil.virtual_memory().available)
    for folder in _cgroup_folders("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit and used is not None:
            free = min(free, max(0, limit - used))
    return free


def has_gpu_backend() -> bool:
    """Whether the installed llama-cpp-python was built for a GPU; looks at its files and imports nothing."""
    found = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (found.submodule_search_locations or ())] if found else []
    names = [file.name for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return any(f"ggml-{backend}" in name for name in names for backend in _GPU_BACKENDS)


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


def _cpu_quota() -> float | None:
    quotas = []
    for folder in _cgroup_folders("cpu"):
        text = _text(folder / "cpu.max")
        quota, period = text.split() if text else (_text(folder / "cpu.cfs_quota_us"), "")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_folders(controller: str) -> list[Path]:
    """The process's control group and all above it: the tightest limit counts."""
    folders: list[Path] = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _CGROUP / names if names else _CGROUP
        inside = root / path.lstrip("/")
        folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
