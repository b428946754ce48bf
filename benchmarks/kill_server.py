"""Kill the server with SIGKILL at random instants while sessions are written, and count what is stored.

    python benchmarks/kill_server.py [--times N] [--clients N] [--longest SECONDS] [--seed N]

Clients send turns with an idempotency key, and send a turn again when they got no whole answer to it. Whatever they saw
the end of must be stored once and whole, and nothing twice. Needs the echo plugin and no model; exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from soaking.clients import Acknowledged, Frames
from soaking.http import Call, CutOff
from soaking.server import ECHO, Server, gone, install
from soaking.stored import check_sessions

SESSIONS = 3


class Writer:
    """A client that writes turns of its own session and of shared ones, and never gives one up."""

    def __init__(self, number: int, seed: int) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.number = number
        self.acknowledged: list[Acknowledged] = []
        self.again = 0

    async def run(self, port: Port) -> None:
        """Write until told to stop, and until the last turn is acknowledged."""
        while not port.stopping:
            key = uuid.UUID(int=self.random.getrandbits(128)).hex
            session = self.random.choice([f"own{self.number}", f"shared{self.number % SESSIONS}"])
            question = f"{key[:8]} " + " ".join("word" for _ in range(self.random.randint(1, 8)))
            while (reply := await self._try(port, session, key, question)) is None:
                self.again += 1
            self.acknowledged.append(Acknowledged(session, key, question, reply))

    async def _try(self, port: Port, session: str, key: str, question: str) -> str | None:
        stream = self.random.random() < 0.5
        messages = [{"role": "user", "content": question}]
        body = {"model": ECHO, "messages": messages, "session_id": session, "stream": stream}
        try:
            async with Call(await port.wait()) as call:
                await call.send("POST", "/api/chat", json.dumps(body).encode(), {"idempotency-key": key})
                status = await call.head()
                if status != 200:
                    print(f"status {status}: {(await call.body())[:200]!r}")
                    await asyncio.sleep(0.1)
                    return None
                return await _streamed(call) if stream else json.loads(await call.body())["message"]["content"]
        except (OSError, CutOff):
            await asyncio.sleep(0.02)
            return None


async def _streamed(call: Call) -> str | None:
    frames = Frames()
    async for data in call.data():
        frames.feed(data)
    return frames.last["full_text"] if frames.end() == "ok" else None


class Port:
    """Where the server listens now; clients wait while it doesn't."""

    def __init__(self) -> None:
        self._number = 0
        self._up = asyncio.Event()
        self.stopping = False

    async def wait(self) -> int:
        await self._up.wait()
        return self._number

    def up(self, number: int) -> None:
        self._number = number
        self._up.set()

    def down(self) -> None:
        self._up.clear()


async def run(server: Server, arguments: argparse.Namespace) -> tuple[list[Writer], list[psutil.Process]]:
    chance = random.Random(arguments.seed)
    port, workers = Port(), []
    writers = [Writer(number, arguments.seed) for number in range(arguments.clients)]
    writing = [asyncio.create_task(writer.run(port)) for writer in writers]
    for _ in range(arguments.times):
        await asyncio.to_thread(server.start)
        port.up(server.port)
        await asyncio.sleep(chance.random() * arguments.longest)
        workers += server.workers()
        port.down()
        await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    port.up(server.port)
    port.stopping = True
    await asyncio.wait_for(asyncio.gather(*writing), 60)
    return writers, workers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="how often the server is killed (200)")
    parser.add_argument("--clients", type=int, default=8, help="clients that write at the same time (8)")
    parser.add_argument("--longest", type=float, default=2.5, help="most seconds that a server lives (2.5)")
    parser.add_argument("--seed", type=int, default=1, help="makes the instants repeatable (1)")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="myllm-kill-") as folder:
        install(ECHO, Path(folder) / "models", delay_ms=10)
        server = Server(Path(folder), Path(folder) / "models", {})
        try:
            writers, workers = asyncio.run(run(server, arguments))
            code = server.stop()
        finally:
            if server.alive:
                server.kill()
        turns = [turn for writer in writers for turn in writer.acknowledged]
        messages, problems = check_sessions(server.database, turns)
        if not gone(workers):
            problems.append("a worker outlived its server")
        if code:
            problems.append(f"the last server ended with {code}")
    print(
        f"killed {arguments.times} times in {time.monotonic() - began:.0f} s: {len(turns)} turns acknowledged, "
        f"{sum(writer.again for writer in writers)} sent again, {messages} messages stored, {len(problems)} problems"
    )
    print("\n".join(problems[:50]))
    return 1 if problems or not turns else 0


if __name__ == "__main__":
    sys.exit(main())
