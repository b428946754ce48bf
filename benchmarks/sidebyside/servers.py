"""The servers that are compared: how each is started with the same model, context, slots and threads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

PATIENCE = 60.0  # seconds that a server may take to start
_POLL = 0.005

_XLLAMACPP = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, port, context, slots, threads = sys.argv[1], *map(int, sys.argv[2:6])
parameters.hostnames, parameters.port = ["127.0.0.1"], port
parameters.n_ctx, parameters.n_parallel, parameters.kv_unified = context, slots, True
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
if sys.argv[6:]:
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(parameters)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Setup:
    """What is the same for all servers, and where things are. ``context`` is in tokens, for all slots together."""

    model: Path
    work: Path
    myllm: Path
    context: int = 16384
    slots: int = 16
    threads: int = 2

    @property
    def bench(self) -> Path:
        """The environment with the peers, which is the one that runs this program."""
        return Path(sys.prefix)


@dataclass(frozen=True)
class Kind:
    """A program that serves: its command for a port, and the names of the scenarios that it ``takes`` part in."""

    name: str
    command: Callable[[int], Sequence[str]]
    takes: frozenset[str]
    health: str = "/health"
    model: str = "smollm2"
    environment: Mapping[str, str] = field(default_factory=dict)
    ignores_eos: bool = True
    about: str = ""


class Server:
    """A running server."""

    def __init__(self, kind: Kind, work: Path) -> None:
        self.kind = kind
        self.name = kind.name
        self.port = _free_port()
        self.log = work / f"{kind.name.replace('/', '-')}-{self.port}.log"
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                kind.command(self.port),
                env=os.environ | dict(kind.environment),
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process that was started; its children belong to the server too."""
        return self.process.pid

    def wait_ready(self) -> None:
        """Wait until it says that it can be asked. Raises ``RuntimeError`` with the end of its log."""
        while time.perf_counter() - self.started < PATIENCE and self.process.poll() is None:
            if self._healthy():
                return
            time.sleep(_POLL)
        self.stop()
        tail = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        raise RuntimeError(f"{self.name} doesn't start: {' | '.join(tail)}")

    def _healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.kind.health)
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


EVERY = frozenset({"stream", "4 clients", "8 clients", "16 clients", "32 clients", "prompt", "chat", "json", "load"})


def ours(setup: Setup) -> Kind:
    """This project's server, over a models directory with nothing but the model."""
    places = {name: str(setup.work / "myllm" / name) for name in ("models", "data", "config.toml")}
    environment = {
        "MYLLM_MODELS_DIR": places["models"],
        "MYLLM_DATA_DIR": places["data"],
        "MYLLM_CONFIG": places["config.toml"],
        "MYLLM_KEEP_ALIVE": "forever",
        "MYLLM_LOG_LEVEL": "warning",
        "MYLLM_ENGINE_OPTIONS": json.dumps(
            {"llamacpp": {"n_ctx": setup.context, "n_parallel": setup.slots, "n_threads": setup.threads}}
        ),
    }
    if not Path(places["models"]).exists():
        command = [str(setup.myllm), "pull", f"file:{setup.model}", "--name", "smollm2"]
        subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return Kind(
        "myllm",
        lambda port: (str(setup.myllm), "serve", "--port", str(port)),
        EVERY | {"embeddings"},
        environment=environment,
        about="this project",
    )


def llama_server(setup: Setup, *, embeddings: bool = False) -> Kind:
    """llama.cpp's own server: built on our libraries, or where that isn't there the one that xllamacpp brings."""
    binary = setup.bench / "bin" / "llama-server"
    takes = frozenset({"embeddings"}) if embeddings else EVERY
    context, slots, threads = (str(size) for size in (setup.context, setup.slots, setup.threads))

    def native(port: int) -> list[str]:
        command = [str(binary), "-m", str(setup.model), "--host", "127.0.0.1", "--port", str(port), "--offline"]
        command += ["-c", context, "-np", slots, "-kvu", "-t", threads, "-tb", threads]
        return [*command, "--embeddings", "--pooling", "mean"] if embeddings else command

    def packaged(port: int) -> list[str]:
        command = [sys.executable, "-c", _XLLAMACPP, str(setup.model), str(port), context, slots, threads]
        return [*command, "embeddings"] if embeddings else command

    if binary.exists():
        about = "llama.cpp's own server (C++), built on the same libraries"
        return Kind("llama-server", native, takes, about=about)
    return Kind("llama-server", packaged, takes, about="the server inside xllamacpp (C++), a generic build")


def example_server(setup: Setup) -> Kind:
    """The batching server among llama-cpp-python's examples."""
    (source,) = (setup.bench / "src").glob("llama_cpp_python-*/examples/server/server.py")
    model = {"alias": "smollm2", "path": str(setup.model), "kv_unified": True, "use_mmap": True}
    model |= {"n_ctx": setup.context, "n_seq_max": setup.slots, "n_batch": 512, "n_ubatch": 512}
    model |= {"threads": setup.threads, "threads_batch": setup.threads}

    def command(port: int) -> list[str]:
        config = setup.work / f"example-server-{port}.json"
        config.write_text(json.dumps({"server": {"host": "127.0.0.1", "port": port}, "model": model}))
        return [sys.executable, str(source), "-C", str(config)]

    return Kind(
        "examples/server",
        command,
        EVERY - {"4 clients", "32 clients", "json"},
        health="/healthz",
        ignores_eos=False,
        about="the batching server among llama-cpp-python's examples (Python)",
    )


def llama_cpp_server(setup: Setup) -> Kind:
    """The server in llama-cpp-python: one request after another."""

    def command(port: int) -> list[str]:
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(setup.model), "--model_alias", "smollm2"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "4096", "--interrupt_requests", "false"]
        return [*command, "--n_threads", str(setup.threads), "--n_threads_batch", str(setup.threads)]

    return Kind(
        "llama_cpp.server",
        command,
        frozenset({"stream", "8 clients", "load"}),
        health="/v1/models",
        ignores_eos=False,
        about="the server in llama-cpp-python (Python), one request after another",
    )


def kinds(setup: Setup) -> list[Kind]:
    """All that can be compared here; ours first."""
    found = [ours(setup), llama_server(setup), llama_server(setup, embeddings=True)]
    for make in (example_server, llama_cpp_server):
        with suppress(ValueError):  # its source isn't there
            found.append(make(setup))
    return found
