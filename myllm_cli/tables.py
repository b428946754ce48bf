"""Tables and JSON on standard output: aligned text for people, stable keys for programs.

Plain text instead of rich's tables: ``list`` and ``show`` have to start quickly.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from myllm_cli.terminal import clean_line

_GAP = "  "
_UNITS = ("B", "kB", "MB", "GB", "TB")


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns; on a terminal the last column is cut to fit, in a pipe nothing is."""
    table = [list(headers), *([clean_line(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[i]) for row in table) for i in range(len(headers))]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
        widths[-1] = max(min(widths[-1], room), len(headers[-1]))
    for row in table:
        row[-1] = _cut(row[-1], widths[-1])
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        print(_GAP.join(cells).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line, those without a value left out."""
    shown = [(name, clean_line(value)) for name, value in fields if value not in ("", None, 0, {}, (), [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}{_GAP}{value}")


def print_json(value: Any) -> None:
    """Print JSON, with everything but ASCII escaped: safe on a terminal, the same to a program."""
    print(json.dumps(value, indent=2, allow_nan=False))


def size_text(size: float) -> str:
    """A number of bytes in decimal units, as downloads are advertised: ``98.2 MB``."""
    for unit in _UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


def count_text(count: int) -> str:
    """A count of parameters: ``135M``, ``1.1B``."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= scale:
            return f"{count / scale:.1f}".removesuffix(".0") + unit
    return str(count)
