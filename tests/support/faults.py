"""Talking to a server process of which something is broken on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from myllm_core.models.manifest import Manifest, ModelFile
from myllm_core.models.store import ModelStore
from soaking.http import ask
from soaking.server import Server

Start = Callable[..., Server]


def chat(server: Server, model: str, text: str = "x", **more: Any) -> tuple[int, Any]:
    """A chat that isn't streamed: status and values."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False, **more}
    return asyncio.run(ask(server.port, "POST", "/api/chat", body))


def get(server: Server, path: str) -> tuple[int, Any]:
    return asyncio.run(ask(server.port, "GET", path))


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it didn't come true in time"
        time.sleep(0.05)


def install_gguf(models: Path, name: str, source: Path, engine: str = "") -> Path:
    """Install a GGUF file without any look into it, as a link that costs no disk; the file's path."""
    store = ModelStore(models)
    with store.lock(name):
        staged = store.staging(name)
        (staged / "model.gguf").hardlink_to(source)
        file = ModelFile(f"{staged.name}/model.gguf", source.stat().st_size, "0" * 64)
        small = {"n_ctx": 512, "n_threads": 1, "n_parallel": 2}
        store.commit(Manifest(name, "gguf", (file,), load_options=small, engine=engine))
    return store.get(name).paths[0]
