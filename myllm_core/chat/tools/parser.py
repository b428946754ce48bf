"""Telling calls from text in a reply, piece by piece, whatever the pieces are."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from myllm_core.chat.text import overlap
from myllm_core.chat.tools.reading import NoCall, Reader, Reading
from myllm_core.chat.tools.syntax import Syntax
from myllm_core.types import ToolCallDelta, Tools

Piece = str | ToolCallDelta

_BETWEEN = ";, \t\r\n"  # what may stand between calls without markers


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolCallParser:
    """Finds the calls of one reply.

    What turns out to be no call is text, all of it. Blanks between calls, and between text and a call, belong to
    neither. A call that the reply's end cuts has been told as far as it went.
    """

    def __init__(self, syntax: Syntax, tools: Tools, new_id: Callable[[], str] = new_call_id) -> None:
        self._syntax = syntax
        self._schemas = {tool.name: tool.parameters or {} for tool in tools.functions}
        self._single = not tools.parallel
        self._new_id = new_id
        self.count = 0
        self.done = False
        self._pieces: list[Piece] = []
        self._arguments: list[str] = []
        self._held = ""
        self._raw: list[str] = []
        self._reading: Reading[None] | None = None
        self._open = False
        self._at_start = True
        self._after_call = False
        self._fed = 0

    @property
    def certain(self) -> int:
        """How many characters of the reply have been told, as text or as a call's."""
        return self._fed - len(self._held) - sum(map(len, self._raw))

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain, in order."""
        self._held += text
        self._fed += len(text)
        while self._held and not self.done:
            if self._reading is not None:
                self._read(self._reading)
            elif not self._look():
                break
        return self._take()

    def flush(self) -> list[Piece]:
        """What was held, at the end of the reply."""
        if not self._open and not self.done:
            held = "".join(self._raw) + self._held
            self._say("" if self._reading is None and self._after_call and self._closes(held.strip()) else held)
        self._raw, self._held = [], ""
        return self._take()

    def _take(self) -> list[Piece]:
        self._tell_arguments()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._at_start = self._after_call = False

    def _closes(self, text: str) -> bool:
        """Whether what follows a call is nothing, or may become a marker that closes one."""
        return not text or any(close.startswith(text) for close in self._syntax.closes)

    def _look(self) -> bool:
        """Look for a call in what is held; False when more is needed to go on."""
        stripped = self._held.lstrip()
        if self._after_call:
            for close in self._syntax.closes:
                if stripped.startswith(close):
                    self._held = stripped[len(close) :]
                    return True
            if self._closes(stripped) or (self._syntax.plain and not stripped.strip(_BETWEEN)):
                return False
            self._held = stripped
        if self._begins_plainly(stripped):
            return True
        found = [(at, marker) for marker in self._syntax.opens if (at := self._held.find(marker)) >= 0]
        if not found:
            return self._say_certain()
        at, marker = min(found)
        text = self._held[:at].rstrip()
        raw = self._held[len(text) : at + len(marker)]
        self._say(text)
        self._held = self._held[at + len(marker) :]
        self._start(self._syntax.opens[marker], raw)
        return True

    def _begins_plainly(self, stripped: str) -> bool:
        """Start to read a call without a marker, where one may stand."""
        if self._syntax.plain is None or not (self._at_start or self._after_call):
            return False
        if self._after_call:
            stripped = stripped.lstrip(_BETWEEN)
        if not stripped.startswith(("{", "[", "`")):
            return False
        blank = self._held[: len(self._held) - len(stripped)]
        self._held = stripped
        self._start(self._syntax.plain, blank)
        return True

    def _say_certain(self) -> bool:
        """Say what is held, but for blanks and for what may become a marker."""
        held = self._held
        keep = max((overlap(held, marker) for marker in self._syntax.opens), default=0)
        text = held[: len(held) - keep].rstrip()
        self._say(text)
        self._held = held[len(text) :]
        return False

    def _start(self, reader: Reader, raw: str) -> None:
        self._raw = [raw]
        self._reading = reader(self)
        next(self._reading)

    def _read(self, reading: Reading[None]) -> None:
        held = self._held
        for at, c in enumerate(held):
            vain = not self._open
            if vain:
                self._raw.append(c)
            try:
                reading.send(c)
            except StopIteration:
                self._stop(held[at + 1 :], None)
                return
            except NoCall:
                self._stop(held[at:], "".join(self._raw[:-1] if vain else self._raw))
                return
            if self.done:
                self._stop("", None)
                return
        self._held = ""

    def _stop(self, rest: str, raw: str | None) -> None:
        """Go on with ``rest`` as text; ``raw`` is what was read in vain since the last call."""
        self._reading, self._raw, self._held = None, [], rest
        if self._open:
            self.end()
        elif raw is not None:
            self._say(raw)

    def begin(self, name: str) -> None:
        """See ``Calls``."""
        if name not in self._schemas:
            raise NoCall
        self._pieces.append(ToolCallDelta(self.count, self._new_id(), name))
        self.count += 1
        self._open = True
        self._raw = []

    def write(self, text: str) -> None:
        """See ``Calls``."""
        if text:
            self._arguments.append(text)

    def end(self) -> None:
        """See ``Calls``."""
        self._tell_arguments()
        self._open, self._after_call = False, True
        self.done = self._single

    def settle(self) -> None:
        """See ``Calls``."""
        self._raw = []

    def schema(self, name: str) -> dict[str, Any]:
        """See ``Calls``."""
        return self._schemas[name]

    def _tell_arguments(self) -> None:
        if self._arguments:
            self._pieces.append(ToolCallDelta(self.count - 1, arguments="".join(self._arguments)))
            self._arguments = []
