"""How memory is kept small in a process that runs for months."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_ARENA_MAX = -8  # malloc.h of the GNU C library


def share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library is GNU's; call it before there are threads.

    By default it makes a heap for each thread that allocates, up to eight a core, and each keeps what was once needed
    there. Python's threads hardly ever allocate at the same moment, so one heap costs nothing, and the server's memory
    levels off a tenth lower and sooner (``make soak``). See mallopt(3). Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def collect_often() -> None:
    """Have Python's garbage collector run as often as it is made to, and not over what is there now.

    The command line puts it off, for a quick start. Each connection leaves a hundred objects that refer to each other
    (uvicorn's protocol, the scope, an exception and its frames): put off, that makes 10 MB of garbage before the first
    look, and holes that memory doesn't come back from. Call it when all is set up: that stays for good, and a look
    takes few milliseconds without it. See gc.freeze().
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 4)
