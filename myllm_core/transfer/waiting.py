"""Calls that don't come back in time, and don't hear Ctrl+C."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

_SLICE = 0.2
T = TypeVar("T")


class OutOfTime(TimeoutError):
    """The call isn't back within its time; its thread goes on by itself, and ends with the process."""


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """Run ``call`` in a thread of its own, and return or raise what it does; None is no limit. Raises ``OutOfTime``."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            answer.put((None, error))

    threading.Thread(target=run, name="myllm-waiting", daemon=True).start()
    deadline = float("inf") if seconds is None else time.monotonic() + seconds
    while True:
        try:
            result, error = answer.get(timeout=max(0.0, min(_SLICE, deadline - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise OutOfTime(f"no answer within {seconds:.0f} seconds") from None
            continue
        if error is not None:
            raise error
        return cast(T, result)
