"""The picture of a comparison: a row of bars for each number. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from myllm_core.errors import StorageError

if TYPE_CHECKING:
    from myllm_cli.comparison import Difference, Measured


def draw(path: Path, measured: list[Measured], found: list[list[Difference]]) -> None:
    """Write the picture; its format is the one that the file's name says. Raises ``StorageError``."""
    from matplotlib.figure import Figure

    agreed = [100 * sum(one.agreed for one in those) / max(1, sum(one.length for one in those)) for those in found]
    rows = (
        ("tokens a second", [one.speed for one in measured]),
        ("first token, ms", [one.first_token * 1000 for one in measured]),
        ("memory, MB", [one.memory / 1e6 for one in measured]),
        (f"tokens that agree with\n{measured[0].label}, %", agreed),
    )
    figure = Figure(figsize=(9, 1.2 + len(rows) * (0.5 + 0.35 * len(measured))), layout="constrained")
    places = range(len(measured))
    for number, (title, values) in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, number + 1)
        bars = axes.barh(places, values, color=[f"C{place % 10}" for place in places])
        axes.bar_label(bars, fmt="%.4g", padding=3)
        axes.set_yticks(places, [one.label for one in measured])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title, fontsize=10, loc="left")
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}") from None
