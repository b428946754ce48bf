"""One model's place in the pool: who holds it, who waits, and whose turn is next."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from myllm_core.engine import MemoryEstimate
from myllm_core.errors import DeadlineExceeded, Overloaded
from myllm_core.runtime.handle import Handle, LoadOrder
from myllm_core.runtime.memory import used_memory
from myllm_core.types import Progress

_PROGRESS_POLL = 0.1
_QUEUE_POLL = 1.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model as others see it; ``expires_in`` is None while it is busy or kept for ever.

    ``capabilities`` are those of ``ModelFacts``, by name.
    """

    name: str
    engine: str
    pid: int | None
    context_size: int
    running: int
    queued: int
    memory: int
    loaded_at: str
    expires_in: float | None
    capabilities: tuple[str, ...] = ()


class Line:
    """Who waits for one of ``places()`` places. Clients take turns, each first come first served."""

    def __init__(self, places: Callable[[], int]) -> None:
        self._places = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.inside = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, client: str) -> None:
        """Wait for a place; give it back with ``leave``."""
        if self.inside < self._places() and not self._waiting:
            self.inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                self._forget(client, turn)
            raise

    def leave(self) -> None:
        """Give a place back: the next client's oldest request takes it."""
        self.inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.inside < self._places():
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind the other clients
            if not turn.done():
                self.inside += 1
                turn.set_result(None)

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._waiting.pop(client, None)


class Slot:
    """A model that is loaded, or on its way. All its fields belong to the pool."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.task: asyncio.Task[Handle] | None = None
        self.progress = Progress("load", 0.0)
        self.line = Line(self._capacity)
        self.users = 0
        self.needs = MemoryEstimate(0)
        self.last_used = 0.0
        self.load_seconds = 0.0
        self.mean_hold = 1.0
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
    def used(self) -> int:
        """Bytes of memory that the loaded model's process takes; 0 when there is none."""
        handle = self.handle
        return used_memory(handle.pid) if handle else 0

    @property
    def places(self) -> int:
        """How many requests run at the same time."""
        handle = self.handle
        return int(handle.facts["max_sequences"]) if handle else 1

    def _capacity(self) -> int:
        # A few more than run: their prompts are prepared while others still generate, so no step goes short.
        return self.places + max(1, self.places // 4)

    def is_for(self, order: LoadOrder) -> bool:
        """Whether what is loaded here is what ``order`` asks for."""
        mine = self.order
        return (mine.model, mine.engine, mine.options) == (order.model, order.engine, order.options)

    def check_queue(self, size: int) -> None:
        """Raise ``Overloaded`` when no more than ``size`` may wait, and they do."""
        waiting = self.users - self.places
        if waiting < size:
            return
        retry = min(60, max(1, math.ceil(waiting / self.places * self.mean_hold)))
        raise Overloaded(
            f"{self.order.model.name} has {waiting} requests waiting, and takes no more; try again in {retry} s",
            retry_after=retry,
        )

    def describe(self) -> Loaded:
        """The slot as others see it; only once it is loaded."""
        handle = self.handle
        assert handle is not None, "only loaded slots are described"
        left = self.expires_at - asyncio.get_running_loop().time()
        running = min(self.users, self.places)
        return Loaded(
            self.order.model.name,
            self.order.engine.name,
            handle.pid,
            int(handle.facts["context_size"]),
            running,
            self.users - running,
            self.used,
            self.loaded_at,
            None if math.isinf(left) else max(0.0, left),
            tuple(handle.facts["capabilities"]),
        )


class Lease:
    """A request's hold on a model: first ``wait`` for it, then use ``handle``."""

    def __init__(self, slot: Slot, task: asyncio.Task[Handle], client: str, deadline: float) -> None:
        self._slot = slot
        self._task = task
        self._client = client
        self._deadline = deadline
        self._entered = 0.0

    async def loading(self) -> AsyncGenerator[Progress, None]:
        """Wait until the model is loaded, which is enough for what takes no turn; yields what goes on.

        Raises what loading raises, and ``DeadlineExceeded``.
        """
        shown: Progress | None = None
        while not self._task.done():
            if self._slot.progress != shown:
                shown = self._slot.progress
                yield shown
            await asyncio.wait([self._task], timeout=min(_PROGRESS_POLL, self._left()))
        if self._task.cancelled():
            raise Overloaded("myllm is shutting down; try again when it is back", retry_after=10)
        self._task.result()

    async def wait(self) -> AsyncGenerator[Progress, None]:
        """Wait until the model is loaded and it is this request's turn; yields what goes on. Raises as ``loading``."""
        async with aclosing(self.loading()) as loading:
            async for progress in loading:
                yield progress
        entering = asyncio.ensure_future(self._slot.line.enter(self._client))
        try:
            while not entering.done():
                await asyncio.wait([entering], timeout=min(_QUEUE_POLL, self._left()))
                if not entering.done():
                    yield Progress("queue", None, f"{self._slot.line.waiting} waiting")
            self._entered = asyncio.get_running_loop().time()
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.wait([entering])
            if not self._entered and not entering.cancelled():
                self._slot.line.leave()

    def _left(self) -> float:
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded(
                f"the request's time was up while it waited for {self._slot.order.model.name}; try again later"
            )
        return left

    @property
    def left(self) -> float:
        """Seconds until the request's deadline. Raises ``DeadlineExceeded`` when there are none."""
        return self._left()

    @property
    def handle(self) -> Handle:
        """The loaded model."""
        handle = self._slot.handle
        assert handle is not None, "wait() comes first"
        return handle

    def describe(self) -> Loaded:
        """What is held, as others see it; after ``wait()``."""
        return self._slot.describe()

    @property
    def engine(self) -> str:
        """The name of the engine that runs it."""
        return self._slot.order.engine.name

    def release(self) -> None:
        """Give the place back, if there is one."""
        if self._entered:
            held = asyncio.get_running_loop().time() - self._entered
            self._slot.mean_hold += 0.2 * (held - self._slot.mean_hold)
            self._entered = 0.0
            self._slot.line.leave()
