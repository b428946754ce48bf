"""uvicorn's server with a graceful stop. Imported only inside ``serve``."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from uvicorn import Config, Server  # noqa: TID253 - this module is imported inside serve()

from myllm_server.gate import Gate

logger = logging.getLogger("myllm.server")


class GracefulServer(Server):
    """uvicorn's server with a graceful stop.

    On a first signal what is new gets 503, until what runs has ended or ``grace`` seconds are over. A second one
    ends everything at once; ``forced_by`` is its number then. ``ready`` is called when requests are taken.
    """

    def __init__(self, config: Config, gate: Gate, grace: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.gate = gate
        self.grace = grace
        self.ready = ready
        self.forced_by: int | None = None
        self._deadline: float | None = None

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        """Start, and say so."""
        await super().startup(*args, **kwargs)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A stop signal came."""
        if self.gate.closed:
            self.forced_by = sig
            self.force_exit = self.should_exit = True
        self.gate.closed = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to shut down now; asked ten times a second."""
        if await super().on_tick(counter):
            return True
        if not self.gate.closed:
            return False
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self.grace
            if self.gate.running:
                logger.info("stopping: %d requests still run", len(self.gate.running))
        return not self.gate.running or now >= self._deadline

    async def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End what still runs, and close."""
        self.gate.closed = True
        self.gate.cancel_running()
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(*args, **kwargs)


def exit_code(server: GracefulServer) -> int:
    """0 after a graceful stop; 128 and the number of the signal that forced one."""
    return 0 if server.forced_by is None else 128 + signal.Signals(server.forced_by)
