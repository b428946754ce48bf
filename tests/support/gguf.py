"""A small GGUF file that is whole, of any size."""

from __future__ import annotations

import random
import struct


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def small_gguf(size: int = 300_000, seed: int = 0) -> bytes:
    """About ``size`` bytes: a llama-like header, and one tensor of random numbers that ``seed`` decides on."""
    keys = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _text("llama.context_length") + struct.pack("<II", 4, 2048),
        _text("general.file_type") + struct.pack("<II", 4, 0),
    ]
    count = max(8, size // 4)
    tensor = _text("a.weight") + struct.pack("<IQIQ", 1, count, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return head + bytes(-len(head) % 32) + random.Random(seed).randbytes(count * 4)
