"""Real processes of the command line, in places of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pytest

PROMPT = r"\x1b\[\?2004h.*?You: "  # a new one: typing draws the prompt again, but doesn't turn bracketed paste on again
COMMAND = [sys.executable, "-m", "myllm_cli"]
Result = subprocess.CompletedProcess[str]


@dataclass
class Myllm:
    """Runs ``myllm`` with models, data and settings below ``home``."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MYLLM_", "COV_"))}
        places = {
            "MYLLM_MODELS_DIR": str(self.home / "models"),
            "MYLLM_DATA_DIR": str(self.home / "data"),
            "MYLLM_CONFIG": str(self.home / "config.toml"),
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # the pseudo-terminal of a test doesn't answer questions
        }
        return kept | places | self.extra

    def __call__(self, *arguments: str, input: str | bytes | None = None, **options: Any) -> Result:
        given = input.encode() if isinstance(input, str) else input
        source: dict[str, Any] = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run([*COMMAND, *arguments], env=self.env, **({"timeout": 60} | pipes | source | options))
        texts = [(text or b"").decode() for text in (done.stdout, done.stderr)]
        return Result(done.args, done.returncode, *texts)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*COMMAND, *arguments], env=self.env, **options)

    def terminal(self, *arguments: str, **options: Any) -> pexpect.spawn:
        options = {"timeout": 30, "dimensions": (24, 80), "encoding": "utf-8"} | options
        return pexpect.spawn(COMMAND[0], [*COMMAND[1:], *arguments], env=self.env, **options)


@pytest.fixture
def myllm(tmp_path: Path) -> Myllm:
    return Myllm(tmp_path)


@pytest.fixture(scope="session")
def pulled_echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with the echo model, pulled by the command itself."""
    home = tmp_path_factory.mktemp("echo")
    done = Myllm(home)("pull", "echo")
    assert done.returncode == 0, done.stderr
    return home / "models"


@pytest.fixture
def with_echo(myllm: Myllm, pulled_echo: Path) -> Myllm:
    """``myllm`` with the echo model installed."""
    shutil.copytree(pulled_echo, myllm.home / "models")
    return myllm


@pytest.fixture
def chat(with_echo: Myllm) -> Iterator[Callable[..., pexpect.spawn]]:
    """Starts a chat with the echo model on a pseudo-terminal, and waits for its first prompt."""
    terminals = []

    def start(*arguments: str, delay_ms: int = 0) -> pexpect.spawn:
        terminal = with_echo.terminal("run", "echo", "--load-option", f"delay_ms={delay_ms}", *arguments)
        terminals.append(terminal)
        terminal.expect(PROMPT)
        return terminal

    yield start
    for terminal in terminals:
        terminal.close(force=True)
