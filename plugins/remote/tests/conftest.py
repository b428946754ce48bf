"""Real servers to be remote from: another myllm on a socket, and one that misbehaves as a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from myllm_remote.engine import RemoteEngine
from myllm_remote.spec import Spec

from myllm_core import Model
from myllm_core.models.manifest import Manifest, ModelFile
from myllm_core.runtime.choose import load_options
from support.server import LiveServer, install_echo, live_server
from support.wild_server import Exchange, Handler, WildServer

MakeModel = Callable[..., Model]
OpenEngine = Callable[..., RemoteEngine]


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Another myllm, with the models ``echo`` and ``slow``, which takes 50 ms for each word."""
    home = tmp_path_factory.mktemp("upstream")
    install_echo(home / "models")
    install_echo(home / "models", "slow:latest", load_options={"delay_ms": 50})
    with live_server(home) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2_server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Another myllm with the real model on llama.cpp, in a process of its own."""
    from myllm_core.models.store import ModelStore
    from myllm_core.plugins import load_plugins
    from myllm_core.transfer.pull import pull

    class Quiet:
        def message(self, text: str) -> None: ...

        def file(self, path: str, done: int, total: int | None) -> None: ...

    home = tmp_path_factory.mktemp("smollm2")
    store = ModelStore(home / "models")
    pull(f"file:{smollm2_gguf}", plugins=load_plugins(), store=store, progress=Quiet(), name="smollm2")
    # a cache for each sequence, so that no reply depends on its company
    options = {"llamacpp": {"n_ctx": 2048, "n_parallel": 4, "kv_unified": False, "cache_disk": 0, "n_threads": 1}}
    with live_server(home, isolation="process", engine_options=options) as server:
        yield server


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a remote model as pull does: ``make_model(url…, model=…, dialect=…)``."""

    def make(*urls: str, model: str = "echo:latest", dialect: str = "myllm", **manifest: Any) -> Model:
        path = tmp_path / f"remote-{len(list(tmp_path.iterdir()))}" / "remote.json"
        path.parent.mkdir()
        path.write_bytes(Spec(model, urls, dialect).to_bytes())
        file = ModelFile(str(path), path.stat().st_size, "0" * 64)
        return Model(Manifest("far:latest", "remote", (file,), **manifest), path.parent)

    return make


@pytest.fixture
def open_engine(make_model: MakeModel) -> Iterator[OpenEngine]:
    """Loads a remote model, and closes it in the end: ``open_engine(url…, load={…}, model=…)``."""
    engines = []

    def load(*urls: str, load: dict[str, Any] | None = None, **more: Any) -> RemoteEngine:
        options = load_options(RemoteEngine, {"stall_timeout": 10.0, "connect_timeout": 2.0}, load or {})
        engines.append(RemoteEngine.load(make_model(*urls, **more), options, lambda fraction: None))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


Wild = Callable[[Handler], WildServer]


@pytest.fixture
def wild() -> Iterator[Wild]:
    """Starts servers that list the model ``m`` and do as the handler says for everything else."""
    with ExitStack() as stack:

        def start(handler: Handler) -> WildServer:
            def listing(exchange: Exchange) -> None:
                if exchange.target.endswith("/models"):
                    exchange.answer(json.dumps({"data": [{"id": "m"}]}).encode())
                else:
                    handler(exchange)

            return stack.enter_context(WildServer(listing))

        yield start


@pytest.fixture
def wild_engine(wild: Wild, open_engine: OpenEngine) -> Any:
    """An engine on a server that does as the handler says, and that server."""

    def start(handler: Any, dialect: str = "other", **more: Any) -> tuple[RemoteEngine, Any]:
        server = wild(handler)
        return open_engine(server.url("/v1"), model="m", dialect=dialect, **more), server

    return start


def sse(*chunks: Any, done: bool = True) -> bytes:
    """A body of Server-Sent Events."""
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + (b"data: [DONE]\n\n" * done)


def said(text: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    content = {"content": text} if text is not None else {}
    return {"choices": [{"index": 0, "delta": content | delta, "finish_reason": finish}]}
