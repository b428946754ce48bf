"""The event loop that ``serve`` runs on."""

from __future__ import annotations

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which takes a third less processor time for a streamed token; asyncio's own where there is none."""
    try:
        import uvloop
    except ImportError:  # it isn't made for Windows, nor for PyPy
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
