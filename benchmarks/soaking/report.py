"""What a soak has shown: numbers for programs, a page for people, a picture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soaking.clients import Acknowledged, Outcome
from soaking.server import Sample


@dataclass
class Soak:
    """Everything that was measured; times are in seconds since the begin."""

    model: str
    clients: int
    seconds: float
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    stored: int = 0

    checks: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    turns: list[Acknowledged] = field(default_factory=list)


def percentiles(values: list[float]) -> dict[str, float]:
    """The 50th, 90th and 99th percentile and the largest."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[int(part * (len(ordered) - 1))], 3) for name, part in at.items()} if ordered else {}


def summary(soak: Soak) -> dict[str, Any]:
    """The numbers."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in soak.outcomes:
        by_kind[outcome.kind].append(outcome)
    first = [outcome.first for outcome in soak.outcomes if outcome.first is not None]
    good = [outcome for outcome in soak.outcomes if outcome.result == "ok"]
    return {
        "model": soak.model,
        "clients": soak.clients,
        "seconds": round(soak.seconds, 1),
        "seed": soak.seed,
        "requests": len(soak.outcomes),
        "per_second": round(len(soak.outcomes) / soak.seconds, 1),
        "results": dict(Counter(outcome.result for outcome in soak.outcomes).most_common()),
        "worker_kills": len(soak.kills),
        "messages_stored": soak.stored,
        "turns_acknowledged": len(soak.turns),
        "seconds_to_first_token": percentiles(first),
        "seconds_of_answers": percentiles([outcome.total for outcome in good]),
        "kinds": {
            kind: {
                "results": dict(Counter(outcome.result for outcome in outcomes).most_common()),
                "seconds": percentiles([outcome.total for outcome in outcomes]),
            }
            for kind, outcomes in sorted(by_kind.items())
        },
        "checks": soak.checks,
        "problems": soak.problems,
    }


def write(soak: Soak, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = summary(soak)
    samples = [asdict(sample) for sample in soak.samples]
    (folder / "report.json").write_text(json.dumps({**numbers, "samples": samples}, indent=1) + "\n")
    (folder / "report.md").write_text(page(numbers))
    picture(soak, folder / "report.png")


def page(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"# {numbers['clients']} clients for {numbers['seconds'] / 60:.1f} minutes on {numbers['model']}",
        "",
        f"{numbers['requests']} requests ({numbers['per_second']} a second), {numbers['worker_kills']} times the worker"
        f" was killed, {numbers['messages_stored']} messages stored, seed {numbers['seed']}.",
        "",
        "| check | result |",
        "|---|---|",
        *(f"| {name} | {result} |" for name, result in numbers["checks"].items()),
        "",
        "| seconds | p50 | p90 | p99 | max |",
        "|---|---|---|---|---|",
        _times("to the first token", numbers["seconds_to_first_token"]),
        _times("of a good answer", numbers["seconds_of_answers"]),
        "",
        "| request | results | p50 | p90 | p99 | max |",
        "|---|---|---|---|---|---|",
    ]
    for kind, its in numbers["kinds"].items():
        results = ", ".join(f"{count} {result}" for result, count in its["results"].items())
        lines.append(_times(f"{kind} | {results}", its["seconds"]))
    if numbers["problems"]:
        lines += ["", "## Problems", "", *(f"- {problem}" for problem in numbers["problems"][:50])]
    return "\n".join(lines) + "\n"


def _times(name: str, values: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{values[column]:.2f}" if values else "" for column in _COLUMNS) + " |"


_COLUMNS = ("p50", "p90", "p99", "max")


def picture(soak: Soak, path: Path) -> None:
    """Memory and requests over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5.5), layout="constrained")
    times = [sample.at / 60 for sample in soak.samples]
    upper.plot(times, [sample.memory / 2**20 for sample in soak.samples], label="server")
    upper.plot(times, [sample.worker_memory / 2**20 for sample in soak.samples], label="worker", linewidth=0.8)
    upper.set_ylabel("resident memory, MiB")
    upper.set_ylim(bottom=0)
    upper.legend(loc="center right")
    width = max(1.0, soak.seconds / 120)
    counts = Counter(int(at / width) for at in soak.finished)
    bins = range(int(soak.seconds / width) + 1)
    lower.step([(number + 0.5) * width / 60 for number in bins], [counts[n] / width for n in bins], where="mid")
    lower.set_ylabel("requests ended a second")
    lower.set_xlabel("minutes (dotted: the worker is killed)")
    lower.set_ylim(bottom=0)
    for axis in (upper, lower):
        for kill in soak.kills:
            axis.axvline(kill / 60, color="grey", linewidth=0.6, linestyle=":")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
