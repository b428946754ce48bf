"""What it costs an engine to hold replies to a JSON schema, and whether they are valid.

    python benchmarks/bench_schema.py [--engines NAME …] [--replies N] [--together N] [--models FOLDER]

Runs each installed engine alone, without a server, on the test model in its format, which the tests put into
.cache/models (see conftest.py). Replies come at temperature 1, from all tokens, for each of the schemas in turn; a free
one that is as long comes before or after. One thread and processor time, so that others' turns on the processor aren't
counted; but who shares its memory's bandwidth slows one reply and not the next: what is to be kept is measured alone.
Engines of another environment are measured by that one's Python (.venvs/optimum/bin/python).
Prints a line for each engine, in Markdown. The exit code is 1 when a reply was invalid or an engine lost too much.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from schemas import SCHEMAS, problem, request

from myllm_core import ChatRequest, Plugins, TokenEngine, load_plugins
from myllm_core.errors import PluginError
from myllm_core.testing import EngineCase, model_of
from myllm_core.testing.engine.given import Pipe, Reply

ROOT = Path(__file__).parent.parent
NAME = "SmolLM2-135M-Instruct"
MODELS = {  # by engine: what it is told to be, its format, and its file or folder
    "llamacpp": [("Q4_1", "gguf", f"{NAME}.Q4_1.gguf"), ("f32", "gguf", f"{NAME}-1.F32.gguf")],
    "transformers": [("f32", "safetensors", f"{NAME}-1")],
    "onnx": [("int4, GenAI", "onnx", f"{NAME}-1.genai"), ("f32", "onnx", f"{NAME}-1.onnx")],
    "optimum": [("f32", "onnx", f"{NAME}-1.onnx")],
    "ctransformers": [("f16", "gguf", f"{NAME}.Q4_1.gguf")],
}
OPTIONS = {"n_threads": 1, "intra_op_num_threads": 1, "n_ctx": 4096, "max_length": 1024, "cache_disk": 0}
MOST_LOSS = 0.15
PATIENCE = 600.0


@dataclass
class Seen:
    """Tokens and seconds of processor time, and what was wrong with replies."""

    tokens: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    seconds: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    replies: int = 0
    problems: list[str] = field(default_factory=list)

    def speed(self, held: bool) -> float:
        """Tokens a second."""
        return self.tokens[held] / self.seconds[held]

    @property
    def loss(self) -> float:
        """The share of its speed that an engine loses; less than 0 when it gains."""
        return 1 - self.speed(True) / self.speed(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", metavar="NAME", choices=MODELS, default=list(MODELS))
    parser.add_argument("--replies", type=int, default=100, help="for each engine (100)")
    parser.add_argument("--together", type=int, default=1, help="how many run side by side, where it can (1)")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models", help="where they are")
    given = parser.parse_args()
    plugins, well = load_plugins(), True
    print("| engine | weights | valid replies | tokens/s by a schema | tokens/s free | lost |")
    print("| --- | --- | --- | --- | --- | --- |")
    for engine, weights, case in _cases(plugins, given.engines, given.models):
        seen = measure(case, given.replies, given.together)
        valid = seen.replies - len(seen.problems)
        speeds = f"{seen.speed(True):.1f} | {seen.speed(False):.1f} | {100 * seen.loss:.0f} %"
        print(f"| {engine} | {weights} | {valid} of {seen.replies} | {speeds} |", flush=True)
        for text in seen.problems:
            print(text, file=sys.stderr)
        well = well and not seen.problems and seen.loss < MOST_LOSS
    return 0 if well else 1


def _cases(plugins: Plugins, engines: Sequence[str], folder: Path) -> Iterator[tuple[str, str, EngineCase]]:
    """Each engine that is installed, with each model of its that is there."""
    for name in engines:
        try:
            engine = plugins.engine(name)
        except PluginError:
            print(f"{name} isn't installed here", file=sys.stderr)
            continue
        known = {option.name for option in engine.load_options}
        options = {name: value for name, value in OPTIONS.items() if name in known}
        for weights, format, file in MODELS[name]:
            if not (folder / file).exists():
                print(f"{folder / file} isn't there; the tests make it", file=sys.stderr)
                continue
            with _files(name, folder / file) as paths:
                yield name, weights, EngineCase(engine, model_of(*paths, format=format), options)


@contextmanager
def _files(engine: str, path: Path) -> Iterator[list[Path]]:
    """A model's files, the weights first."""
    if engine == "ctransformers":
        sys.path.insert(0, str(ROOT / "plugins" / "ctransformers" / "tests"))
        from legacy_files import early_gguf

        with tempfile.TemporaryDirectory() as made:
            early_gguf(path, Path(made, "early.gguf"))
            yield [Path(made, "early.gguf")]
    elif path.is_file():
        yield [path]
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        yield sorted(files, key=lambda file: file.suffix not in (".onnx", ".safetensors"))


def measure(case: EngineCase, replies: int, together: int) -> Seen:
    """Ask for replies that are held and, as long, for free ones, each first in turn."""
    engine, seen = case.load(), Seen()
    assert isinstance(engine, TokenEngine)
    together = min(together, engine.max_sequences)
    pipe = Pipe(engine, PATIENCE)  # one for all, as in a worker
    try:
        for name in SCHEMAS:  # the vocabulary is prepared once, and questions are read once
            _timed(pipe, [request(name, 0)])
        lengths: list[int] = []  # a free round before a held one takes those of the last: how many run side by side
        for first in range(0, replies, together):
            asked = [(list(SCHEMAS)[at % len(SCHEMAS)], at) for at in range(first, min(first + together, replies))]
            free_first = bool(first // together % 2)
            if free_first:
                _round(pipe, seen, asked, lengths[: len(asked)])
            lengths = _round(pipe, seen, asked, None)
            if not free_first:
                _round(pipe, seen, asked, lengths)
    finally:
        engine.close()
    return seen


def _round(pipe: Pipe, seen: Seen, asked: list[tuple[str, int]], lengths: list[int] | None) -> list[int]:
    """Replies to some questions, free ones of these ``lengths`` or held ones; how long they got."""
    held = lengths is None
    requests = [
        request(name, seed) if lengths is None else request(name, seed, held=False, tokens=lengths[number])
        for number, (name, seed) in enumerate(asked)
    ]
    found, seconds = _timed(pipe, requests)
    written = [reply.ended_well().usage.completion_tokens for reply in found]
    seen.tokens[held] += sum(written)
    seen.seconds[held] += seconds
    if held:
        seen.replies += len(found)
        wrong = [(name, seed, problem(name, reply.text)) for (name, seed), reply in zip(asked, found, strict=True)]
        seen.problems += [f"{name}, seed {seed}: {what}" for name, seed, what in wrong if what]
    return written


def _timed(pipe: Pipe, requests: list[ChatRequest]) -> tuple[list[Reply], float]:
    began = time.process_time()
    for asked in requests:
        pipe.start(asked)
    return pipe.finish()[-len(requests) :], time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
