"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress


def give_back() -> None:
    """Drop what nobody refers to any more, and have the C library return its free memory, where it is GNU's.

    By itself it keeps what lies between things that are still in use: for engines in a process that goes on, half a
    model (see malloc_trim(3)).
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # musl has no such call
            ctypes.CDLL(None).malloc_trim(0)
