"""Which models are loaded: on demand and once however many ask, kept a while, the idlest given up for another.

Everything here runs on one event loop, so there are no locks but the one that lets models load one at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from myllm_core.errors import MyllmError, OutOfMemory, Overloaded, WorkerDied
from myllm_core.models.manifest import Model
from myllm_core.plugins import Plugins
from myllm_core.runtime.choose import choose_engine, load_options
from myllm_core.runtime.handle import Handle, LoadOrder
from myllm_core.runtime.memory import free_memory, readable, used_memory
from myllm_core.runtime.process import WorkerProcess
from myllm_core.runtime.thread import WorkerThread
from myllm_core.settings import Settings
from myllm_core.types import Progress

_PROGRESS_POLL = 0.1
_CRASHES, _CRASH_WINDOW, _COOLDOWN = 3, 60.0, 30.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model as others see it; ``expires_in`` is None while it is busy or kept for ever."""

    name: str
    engine: str
    pid: int | None
    context_size: int
    running: int
    queued: int
    memory: int
    loaded_at: str
    expires_in: float | None


class _Slot:
    """One model's place in the pool, from the first request for it to its unloading."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.task: asyncio.Task[Handle] | None = None
        self.progress = Progress("load", 0.0)
        self.users = 0
        self.last_used = 0.0
        self.loaded_at = ""
        self.expires_at = math.inf
        self.timer: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def handle(self) -> Handle | None:
        """The loaded model; None before it is loaded and when loading failed."""
        if self.task is None or not self.task.done() or self.task.cancelled() or self.task.exception():
            return None
        return self.task.result()

    @property
    def places(self) -> int:
        """How many requests run at the same time."""
        handle = self.handle
        return int(handle.facts["max_sequences"]) if handle else 1

    def is_for(self, order: LoadOrder) -> bool:
        """Whether what is loaded here is what ``order`` asks for."""
        mine = self.order
        return (mine.model, mine.engine, mine.options) == (order.model, order.engine, order.options)


class Lease:
    """A request's hold on a model: first ``wait`` for it, then use ``handle``."""

    def __init__(self, pool: Pool, slot: _Slot) -> None:
        self._pool = pool
        self._slot = slot

    async def wait(self) -> AsyncGenerator[Progress, None]:
        """Load the model, or wait for whoever loads it; yields what goes on. Raises what loading raises."""
        task = self._pool.loading(self._slot)
        shown: Progress | None = None
        while not task.done():
            if self._slot.progress != shown:
                shown = self._slot.progress
                yield shown
            await asyncio.wait([task], timeout=_PROGRESS_POLL)
        task.result()
        ahead = self._slot.users - self._slot.places
        if ahead > 0:
            yield Progress("queue", None, f"{ahead} ahead")

    @property
    def handle(self) -> Handle:
        """The loaded model."""
        handle = self._slot.handle
        assert handle is not None, "wait() comes first"
        return handle

    @property
    def engine(self) -> str:
        """The name of the engine that runs it."""
        return self._slot.order.engine.name


class Pool:
    """The models that are loaded."""

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        self._settings = settings
        self._plugins = plugins
        self._slots: dict[str, _Slot] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._load_lock = asyncio.Lock()
        self._crashes: dict[str, deque[float]] = {}
        self._closed = False

    def order(self, model: Model, engine: str | None, options: Mapping[str, Any] | None) -> LoadOrder:
        """What to load for a request. Without ``engine`` and ``options``, whatever is loaded already is right."""
        slot = self._slots.get(model.name)
        if slot is not None and not engine and not options and slot.order.model == model:
            return slot.order
        chosen = choose_engine(model, self._plugins, engine)
        configured = self._settings.engine_options.get(chosen.engine.name, {})
        merged = load_options(chosen.engine, configured, model.manifest.load_options, options or {})
        return LoadOrder(model, chosen.plugin, chosen.engine, merged, self._settings.load_timeout)

    @asynccontextmanager
    async def lease(self, order: LoadOrder, keep_alive: float | None = None) -> AsyncIterator[Lease]:
        """Hold a model for one request. Raises ``Overloaded`` when its queue is full or it keeps dying."""
        slot = self._slot(order)
        if slot.users >= slot.places + self._settings.queue_size:
            raise Overloaded(
                f"{order.model.name} has {slot.users} requests running or waiting; try again in a few seconds",
                retry_after=5,
            )
        slot.users += 1
        slot.idle.clear()
        self._stop_timer(slot)
        try:
            yield Lease(self, slot)
        finally:
            slot.users -= 1
            slot.last_used = asyncio.get_running_loop().time()
            if slot.users == 0:
                slot.idle.set()
                self._start_timer(slot, self._settings.keep_alive if keep_alive is None else keep_alive)

    def _slot(self, order: LoadOrder) -> _Slot:
        if self._closed:
            raise Overloaded("myllm is shutting down; try again when it is back", retry_after=10)
        name = order.model.name
        slot = self._slots.get(name)
        if slot is not None and self._is_dead(slot):
            self._note_crash(slot)
            self._retire(slot)
            slot = None
        if slot is not None and not slot.is_for(order):
            self._retire(slot)
            slot = None
        if slot is None:
            self._check_cooldown(name)
            slot = self._slots[name] = _Slot(order)
        return slot

    @staticmethod
    def _is_dead(slot: _Slot) -> bool:
        if slot.task is None or not slot.task.done():
            return False
        return slot.handle is None or slot.handle.dead is not None

    def _note_crash(self, slot: _Slot) -> None:
        handle = slot.handle
        if handle is not None and isinstance(handle.dead, WorkerDied):
            now = asyncio.get_running_loop().time()
            self._crashes.setdefault(slot.order.model.name, deque(maxlen=_CRASHES)).append(now)

    def _check_cooldown(self, name: str) -> None:
        crashes = self._crashes.get(name)
        if not crashes or len(crashes) < _CRASHES or crashes[-1] - crashes[0] > _CRASH_WINDOW:
            return
        left = crashes[-1] + _COOLDOWN - asyncio.get_running_loop().time()
        if left > 0:
            raise Overloaded(
                f"{name} died {_CRASHES} times within a minute; it rests for {math.ceil(left)} s more (see the log)",
                retry_after=math.ceil(left),
            )

    def loading(self, slot: _Slot) -> asyncio.Task[Handle]:
        """The task that loads the slot's model, started if need be. Whoever waits may go; it goes on."""
        if slot.task is None:
            slot.task = asyncio.create_task(self._load(slot), name=f"load {slot.order.model.name}")
            slot.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return slot.task

    async def _load(self, slot: _Slot) -> Handle:
        start = WorkerProcess.start if self._settings.isolation == "process" else WorkerThread.start

        def on_progress(progress: Progress) -> None:
            slot.progress = progress

        async with self._load_lock:
            await self._make_room(slot)
            handle = await start(slot.order, on_progress)
        slot.loaded_at = datetime.now(UTC).isoformat(timespec="seconds")
        slot.last_used = asyncio.get_running_loop().time()
        return handle

    async def _make_room(self, slot: _Slot) -> None:
        """Unload idle models, the least recently used first, until this one fits; wait for busy ones."""
        order = slot.order
        needed = order.engine.estimate(order.model, order.options).host
        await self._finish_leaving()
        while True:
            others = [other for other in self._slots.values() if other is not slot and other.handle]
            free = free_memory()
            if len(others) < self._settings.max_loaded_models and needed <= free:
                return
            if not others:
                raise OutOfMemory(
                    f"{order.model.name} needs about {readable(needed)} of memory, {readable(free)} is free; "
                    "use a smaller model, quantization or context",
                    needed=needed,
                    free=free,
                )
            victim = min(others, key=lambda other: (other.users > 0, other.last_used))
            slot.progress = Progress("load", 0.0, f"unloading {victim.order.model.name}")
            self._retire(victim)
            await self._finish_leaving()

    def _retire(self, slot: _Slot) -> None:
        """Take a model out of the pool: new requests go elsewhere, it is unloaded when those that run have ended."""
        if self._slots.get(slot.order.model.name) is slot:
            del self._slots[slot.order.model.name]
        self._stop_timer(slot)
        task = asyncio.create_task(self._unload(slot))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _unload(slot: _Slot) -> None:
        await slot.idle.wait()
        if slot.handle is not None:
            await slot.handle.close()

    async def _finish_leaving(self) -> None:
        if self._leaving:
            await asyncio.wait(list(self._leaving))

    def _start_timer(self, slot: _Slot, seconds: float) -> None:
        if self._slots.get(slot.order.model.name) is not slot:
            return
        loop = asyncio.get_running_loop()
        slot.expires_at = loop.time() + seconds
        if not math.isinf(seconds):
            slot.timer = loop.call_later(seconds, self._retire, slot)

    @staticmethod
    def _stop_timer(slot: _Slot) -> None:
        slot.expires_at = math.inf
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    def describe(self, name: str) -> Loaded | None:
        """What is known of a loaded model; None when it isn't loaded."""
        slot = self._slots.get(name)
        handle = slot.handle if slot else None
        if slot is None or handle is None or handle.dead:
            return None
        left = slot.expires_at - asyncio.get_running_loop().time()
        return Loaded(
            name,
            slot.order.engine.name,
            handle.pid,
            int(handle.facts["context_size"]),
            min(slot.users, slot.places),
            max(0, slot.users - slot.places),
            used_memory(handle.pid),
            slot.loaded_at,
            None if math.isinf(left) else max(0.0, left),
        )

    def loaded(self) -> list[Loaded]:
        """Every loaded model, by name."""
        return [loaded for name in sorted(self._slots) if (loaded := self.describe(name))]

    async def unload(self, name: str) -> bool:
        """Unload a model when its requests have ended. False when it wasn't loaded."""
        slot = self._slots.get(name)
        if slot is None:
            return False
        self._retire(slot)
        await self._finish_leaving()
        return True

    async def dead_models(self, timeout: float) -> list[str]:
        """Names of loaded models whose worker doesn't answer within ``timeout`` seconds."""
        live = [(name, slot.handle) for name, slot in self._slots.items() if slot.handle]

        async def answers(handle: Handle) -> bool:
            try:
                await asyncio.wait_for(handle.ping(), timeout)
            except (MyllmError, TimeoutError):
                return False
            return True

        results = await asyncio.gather(*(answers(handle) for _, handle in live))
        return [name for (name, _), alive in zip(live, results, strict=True) if not alive]

    async def close(self) -> None:
        """Unload everything at once, also what still loads or runs."""
        self._closed = True
        slots = list(self._slots.values())
        self._slots.clear()
        for slot in slots:
            self._stop_timer(slot)
            if slot.task is not None and not slot.task.done():
                slot.task.cancel()
        await asyncio.gather(*(slot.task for slot in slots if slot.task), return_exceptions=True)
        for slot in slots:
            slot.idle.set()
        await asyncio.gather(*(self._unload(slot) for slot in slots), return_exceptions=True)
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
