"""Pictures of a run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sidebyside import report

_COUNTS = {"stream": 1, "4 clients": 4, "8 clients": 8, "16 clients": 16, "32 clients": 32}
_COLOURS = {
    report.OURS: "#c0392b",
    "llama-server": "#2c3e50",
    "examples/server": "#7f8c8d",
    "llama_cpp.server": "#bdc3c7",
}


def draw(result: report.Result, folder: Path) -> list[tuple[str, str]]:
    """Draw what was measured; the files' names with their titles."""
    drawn = []
    for name, title, make in (
        ("bench-clients.png", "Tokens per second by the number of clients", _clients),
        ("bench-ratios.png", "How myllm compares with llama-server, round by round", _ratios),
        ("bench-first-token.png", "Time to the first token", _first_tokens),
    ):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        if make(result, axes):
            axes.set_title(title)
            figure.savefig(folder / name, dpi=110, metadata={"Software": None})
            drawn.append((name, title))
    return drawn


def _clients(result: report.Result, axes: Any) -> bool:
    metrics = {task: "whole_tokens_per_second" if task == "stream" else "tokens_per_second" for task in _COUNTS}
    found = {task: result.values(task, metric) for task, metric in metrics.items()}
    for program in dict.fromkeys(name for values in found.values() for name in values):
        points = [(count, found[task][program]) for task, count in _COUNTS.items() if program in found[task]]
        counts = [count for count, _ in points]
        middles = [statistics.median(values.values()) for _, values in points]
        spread = [
            [middle - min(values.values()) for middle, (_, values) in zip(middles, points, strict=True)],
            [max(values.values()) - middle for middle, (_, values) in zip(middles, points, strict=True)],
        ]
        axes.errorbar(counts, middles, spread, marker="o", capsize=3, label=program, color=_COLOURS.get(program))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(_COUNTS.values()), [str(count) for count in _COUNTS.values()])
    axes.set_xlabel("clients")
    axes.set_ylabel("tokens/s, all together")
    axes.set_ylim(bottom=0)
    axes.legend()
    return any(found.values())


def _ratios(result: report.Result, axes: Any) -> bool:
    rows = []
    for line in report.LINES:
        values = result.values(line.task, line.metric)
        shared = report.ratios(values.get(report.OURS, {}), values.get("llama-server", {}))
        if shared and line.metric != "share_of_plain":
            rows.append((line.title, shared if line.more else [1 / ratio for ratio in shared]))
    for place, (_, shared) in enumerate(reversed(rows)):
        axes.plot(shared, [place] * len(shared), "o", color=_COLOURS[report.OURS], alpha=0.35, markersize=5)
        axes.plot([statistics.median(shared)], [place], "|", color="black", markersize=12)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [title for title, _ in reversed(rows)], fontsize=7)
    ticks = [0.5, 0.7, 1, 1.5, 2, 3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times as good as llama-server (right of 1: better)")
    return bool(rows)


def _first_tokens(result: report.Result, axes: Any) -> bool:
    lines = [line for line in report.LINES if line.unit == "ms" and line.title.startswith("first token")]
    found = {line: result.values(line.task, line.metric) for line in lines}
    shown = [line for line in lines if found[line]]
    programs = list(dict.fromkeys(name for line in shown for name in found[line]))
    width = 0.8 / max(1, len(programs))
    for index, program in enumerate(programs):
        places = [place for place, line in enumerate(shown) if program in found[line]]
        middles = [statistics.median(found[shown[place]][program].values()) for place in places]
        axes.bar(
            [place + index * width for place in places], middles, width, label=program, color=_COLOURS.get(program)
        )
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    titles = [line.title.removeprefix("first token").strip(", ").removeprefix("of ") for line in shown]
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(shown))], titles, fontsize=7)
    axes.legend()
    return bool(shown)
