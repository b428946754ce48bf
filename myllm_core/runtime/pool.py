"""Which models are loaded: on demand and once however many ask, kept a while, the idlest given up for another.

Everything here runs on one event loop, so there are no locks but the one that lets models load one at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

from myllm_core.engine import MemoryEstimate
from myllm_core.errors import EngineError, MyllmError, OutOfMemory, Overloaded, WorkerDied
from myllm_core.machine import free_memory
from myllm_core.models.manifest import Model
from myllm_core.plugins import Plugins
from myllm_core.runtime.choose import choose_engine, estimated, load_options
from myllm_core.runtime.crashes import Crashes
from myllm_core.runtime.handle import Handle, LoadOrder, OnProgress
from myllm_core.runtime.memory import Shortage, readable, shortage, wants_more
from myllm_core.runtime.observe import Observer
from myllm_core.runtime.process import WorkerProcess
from myllm_core.runtime.slot import Lease, Loaded, Slot
from myllm_core.settings import Settings
from myllm_core.types import Progress

log = logging.getLogger("myllm.runtime")

Start = Callable[[LoadOrder, OnProgress], Awaitable[Handle]]


def _starter(settings: Settings, order: LoadOrder) -> Start:
    if settings.isolation == "process" or order.engine.needs_process:
        return WorkerProcess.start
    from myllm_core.runtime.thread import WorkerThread  # with all that runs engines, which a worker process has else

    return WorkerThread.start


class Pool:
    """The models that are loaded."""

    def __init__(self, settings: Settings, plugins: Plugins, observers: Sequence[Observer] = ()) -> None:
        self._settings = settings
        self._plugins = plugins
        self._observers = observers
        self._slots: dict[str, Slot] = {}
        self._leaving: dict[asyncio.Task[None], Slot] = {}
        self._load_lock = asyncio.Lock()
        self._crashes = Crashes()
        self._watchdog: asyncio.Task[None] | None = None
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
    async def lease(
        self, order: LoadOrder, keep_alive: float | None = None, client: str = "", deadline: float | None = None
    ) -> AsyncIterator[Lease]:
        """Hold a model for a request of ``client``, until ``deadline`` on the loop's clock (None: ``request_timeout``).

        Raises ``Overloaded`` when its queue is full or it keeps dying.
        """
        slot = self._slot(order)
        slot.check_queue(self._settings.queue_size)
        slot.users += 1
        slot.idle.clear()
        self._stop_timer(slot)
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._settings.request_timeout
        lease = Lease(slot, self._loading(slot), client, deadline)
        try:
            yield lease
        finally:
            lease.release()
            slot.users -= 1
            slot.last_used = asyncio.get_running_loop().time()
            if slot.users == 0:
                slot.idle.set()
                self._start_timer(slot, self._keep_alive(slot, keep_alive))

    def _keep_alive(self, slot: Slot, asked: float | None) -> float:
        name = slot.order.model.name
        if self._is_pinned(slot):
            return math.inf
        return self._settings.model_keep_alive.get(name, self._settings.keep_alive) if asked is None else asked

    def _is_pinned(self, slot: Slot) -> bool:
        manifest = slot.order.model.manifest
        return not {manifest.name, *manifest.aliases}.isdisjoint(self._settings.pinned_models)

    def _slot(self, order: LoadOrder) -> Slot:
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
            self._crashes.check(name, asyncio.get_running_loop().time())
            slot = self._slots[name] = Slot(order)
        return slot

    @staticmethod
    def _is_dead(slot: Slot) -> bool:
        if slot.task is None or not slot.task.done():
            return False
        return slot.handle is None or slot.handle.dead is not None

    def _note_crash(self, slot: Slot) -> None:
        """Remember the death of a worker that hadn't answered one request; one that had is just started again."""
        name = slot.order.model.name
        if slot.handle is not None and slot.handle.proved:
            self._crashes.forget(name)
            return
        cause = slot.handle.dead if slot.handle else slot.task and not slot.task.cancelled() and slot.task.exception()
        if isinstance(cause, WorkerDied):
            self._crashes.note(name, asyncio.get_running_loop().time())

    def _loading(self, slot: Slot) -> asyncio.Task[Handle]:
        """The task that loads the slot's model, started if need be. Whoever waits may go; it goes on."""
        if slot.task is None:
            slot.task = asyncio.create_task(self._load(slot), name=f"load {slot.order.model.name}")
            slot.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return slot.task

    async def _load(self, slot: Slot) -> Handle:
        start = _starter(self._settings, slot.order)

        def on_progress(progress: Progress) -> None:
            slot.progress = progress

        loop = asyncio.get_running_loop()
        async with self._load_lock:
            await self._make_room(slot)
            started = loop.time()
            with self._watched_load(slot.order):
                handle = await start(slot.order, on_progress)
            handle.on_death = lambda error: self._tell_of_death(slot.order, error)
        slot.last_used = loop.time()
        slot.load_seconds = slot.last_used - started
        slot.loaded_at = datetime.now(UTC).isoformat(timespec="seconds")
        if self._watchdog is None:
            self._watchdog = asyncio.create_task(self._watch(), name="watchdog", context=contextvars.Context())
        return handle

    @contextmanager
    def _watched_load(self, order: LoadOrder) -> Iterator[None]:
        """Log and tell the observers how a load ends."""
        name, engine = order.model.name, order.engine.name
        began, started, failure = time.time(), time.perf_counter(), None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            seconds = time.perf_counter() - started
            for observer in self._observers:
                observer.load_ended(name, engine, began, seconds, failure)
            how = f"could not be loaded: {failure}" if failure else "is loaded"
            fields = {"model": name, "engine": engine, "seconds": round(seconds, 3)}
            level = logging.WARNING if isinstance(failure, Exception) else logging.INFO
            log.log(level, "%s %s (%s, %.1f s)", name, how, engine, seconds, extra={"fields": fields})

    def _tell_of_death(self, order: LoadOrder, error: MyllmError) -> None:
        for observer in self._observers:
            observer.worker_died(order.model.name, error)

    async def _watch(self) -> None:
        """End workers that run requests and say nothing: a healthy one answers between any two steps."""
        while True:
            await asyncio.sleep(min(5.0, self._settings.hang_timeout / 4))
            for slot in (*self._slots.values(), *self._leaving.values()):
                if slot.handle is not None and slot.users:
                    slot.handle.check_alive(self._settings.hang_timeout)

    async def _make_room(self, slot: Slot) -> None:
        """Unload idle models, the least recently used first, until this one fits; wait for busy ones."""
        slot.needs = await self._estimated(slot.order)
        self._check_fits(slot)
        await self._finish_leaving()
        while True:
            others = self._loaded_beside(slot)
            crowded = len(others) >= self._settings.max_loaded_models
            lack = shortage(slot.needs, free_memory())
            victims = self._victims(slot, lack, crowded)
            if not victims and lack is not None:
                raise _too_large(slot, lack)
            if not victims and crowded:
                raise Overloaded(
                    f"all {len(others)} loaded models are pinned; raise max_loaded_models or unpin one", retry_after=60
                )
            if not victims:
                return
            victim = min(victims, key=self._worth)
            slot.progress = Progress("load", 0.0, f"unloading {victim.order.model.name}")
            self._retire(victim)
            await self._finish_leaving()
            if slot.needs.device:  # only the engine knows how much of that is free now
                slot.needs = await self._estimated(slot.order)

    def _victims(self, slot: Slot, lack: Shortage | None, crowded: bool) -> list[Slot]:
        """The models that may go for this one: those that hold what it lacks, or idle ones when it only does better."""
        unpinned = [other for other in self._loaded_beside(slot) if not self._is_pinned(other)]
        if crowded or (lack is not None and not lack.on_device):
            return unpinned
        on_device = [other for other in unpinned if other.needs.device]
        if lack is not None:
            return on_device
        return [other for other in on_device if not other.users] if wants_more(slot.needs) else []

    async def _estimated(self, order: LoadOrder) -> MemoryEstimate:
        """What the engine estimates, on a thread: it may read files, and a stranger's may hang."""
        try:
            async with asyncio.timeout(None if math.isinf(order.load_timeout) else order.load_timeout):
                return await asyncio.to_thread(estimated, order.engine, order.model, order.options)
        except TimeoutError:
            raise EngineError(
                f"the {order.engine.name} engine didn't say within {order.load_timeout:g} s how much memory "
                f"{order.model.name} needs"
            ) from None

    def _loaded_beside(self, slot: Slot) -> list[Slot]:
        others = (other for other in self._slots.values() if other is not slot)
        return [other for other in others if other.handle and not other.handle.dead]

    def _check_fits(self, slot: Slot) -> None:
        """Refuse a model that doesn't fit even when all others are gone, before any of them is unloaded for it."""
        leaving = [other for other in self._leaving.values() if other.handle]
        unpinned = [other for other in self._loaded_beside(slot) if not self._is_pinned(other)]
        held = sum(max(other.used, other.needs.host) for other in unpinned + leaving)
        held_on_device = sum(other.needs.device for other in unpinned + leaving)
        lack = shortage(slot.needs, free_memory() + held, held_on_device)
        if lack is not None:
            raise _too_large(slot, lack)

    @staticmethod
    def _worth(slot: Slot) -> tuple[bool, float]:
        """Busy models are worth keeping most; of idle ones, those that were used lately or take long to load."""
        idle = asyncio.get_running_loop().time() - slot.last_used
        return slot.users > 0, max(slot.load_seconds, 0.1) / max(idle, 0.001)

    def _retire(self, slot: Slot) -> asyncio.Task[None]:
        """Take a model out of the pool: new requests go elsewhere, it is unloaded when those that run have ended."""
        if self._slots.get(slot.order.model.name) is slot:
            del self._slots[slot.order.model.name]
        self._stop_timer(slot)
        task = asyncio.create_task(self._unload(slot), name=f"unload {slot.order.model.name}")
        self._leaving[task] = slot
        task.add_done_callback(self._leaving.pop)
        return task

    @staticmethod
    async def _unload(slot: Slot) -> None:
        await slot.idle.wait()
        if slot.task is not None and not slot.task.done():  # nobody waits any more for it to load
            slot.task.cancel()
            await asyncio.wait([slot.task])
        if slot.handle is not None:
            await slot.handle.close()
            log.info("%s is unloaded", slot.order.model.name, extra={"fields": {"model": slot.order.model.name}})

    async def _finish_leaving(self) -> None:
        """Wait until those that leave have given their memory back.

        One that isn't loaded yet isn't waited for: it holds none, and waits itself until whoever calls this is done.
        """
        while tasks := [task for task, slot in self._leaving.items() if slot.handle]:
            await asyncio.wait(tasks)

    def _start_timer(self, slot: Slot, seconds: float) -> None:
        if self._slots.get(slot.order.model.name) is not slot:
            return
        loop = asyncio.get_running_loop()
        slot.expires_at = loop.time() + seconds
        if not math.isinf(seconds):
            slot.timer = loop.call_later(seconds, self._retire, slot)

    @staticmethod
    def _stop_timer(slot: Slot) -> None:
        slot.expires_at = math.inf
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    def loaded(self) -> list[Loaded]:
        """Every loaded model, by name."""
        slots = [slot for _, slot in sorted(self._slots.items()) if slot.handle and not slot.handle.dead]
        return [slot.describe() for slot in slots]

    async def unload(self, name: str) -> bool:
        """Unload a model when its requests have ended, or end its rest. False when it wasn't loaded."""
        self._crashes.forget(name)
        slot = self._slots.get(name)
        if slot is None:
            return False
        await asyncio.wait([self._retire(slot)])
        return True

    async def dead_models(self, timeout: float) -> list[str]:
        """Names of loaded models whose worker doesn't answer: an idle one within ``timeout`` seconds.

        One whose process has ended isn't loaded any more: the next request starts it again.
        A busy one answers between two steps, and a step of a large model may take long: it isn't waited for, and
        doesn't answer when it has been silent for half the ``hang_timeout``.
        """
        live = [(name, slot) for name, slot in self._slots.items() if slot.handle and not slot.handle.dead]
        results = await asyncio.gather(*(self._answers(slot, timeout) for _, slot in live))
        return [name for (name, _), alive in zip(live, results, strict=True) if not alive]

    async def _answers(self, slot: Slot, timeout: float) -> bool:
        handle = slot.handle
        assert handle is not None, "only loaded models are asked"
        busy = slot.users > 0 or handle.cancelling
        try:
            async with asyncio.timeout(0 if busy else timeout):
                await handle.ping()
        except TimeoutError:
            return busy and handle.unanswered < self._settings.hang_timeout / 2
        except MyllmError:
            return False
        return True

    async def close(self) -> None:
        """Unload everything at once, also what still loads or runs."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        for slot in list(self._slots.values()):
            self._retire(slot)
        for slot in self._leaving.values():
            slot.idle.set()
        await asyncio.gather(*self._leaving, return_exceptions=True)


def _too_large(slot: Slot, lack: Shortage) -> OutOfMemory:
    kind, less = ("GPU memory", ", or fewer layers there") if lack.on_device else ("memory", "")
    return OutOfMemory(
        f"{slot.order.model.name} needs about {readable(lack.needed)} of {kind}, {readable(lack.free)} is free; "
        f"use a smaller model, quantization or context{less}",
        needed=lack.needed,
        free=lack.free,
    )
