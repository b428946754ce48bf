"""What memory allows: to write a token, every weight that it needs has to be read once."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from myllm_core.models.gguf import GGUF
    from myllm_core.models.manifest import Model

_LARGEST = 512 * 2**20  # more than any cache holds
_SMALLEST = 16 * 2**20
_SECONDS = 0.5


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory, measured for half a second.

    libc's ``memchr`` looks for a byte that isn't there: it reads as fast as memory gives, and ctypes lets threads run
    side by side meanwhile.
    """
    import psutil

    cores = min(_usable_cores(), psutil.cpu_count(logical=False) or 1)
    size = max(_SMALLEST, min(_LARGEST, psutil.virtual_memory().available // 4))
    buffer = bytearray(b"\1") * size
    share = size // cores
    begins = [ctypes.addressof(ctypes.c_char.from_buffer(buffer, core * share)) for core in range(cores)]
    search = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memchr
    search.argtypes, search.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p

    def read(begin: int) -> float:
        done, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _SECONDS:
            search(begin, 0, share)
            done += share
        return done / seconds

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(read, begins))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bytes_per_token(model: Model) -> int:
    """Bytes of weights that are read to write one token.

    All of them, less an embedding table that only single rows are taken from, and experts that aren't asked.
    """
    if model.format != "gguf":
        return model.manifest.size
    from myllm_core.models.gguf import read_gguf

    weights = [path for path in model.paths if path.suffix == ".gguf"]
    headers = [header for header in map(read_gguf, weights) if header.architecture != "clip"]
    names = {tensor.name for header in headers for tensor in header.tensors}
    return sum(_read_of(header, tied="output.weight" not in names) for header in headers)


def _read_of(header: GGUF, *, tied: bool) -> int:
    known, used = (int(header.metadata.get(f"{header.architecture}.{name}", 0)) for name in _EXPERTS)
    share = used / known if known and used else 1.0
    total = 0.0
    for tensor in header.tensors:
        if tied or tensor.name != "token_embd.weight":
            total += tensor.nbytes * (share if "_exps" in tensor.name else 1.0)
    return int(total)


_EXPERTS = ("expert_count", "expert_used_count")
