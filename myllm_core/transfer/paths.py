"""File names from outside, made or found harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from myllm_core.errors import IntegrityError
from myllm_core.models.reference import RESERVED, safe_name

_FORBIDDEN = frozenset('<>:"\\|?*')
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)", re.ASCII)
_QUANTIZATION = re.compile(r"(?P<base>.+?)[-._](?P<tag>(?:i?q|tq)\d[a-z0-9_]*|b?f16|f32|mxfp4)", re.ASCII | re.I)
_MAX_SHARDS = 1000


def checked_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths of a model's files, when each stays inside its folder on every system, and no two are the same there.

    Raises ``IntegrityError``.
    """
    checked = tuple(paths)
    for path in checked:
        wrong = len(path) > 400 or any(_wrong_part(part) for part in path.split("/"))
        if wrong:
            raise IntegrityError(f"the source names a file {path[:80]!r}, which isn't safe; nothing was taken")
    if len({path.lower() for path in checked}) < len(checked):
        raise IntegrityError("the source names the same file twice; nothing was taken")
    return checked


def _wrong_part(part: str) -> bool:
    odd = not part.isprintable() or bool(_FORBIDDEN & set(part)) or part != part.strip()
    return (
        odd
        or part in ("", ".", "..")
        or part.endswith(".")
        or len(part.encode(errors="replace")) > 200
        or (part.split(".")[0].lower() in RESERVED)
    )


def file_name(segment: str) -> str:
    """A harmless file name made from the last part of a URL's path, percent-encoded as it is; never empty."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", unquote(segment))
    name = re.sub(r"\.{2,}", ".", name).strip("._- ")
    stem, dot, suffix = name.rpartition(".")
    if len(name) > 150:
        name = f"{stem[:120]}{dot}{suffix[:20]}" if stem else name[:150]
    if not name or name.split(".")[0].lower() in RESERVED:
        name = f"model-{name}".rstrip("-")
    return name


def shard_names(name: str) -> list[str]:
    """All names of a file that is split into numbered parts (``x-00001-of-00003.gguf``); else the name alone."""
    match = _SHARD.fullmatch(name)
    count = int(match["count"]) if match else 0
    if not match or not 1 <= int(match["number"]) <= count <= _MAX_SHARDS:
        return [name]
    return [f"{match['stem']}-{number:05}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)]


def name_for(file: str) -> str:
    """The name to install a file under: its stem, and its quantization as the tag when it ends in one."""
    match = _SHARD.fullmatch(file)
    stem = match["stem"] if match else (file.rpartition(".")[0] or file)
    quantized = _QUANTIZATION.fullmatch(stem)
    return safe_name(f"{quantized['base']}:{quantized['tag']}" if quantized else stem.replace(":", "-"))
