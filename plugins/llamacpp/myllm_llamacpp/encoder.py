"""Computing an image's rows a while at a time, so that running replies go on in between.

The encoder of a projector takes seconds where a step takes milliseconds. Two computations at a time would take the
cores from each other, since llama.cpp's threads spin while they wait; so it runs in a thread of its own, which stops
wherever ggml asks whether to go on, unless ``work`` waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

from myllm_llamacpp.context import Floats


class Encoder:
    """Runs one job at a time, with interruptions."""

    def __init__(self) -> None:
        """Begin with nothing to do."""
        self._go = threading.Event()
        self._rests = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted: object = None
        self._rows: Floats | None = None
        self._error: BaseException | None = None
        self._until = 0.0
        self._dropped = False

    def watch(self, _tensor: object, is_question: bool, _data: object) -> bool:
        """ggml's callback: asked before an operation whether to stop after it, then told that it is done.

        It stops after each: asking takes microseconds, and a large one up to a second.
        """
        if is_question:
            return True
        if not self._dropped and perf_counter() >= self._until:
            self._rests.set()
            self._go.wait()
            self._go.clear()
        return not self._dropped

    def work(self, wanted: object, job: Callable[[], Floats], seconds: float) -> Floats | None:
        """Go on with a job for so long; its rows when it is done, else None. ``wanted`` tells it from other jobs.

        A job that was begun before and is another one is given up. Raises what the job raises.
        """
        if self._wanted != wanted:
            self.drop()
            self._wanted, self._rows, self._error = wanted, None, None
            self._thread = threading.Thread(target=self._run, args=(job,), name="encode", daemon=True)
            self._thread.start()
        self._until = perf_counter() + seconds
        self._rests.clear()
        self._go.set()
        self._rests.wait()
        if self._rows is None and self._error is None:
            return None
        rows, error = self._rows, self._error
        self.drop()
        if error is not None:
            raise error
        return rows

    def _run(self, job: Callable[[], Floats]) -> None:
        self._go.wait()
        self._go.clear()
        try:
            self._rows = job()
        except BaseException as error:  # noqa: BLE001 - it is raised again by the thread that waits for the rows
            self._error = error
        self._rests.set()

    def drop(self) -> None:
        """Give the job up, and wait for its thread."""
        if self._thread is not None:
            self._dropped = True
            self._go.set()
            self._thread.join()
        self._go.clear()
        self._thread = self._wanted = self._rows = self._error = None
        self._dropped = False
