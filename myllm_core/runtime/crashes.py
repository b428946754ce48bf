"""When a model whose process keeps dying may be loaded again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from myllm_core.errors import Overloaded

_AT_ONCE = 2  # deaths after which the next request starts it again at once: the cause may have been another program
_FIRST_REST, _LONGEST_REST = 30.0, 300.0
_FORGET = 600.0


@dataclass(slots=True)
class _Row:
    deaths: int
    last: float


class Crashes:
    """Counts deaths in a row, by model: ones without an answer between them, and without ten quiet minutes.

    From the third on a model rests: 30 s, then twice as long each time, at most 5 minutes. Times are the loop's.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def note(self, name: str, now: float) -> None:
        """A process of this model has died before it answered a request."""
        row = self._rows.setdefault(name, _Row(0, now))
        if now - row.last > _FORGET:
            row.deaths = 0
        row.deaths += 1
        row.last = now

    def forget(self, name: str) -> None:
        """It works, or somebody who looks after it wants it tried again."""
        self._rows.pop(name, None)

    def check(self, name: str, now: float) -> None:
        """Raise ``Overloaded`` while a model rests."""
        row = self._rows.get(name)
        if row is None or row.deaths <= _AT_ONCE:
            return
        rest = min(_FIRST_REST * 2.0 ** min(row.deaths - _AT_ONCE - 1, 10), _LONGEST_REST)
        left = math.ceil(row.last + rest - now)
        if left > 0:
            raise Overloaded(
                f"{name} died {row.deaths} times in a row; it rests for {left} s more, or until it is unloaded "
                "(see the log)",
                retry_after=left,
            )
