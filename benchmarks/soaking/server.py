"""The server under test: a real `myllm serve`, watched from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

WORKER = "myllm_core.runtime.worker"
ECHO = "echo"


def install(model: str, models: Path, delay_ms: int = 20) -> None:
    """Install the model: by `myllm pull`, or a made-up one for the echo engine."""
    if model != ECHO:
        command = [sys.executable, "-m", "myllm_cli", "--models-dir", str(models), "pull", model]
        subprocess.run(command, check=True)
        return
    from myllm_core.models.manifest import Manifest, ModelFile
    from myllm_core.models.store import ModelStore

    store = ModelStore(models)
    with store.lock("echo:latest"):
        staged = store.staging("echo:latest")
        (staged / "echo.txt").write_bytes(b"echo\n")
        file = ModelFile(f"{staged.name}/echo.txt", 5, "0" * 64)
        store.commit(Manifest("echo:latest", "echo", (file,), load_options={"delay_ms": delay_ms}))


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server took at a moment: seconds since the begin, bytes, and counts."""

    at: float
    memory: int
    worker_memory: int
    fds: int
    zombies: int


class Server:
    """A server process in a folder of its own."""

    def __init__(self, home: Path, models: Path, settings: Mapping[str, str]) -> None:
        self.home = home
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("MYLLM_")} | {
            "MYLLM_MODELS_DIR": str(models),
            "MYLLM_DATA_DIR": str(home / "data"),
            "MYLLM_CONFIG": str(home / "none.toml"),
            **{f"MYLLM_{name.upper()}": value for name, value in settings.items()},
        }
        self.log = home / "server.log"

    @property
    def database(self) -> Path:
        """The sessions file."""
        return self.home / "data" / "sessions.db"

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "myllm_cli", "serve", "--port", "0"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"Listening on http://\S+:(\d+)\n", line)
        if not found:
            raise RuntimeError(f"the server didn't start: {line!r}; see {self.log}")
        self.port = int(found[1])
        self._watched = psutil.Process(self.process.pid)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Its worker processes that live."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in self._watched.children():
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if WORKER in child.cmdline():
                        found.append(child)
        return found

    def kill_worker(self) -> bool:
        """Kill a worker with SIGKILL, if there is one."""
        for worker in self.workers()[:1]:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
                return True
        return False

    def sample(self, at: float) -> Sample:
        """Measure it; it must be alive."""
        zombies = workers = 0
        for child in self._watched.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                zombies += child.status() == psutil.STATUS_ZOMBIE
                workers += child.memory_info().rss
        return Sample(at, self._watched.memory_info().rss, workers, self._watched.num_fds(), zombies)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self._reap(10)

    def stop(self, seconds: float = 30) -> int:
        """End it with SIGTERM; its exit code, -9 when it had to be killed."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self._reap(seconds)

    def _reap(self, seconds: float) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def gone(processes: list[psutil.Process], seconds: float = 15) -> bool:
    """Whether all have ended within some seconds."""
    until = time.monotonic() + seconds
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
