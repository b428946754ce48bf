"""Many clients on one server for long, with disconnects, bad bodies and a worker that is killed again and again.

    python benchmarks/soak.py [--model NAME] [--minutes N] [--clients N] [--kill-every SECONDS] [--out FOLDER]

Starts `myllm serve` in a folder of its own and shows that the server lives, that no request outlasts its deadline, that
every stream ends with `done` or `error`, that memory and file descriptors don't grow, that no process is left, and that
every acknowledged turn is stored whole and once. `--model echo` needs the echo plugin and no model. Writes report.json,
report.md and report.png to FOLDER; exits with 1 when a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from soaking import report
from soaking.clients import ERRORS, Crowd
from soaking.http import ask
from soaking.report import Soak
from soaking.server import Server, gone, install
from soaking.stored import check_sessions

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 60
SLACK = 5
"""Seconds that a client may wait beyond the deadline: for the connection, and on a machine where all cores are busy."""
GROWTH = 1.10
SMALL = 8 * 2**20
"""Bytes by which memory may grow in any case: a run of seconds ends before all caches are warm."""

SETTINGS = {
    "request_timeout": str(TIMEOUT),
    "queue_size": "32",
    "max_requests": "150",
    "read_timeout": "20",
    "ping_interval": "2",
    "hang_timeout": "60",
    "log_level": "info",
}


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="myllm-soak-") as folder:
        models = arguments.models_dir or Path(folder) / "models"
        install(arguments.model, models)
        server = Server(Path(folder), models, SETTINGS)
        server.start()
        try:
            soak = asyncio.run(run(server, arguments))
        finally:
            workers = server.workers() if server.alive else []
            code = server.stop()
        soak.checks["SIGTERM ends it"] = verdict(code == 0, f"exit code {code}")
        soak.checks["no worker is left"] = verdict(gone(workers), "one is still there")
        check_log(soak, server)
        check_store(soak, server)
    report.write(soak, arguments.out)
    print(report.page(report.summary(soak)))
    print(f"written to {arguments.out}")
    return 1 if soak.problems or any(not text.startswith("yes") for text in soak.checks.values()) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="what to pull and run (smollm2); echo: no model at all")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--clients", type=int, default=200, help="clients at the same time (200)")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds between SIGKILLs of the worker (30)")
    parser.add_argument("--seed", type=int, default=1, help="makes the clients' choices repeatable (1)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="folder of the report (build/soak)")
    parser.add_argument("--models-dir", type=Path, help="where the model is kept for the next time (nowhere)")
    return parser.parse_args()


async def run(server: Server, arguments: argparse.Namespace) -> Soak:
    seconds = arguments.minutes * 60
    soak = Soak(arguments.model, arguments.clients, seconds, arguments.seed)
    await warm_up(server, arguments.model)
    at_rest = server.sample(0.0)
    crowd = Crowd(server.port, arguments.model, TIMEOUT + SLACK, arguments.seed)
    began = time.monotonic()
    clients = asyncio.create_task(crowd.run(arguments.clients))
    next_kill = arguments.kill_every
    while (at := time.monotonic() - began) < seconds and server.alive:
        soak.samples.append(server.sample(at))
        soak.finished += [at] * (len(crowd.outcomes) - len(soak.finished))
        if at >= next_kill:
            next_kill += arguments.kill_every
            if server.kill_worker():
                soak.kills.append(at)
        await asyncio.sleep(0.5 if seconds < 120 else 1.0)
    crowd.stopping = True
    await asyncio.wait_for(clients, TIMEOUT + 4 * SLACK)
    soak.seconds = time.monotonic() - began
    soak.outcomes, soak.problems = crowd.outcomes, crowd.wrong
    soak.turns = crowd.turns
    soak.checks["the server lives"] = verdict(server.alive, f"exit code {server.process.poll()}")
    if server.alive:
        await check_rest(soak, server, at_rest, arguments.model)
    check_memory(soak)
    check_answers(soak, arguments.model)
    return soak


async def warm_up(server: Server, model: str) -> None:
    """Load the model, open the session store, and come to rest."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "options": {"max_tokens": 4}}
    status, values = await ask(server.port, "POST", "/api/chat", {**body, "stream": False})
    assert status == 200, values
    for path in ("/api/models", "/api/sessions?search=x", "/openapi.json", "/metrics"):
        await ask_quietly(server.port, path)
    await asyncio.sleep(1)


async def ask_quietly(port: int, path: str) -> None:
    from soaking.http import Call

    async with Call(port) as call:
        await call.send("GET", path)
        await call.head()
        await call.body()


def verdict(good: bool, otherwise: str) -> str:
    return "yes" if good else f"NO: {otherwise}"


async def check_rest(soak: Soak, server: Server, before: report.Sample, model: str) -> None:
    """When all clients have gone, the server is as it was before they came."""
    until = time.monotonic() + 30
    while True:
        status, values = await ask(server.port, "GET", "/api/ps")
        now = server.sample(soak.seconds)
        busy = sum(entry["running"] + entry["queued"] for entry in values["models"])
        if (not busy and now.fds <= before.fds and not now.zombies) or time.monotonic() > until:
            break
        await asyncio.sleep(0.5)
    soak.checks["nothing runs any more"] = verdict(not busy, f"{busy} requests")
    soak.checks["no file descriptor leaked"] = verdict(now.fds <= before.fds, f"{before.fds} before, {now.fds} after")
    soak.checks["no zombie"] = verdict(now.zombies == 0, f"{now.zombies}")
    soak.checks["one worker"] = verdict(len(server.workers()) <= 1, f"{len(server.workers())}")
    await warm_up(server, model)
    status, _ = await ask(server.port, "GET", "/health")
    soak.checks["it is healthy afterwards"] = verdict(status == 200, f"status {status}")


def check_memory(soak: Soak) -> None:
    """The server's own memory at the end, against that after the first minute (of a short run: its first third)."""
    early = min(60.0, soak.seconds / 3)
    begin = [sample.memory for sample in soak.samples if early <= sample.at <= early + max(5.0, soak.seconds / 60)]
    end = [sample.memory for sample in soak.samples[-10:]]
    if not begin or not end:
        soak.checks["memory doesn't grow"] = "NO: it wasn't measured"
        return
    first, last = statistics.median(begin), statistics.median(end)
    grown = last <= max(first * GROWTH, first + SMALL if soak.seconds < 120 else 0)
    shown = f"{first / 2**20:.1f} MiB after {early:.0f} s, {last / 2**20:.1f} MiB at the end ({last / first - 1:+.1%})"
    soak.checks["memory doesn't grow"] = ("yes: " if grown else "NO: ") + shown


def check_answers(soak: Soak, model: str) -> None:
    soak.checks["every answer is right, whole and in time"] = verdict(not soak.problems, f"{len(soak.problems)}")
    good = sum(outcome.result == "ok" for outcome in soak.outcomes)
    refused = sum(outcome.result in ERRORS.values() for outcome in soak.outcomes)
    soak.checks["work gets done"] = verdict(good > refused / 10, f"{good} good answers, {refused} refused")


def check_log(soak: Soak, server: Server) -> None:
    text = server.log.read_text(errors="replace")
    bugs = [line for line in text.splitlines() if "Traceback" in line or "never retrieved" in line]
    soak.checks["the log shows no bug"] = verdict(not bugs, f"{len(bugs)} tracebacks")
    if bugs:
        where = text.index(bugs[0])
        soak.problems.append("in the log: " + " / ".join(text[where : where + 3000].splitlines()[:40]))


def check_store(soak: Soak, server: Server) -> None:
    soak.stored, problems = check_sessions(server.database, soak.turns)
    soak.checks["every acknowledged turn is stored, whole and once"] = verdict(
        not problems, f"{len(problems)} of {len(soak.turns)}"
    )
    soak.problems += problems[:100]


if __name__ == "__main__":
    sys.exit(main())
