"""Reading the header of a safetensors file, with every number checked before it is used.

Format: the safetensors specification (``README.md`` of the safetensors repository): eight bytes of header length,
little endian, a JSON object, then the tensors' bytes without gaps or overlaps.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors

MAX_HEADER = 100_000_000
"""The largest header that the safetensors library itself reads, in bytes."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file holds: the count of its weights, and the type that most of them have."""

    parameters: int
    dtype: str


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Read and check the header; the weights aren't read, only that they are all there.

    Raises ``IntegrityError`` for a file that isn't whole or isn't what the specification allows, ``StorageError`` when
    it can't be read.
    """
    with storage_errors(f"read {path}"), open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(MAX_HEADER, size - 8):
            raise _damaged(path, f"its header can't be {length} bytes long")
        data = file.read(length)
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no valid JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    return _check_tensors(path, header, size - 8 - length)


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{path.name} is no usable safetensors file: {reason}")


def _check_tensors(path: Path, header: dict[str, Any], data_size: int) -> SafetensorsHeader:
    counts: Counter[str] = Counter()
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            bits = prod(_natural(n) for n in shape) * _BITS[dtype]
            if _natural(end) - _natural(begin) != -(-bits // 8):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, f"the tensor {name[:60]!r} is described wrongly") from None
        spans.append((begin, end))
        counts[dtype] += prod(shape)
    expected = 0
    for begin, end in sorted(spans):
        if begin != expected:
            raise _damaged(path, "its tensors overlap or leave gaps")
        expected = end
    if expected != data_size:
        raise _damaged(path, f"its tensors need {expected} bytes and it has {data_size}; it isn't whole")
    return SafetensorsHeader(counts.total(), counts.most_common(1)[0][0] if counts else "")


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value
