"""Ctrl+C in a chat: the first press stops the reply that is being written, the second one leaves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Counts the presses since the user last said something, also those between a reply and the next prompt.

    Use it as ``with Interrupts() as interrupts``, on the event loop of the main thread. A third press interrupts the
    program, whatever it is doing.
    """

    def __init__(self) -> None:
        self.presses = 0
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Task[None] | None = None
        self._input: asyncio.Task[str | None] | None = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self.presses += 1
        if self.presses > 2:
            raise KeyboardInterrupt
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._reply is not None:
            if not self._reply.cancelling():  # a second time would disturb the storing of what came
                self._reply.cancel()
        elif self._input is not None and self.presses > 1:
            self._input.cancel()

    async def stoppable(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run ``work`` so that a press stops it alone; says whether one did."""
        self.presses = 0
        self._reply = asyncio.ensure_future(work)
        try:
            await self._reply
        except asyncio.CancelledError:
            if not self.presses:
                raise
        finally:
            self._reply = None
        return self.presses > 0

    async def reading(self, work: Coroutine[Any, Any, str | None]) -> str | None:
        """Run ``work``, which reads what the user says; None when a second press ended it."""
        if self.presses > 1:
            work.close()
            return None
        self._input = asyncio.ensure_future(work)
        try:
            return await self._input
        except asyncio.CancelledError:
            if self.presses < 2:
                raise
            return None
        finally:
            self._input = None
