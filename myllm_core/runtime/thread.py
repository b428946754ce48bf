"""A model on a thread of this process: for tests and for embedding, without protection from crashes."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from io import BytesIO
from typing import Any

from myllm_core.errors import MyllmError, WorkerDied
from myllm_core.runtime.failures import as_error, checked
from myllm_core.runtime.handle import Handle, LoadOrder, OnProgress
from myllm_core.runtime.hosts import Host, host_for
from myllm_core.runtime.wire import command_frame, pack_facts, read_command

_CLOSE_GRACE = 5.0


class WorkerThread(Handle):
    """A model in this process, on a thread: for tests and for embedding, without protection from crashes."""

    def __init__(self, order: LoadOrder) -> None:
        super().__init__(order)
        self._loop = asyncio.get_running_loop()
        self._host: Host | None = None
        self._thread = threading.Thread(target=self._serve, name=f"model {order.model.name}", daemon=True)

    @classmethod
    async def start(cls, order: LoadOrder, on_progress: OnProgress) -> WorkerThread:
        """Start the thread and wait until the model is loaded. Raises ``EngineError``."""
        worker = cls(order)
        worker.on_progress = on_progress
        worker._thread.start()
        await worker._wait_loaded()
        return worker

    def kill(self) -> None:
        """A thread can't be ended; its requests end, and it is left behind."""
        if self.dead is not None:
            self._end(self.dead)

    def _serve(self) -> None:
        order = self.order
        error: MyllmError = WorkerDied(f"{order.model.name} was unloaded; ask again to load it")
        try:
            made = order.engine.load(order.model, order.options, lambda f: self._emit([[0, "p", "load", f, ""]]))
            engine = checked(made, order.engine.name)
            self._host = host_for(engine, self._emit, f"{order.model.name} {order.model.manifest.family}")
            most = getattr(engine, "max_sequences", engine.max_concurrency)
            self._emit([[0, "ready", {**pack_facts(engine.facts), "max_sequences": most}]])
            self._host.run()
        except Exception as failure:  # noqa: BLE001 - a stranger's engine may raise anything
            error = as_error(failure, "loading the model" if self._host is None else "running")
        with suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(self._end, error)

    def _emit(self, batch: list[list[Any]]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, json.loads(json.dumps(batch)))

    def _post(self, command: list[Any]) -> None:
        if self._host is not None:
            self._host.post(read_command(BytesIO(command_frame(command))))

    async def close(self) -> None:
        """Ask the thread to end and wait for it."""
        if self._host is not None:
            self._host.post(["close"])
        await asyncio.to_thread(self._thread.join, _CLOSE_GRACE)
