"""What is started anew each time: servers until their first token, and commands until they end or say something."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from sidebyside.client import Refused
from sidebyside.machine import memory
from sidebyside.scenarios import Values, Words, ask
from sidebyside.servers import Kind, Server, Setup


async def load(kind: Kind, setup: Setup, words: Words) -> Values:
    """Start a server, ask for one reply: how long both take, and the memory that it has then."""
    server = Server(kind, setup.work)
    try:
        server.wait_ready()
        ready = time.perf_counter()
        reply = await ask(server, words.story(), 8)
        return {
            "ready_ms": 1000 * (ready - server.started),
            "first_token_ms": 1000 * (reply.times[0] - server.started),
            "memory_mb": memory([server.pid]),
        }
    finally:
        server.stop()


class Commands:
    """The command lines of this project and of ``llm``, in places of their own."""

    def __init__(self, setup: Setup, ours: Kind) -> None:
        places = {"LLM_USER_PATH": str(setup.work / "llm")}
        self._environments: dict[str, Mapping[str, str]] = {
            "myllm": os.environ | dict(ours.environment),
            "llm": os.environ | places,
        }
        myllm, llm = str(setup.myllm), str(setup.bench / "bin" / "llm")
        asked = "Why is the sky blue?"
        self.commands: dict[str, dict[str, Sequence[str]]] = {
            "version_ms": {"myllm": [myllm, "--version"], "llm": [llm, "--version"]},
            "help_ms": {"myllm": [myllm, "--help"], "llm": [llm, "--help"]},
            "list_ms": {"myllm": [myllm, "list"], "llm": [llm, "models"]},
            "answer_ms": {
                "myllm": [myllm, "run", "smollm2", asked, "--max-tokens", "16"],
                "llm": [llm, "-m", "SmolLM2", asked],
            },
        }

    async def run(self, name: str, words: Words) -> Values:
        """Milliseconds of each command of a program; of an answer until its first letter comes."""
        return {
            metric: self._until(commands[name], self._environments[name], first=metric == "answer_ms")
            for metric, commands in self.commands.items()
        }

    def _until(self, command: Sequence[str], environment: Mapping[str, str], *, first: bool) -> float:
        begin = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            said = process.stdout.read(1) if first else process.stdout.read()
            seconds = time.perf_counter() - begin
            if first:
                process.send_signal(signal.SIGINT)  # one that is killed leaves its worker, whose time would be others'
        if not said or (process.returncode and not first):
            raise Refused(f"{' '.join(command[1:])} ended with code {process.returncode}")
        return 1000 * seconds
