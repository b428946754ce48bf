"""llama.cpp's C functions as this engine calls them, and where its log goes.

Import this module only inside functions: it brings llama.cpp in.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger("myllm_llamacpp")

# ggml_log_level of ggml.h; llama-cpp-python 0.3.36 numbers them differently in its own logger.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.DEBUG, 4: logging.WARNING}
_WARN, _CONTINUED = 3, 5
_KEPT_LINES = 50

# ctypes.CDLL gives the GIL away in every call, and getting it back can take milliseconds while another thread
# computes. These calls take microseconds, so they keep it.
_SHORT_CALLS = (
    "llama_get_logits_ith",
    "llama_memory_seq_cp",
    "llama_memory_seq_pos_max",
    "llama_memory_seq_pos_min",
    "llama_memory_seq_rm",
    "llama_token_to_piece",
    "llama_vocab_get_attr",
    "llama_vocab_get_text",
    "llama_vocab_is_eog",
)


class Log:
    """llama.cpp's log, which is one for the whole process.

    Errors become Python warnings, the rest is shown at debug level only. ``capture`` keeps the warnings and errors
    that the calling thread causes, to tell why something failed.
    """

    def __init__(self, api: Any) -> None:
        self._local = threading.local()
        self.callback = api.llama_log_callback(self._take)  # llama.cpp keeps the address, so this must stay alive
        self._level = _WARN
        api.llama_log_set(self.callback, None)

    @contextmanager
    def capture(self) -> Iterator[deque[str]]:
        """Keep the last warnings and errors of this thread in the deque, instead of logging them as warnings."""
        lines: deque[str] = deque(maxlen=_KEPT_LINES)
        outer = getattr(self._local, "lines", None)
        self._local.lines = lines
        try:
            yield lines
        finally:
            self._local.lines = outer

    def _take(self, level: int, text: bytes, _data: object) -> None:
        if level != _CONTINUED:
            self._level = level
        captured = getattr(self._local, "lines", None)
        shown = _LEVELS.get(self._level, logging.DEBUG)
        line = text.decode(errors="replace").rstrip()
        if captured is not None:
            if self._level >= _WARN and line:
                captured.append(line)
            shown = logging.DEBUG
        if line and logger.isEnabledFor(shown):
            logger.log(shown, "%s", line)


class Library:
    """The loaded library: ``api`` is llama-cpp-python's module; the calls of ``short`` keep the GIL."""

    def __init__(self) -> None:
        from llama_cpp import llama_cpp

        # Else a failed assertion starts a debugger, whose output hides the assertion and takes seconds.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        self.api: Any = llama_cpp
        self.log = Log(llama_cpp)
        self.short: Any = ctypes.PyDLL(llama_cpp._lib._name)
        for name in _SHORT_CALLS:
            function, declared = getattr(self.short, name), getattr(llama_cpp, name)
            function.argtypes, function.restype = declared.argtypes, declared.restype
        self.short.llama_get_logits_ith.restype = ctypes.c_void_p  # the address is all that a numpy view needs
        llama_cpp.llama_backend_init()


@cache
def library() -> Library:
    """The library, loaded at the first call. Raises ``ImportError`` or ``RuntimeError`` when it can't be."""
    return Library()
