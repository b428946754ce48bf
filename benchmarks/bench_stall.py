"""How long a long prompt holds up those who are being written to: the worst gap between two tokens of a stream.

    python benchmarks/bench_stall.py [--model FILE] [--tokens N] [--streams N] [--rounds N] [--busy]

Runs the llama.cpp engine alone, without a server. Other programs on the machine make the gaps longer; where there are
some, ``--busy`` takes one thread and measures processor time. A line for each round: the median gap and the worst,
their ratio, and how long the prompt took.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from myllm_llamacpp import scheduler
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core import Manifest, Model, ModelFile, Sequence
from myllm_core.types import Sampling

Clock = Callable[[], float]

LIMIT = 4.0
FILE = Path(__file__).parent.parent / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
FOR_EVER = 10**6
BEFORE = 40  # tokens of each stream before the prompt arrives


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FILE, help="a GGUF file (the tests' one)")
    parser.add_argument("--tokens", type=int, default=4000, help="tokens of the prompt (4000)")
    parser.add_argument("--streams", type=int, default=4, help="streams that it holds up (4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--busy", action="store_true", help="one thread, and processor time: for a busy machine")
    given = parser.parse_args()
    clock = time.process_time if given.busy else time.perf_counter
    vars(scheduler)["perf_counter"] = clock  # the engine learns how large its steps may be from the same clock
    file = ModelFile(str(given.model.resolve()), given.model.stat().st_size, "")
    options = {option.name: option.default for option in LlamaCppEngine.load_options}
    options |= {"cache_ram": 0, "n_threads": 1 if given.busy else 0}
    engine = LlamaCppEngine.load(Model(Manifest("bench:latest", "gguf", (file,)), Path()), options, lambda _: None)
    try:
        ratios = [one_round(engine, clock, given.tokens, given.streams, number) for number in range(given.rounds)]
    finally:
        engine.close()
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.1f}; more than {LIMIT:.0f}: {'yes' if ratio > LIMIT else 'no'}")
    return 0


def one_round(engine: LlamaCppEngine, clock: Clock, tokens: int, streams: int, number: int) -> float:
    """The worst gap between two tokens of a stream, in medians."""
    for stream in range(streams):
        engine.add(Sequence(stream, [100 + number, 200 + stream, 300], Sampling(seed=stream), FOR_EVER))
    seen: dict[int, list[float]] = {stream: [] for stream in range(streams)}
    step_until(engine, clock, seen, lambda: min(map(len, seen.values())) >= BEFORE)
    prompt = [500 + (17 * number + 13 * position) % 20_000 for position in range(tokens)]
    reader: list[float] = []
    arrived = clock()
    engine.add(Sequence(streams, prompt, Sampling(temperature=0), 1))
    step_until(engine, clock, seen | {streams: reader}, lambda: bool(reader))
    for sequence in range(streams + 1):
        engine.cancel(sequence)
    gaps = [(after - before, after) for times in seen.values() for before, after in itertools.pairwise(times)]
    plain = statistics.median(gap for gap, after in gaps if after < arrived)
    worst, median = max(gap for gap, _ in gaps), statistics.median(gap for gap, _ in gaps)
    print(
        f"round {number + 1}: median gap {median * 1000:.0f} ms ({plain * 1000:.0f} before the prompt), worst "
        f"{worst * 1000:.0f} ms, ratio {worst / median:.1f}; the prompt took {reader[0] - arrived:.1f} s",
        flush=True,
    )
    return worst / median


def step_until(engine: LlamaCppEngine, clock: Clock, seen: dict[int, list[float]], done: Callable[[], bool]) -> None:
    """Step, and note when each sequence got a token, until ``done()``."""
    while not done():
        outs = engine.step()
        now = clock()
        for out in outs:
            if out.error is not None:
                raise out.error
            seen[out.sequence_id].append(now)


if __name__ == "__main__":
    sys.exit(main())
