"""What a terminal may see, and what it can do.

Everything that came from outside (a model's text, names, metadata, errors) passes through ``clean`` or
``clean_line`` before it is shown. Characters are taken out one by one, never whole sequences, so a
sequence that is split over two pieces of a stream is as harmless as one that isn't, and no text after an
unfinished sequence is swallowed.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_INVISIBLE = {*range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000)}
_LINE_ENDS = {0x2028: "\n", 0x2029: "\n"}

_TEXT: dict[int, str | None] = {**dict.fromkeys(_CONTROLS | _BIDI | _INVISIBLE), **_LINE_ENDS}
_LINE: dict[int, str | None] = {**_TEXT, **dict.fromkeys((*map(ord, "\n\t"), *_LINE_ENDS), " ")}


def clean(text: str) -> str:
    """Text without control characters, bidirectional overrides and lone surrogates; newlines and tabs stay.

    Works on any piece of a stream: ``clean(a) + clean(b) == clean(a + b)``.
    """
    return text.translate(_TEXT)


def clean_line(text: object) -> str:
    """``clean``, and on one line."""
    return str(text).translate(_LINE).strip()


def fancy(stream: TextIO) -> bool:
    """Whether colours and cursor movement are welcome: a terminal, not a dumb one, and NO_COLOR isn't set."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and not os.environ.get("NO_COLOR")


def say(text: str) -> None:
    """Tell the user something on standard error, where it can't end up in an answer."""
    print(clean(text), file=sys.stderr, flush=True)


def ask(question: str, *, default: bool) -> bool | None:
    """Ask a yes-or-no question on standard error; None when nobody can answer (no terminal)."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    while True:
        print(clean_line(question), "[Y/n]" if default else "[y/N]", end=" ", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return False
        answer = line.strip().lower()
        if answer in ("y", "yes", "n", "no", ""):
            return default if not answer else answer.startswith("y")


def prepare_streams() -> None:
    """Make standard input, output and error usable whatever the caller left of them.

    A closed descriptor is opened on the null device: otherwise the next file or socket would take its number and
    receive what is printed. A character that the terminal's encoding lacks is replaced, never an error.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


class StatusLine:
    """One line on standard error that changes in place; off a terminal each stage is a line of its own, once."""

    def __init__(self) -> None:
        self._fancy = fancy(sys.stderr)
        self._shown = ""
        self._said: set[str] = set()

    def show(self, stage: str, detail: str = "") -> None:
        """Show ``stage``; ``detail`` (such as a percentage) is only for a terminal."""
        text = clean_line(f"{stage} {detail}")
        if not self._fancy:
            if stage not in self._said:
                say(clean_line(stage))
            self._said.add(stage)
        elif text != self._shown:
            width = os.get_terminal_size(2).columns - 1
            print(f"\r\x1b[K\x1b[2m{text[:width]}\x1b[0m", end="", file=sys.stderr, flush=True)
            self._shown = text

    def clear(self) -> None:
        """Take the line away."""
        if self._fancy and self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._shown = ""
