"""A reply on its way to the reader, kept in its session before it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from myllm_core.errors import MyllmError
from myllm_core.sessions.conversation import Said, Turn, keep_turn
from myllm_core.types import Event, Finish

if TYPE_CHECKING:
    from myllm_core.runtime.runtime import Runtime

log = logging.getLogger("myllm.runtime")


async def keep_with_turn(
    events: AsyncGenerator[Event, None], runtime: Runtime, session_id: str, turn: Turn, model: str
) -> AsyncGenerator[Event, None]:
    """The same events; the turn is stored before the last one, or when the reader goes away."""
    said = Said()
    kept = False

    async def keep(finish: Finish) -> None:
        if not said and finish.reason in ("cancelled", "error"):
            return
        reply = said.message(finish.reason)
        await runtime.sessions(lambda store: keep_turn(store, session_id, turn, reply, finish, model))

    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Finish):
                    kept = True
                    event = await _or_error(event, keep(event))
                else:
                    said.take(event)
                yield event
    except (GeneratorExit, asyncio.CancelledError):
        if not kept:
            finish = await _or_error(Finish("cancelled"), keep(Finish("cancelled")))
            if finish.error is not None:  # nobody is left to tell
                log.warning("an interrupted reply of session %s isn't stored: %s", session_id, finish.error)
        raise


async def _or_error(finish: Finish, keeping: Coroutine[Any, Any, None]) -> Finish:
    """The finish, or one that says that the turn couldn't be stored. Cancelling waits until it is."""
    task = asyncio.ensure_future(keeping)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])  # the session is ours until then: the next request reads what was stored
        raise
    except MyllmError as error:
        return replace(finish, reason="error", error=finish.error or error)
    return finish
