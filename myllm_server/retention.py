"""The setting ``session_max_age``: sessions that nobody goes on with are deleted, at the start and then every hour."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from myllm_core.errors import MyllmError
from myllm_core.runtime.runtime import Runtime

logger = logging.getLogger("myllm.audit")

_EVERY = 3600.0
_DAY = 86400


@asynccontextmanager
async def deleting_idle_sessions(runtime: Runtime, every: float = _EVERY) -> AsyncIterator[None]:
    """Delete old sessions of ``runtime`` now and then, until the block ends; ``every`` is in seconds."""
    if math.isinf(runtime.settings.session_max_age):
        yield
        return
    task = asyncio.create_task(_delete_again_and_again(runtime, every))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _delete_again_and_again(runtime: Runtime, every: float) -> None:
    while True:
        deleted: list[str] = []
        try:
            async with aclosing(runtime.delete_idle_sessions(runtime.settings.session_max_age)) as ids:
                async for session_id in ids:
                    deleted.append(session_id)
        except MyllmError as error:
            logger.warning("old sessions can't be deleted now: %s", error.message)
        except Exception:
            logger.warning("old sessions can't be deleted now", exc_info=True)
        finally:
            _log(deleted, runtime.settings.session_max_age)
        await asyncio.sleep(every)


def _log(deleted: list[str], age: float) -> None:
    if not deleted:
        return
    span = f"{age / _DAY:.3g} days" if age >= _DAY else f"{age / 3600:.3g} hours"
    fields = {"key": "-", "client": "", "action": "delete old sessions", "sessions": len(deleted), "outcome": "ok"}
    logger.info("old sessions deleted (session_max_age, %s): %d", span, len(deleted), extra={"fields": fields})
    for session_id in deleted:
        logger.debug("deleted session %s", session_id)
