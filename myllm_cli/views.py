"""How a reply is shown while it comes: as plain text, or as Markdown on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from myllm_cli.terminal import clean, fancy

if TYPE_CHECKING:
    from myllm_cli.markdown import MarkdownStream

_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class View(Protocol):
    """Shows one reply."""

    def reasoning(self, text: str) -> None:
        """Show the next piece of reasoning."""

    def text(self, text: str) -> None:
        """Show the next piece of the answer."""

    def finish(self) -> None:
        """Show what is still held back, and end the line. Called once, however the reply ended."""


@dataclass(frozen=True, slots=True)
class Look:
    """How replies are to be shown. ``label`` goes before each; ``reasoning_to`` is where reasoning goes."""

    markdown: bool
    raw: bool
    label: str = ""
    reasoning_to: TextIO = sys.stderr

    def view(self) -> View:
        """A view for one reply."""
        if self.markdown and not self.raw and fancy(sys.stdout):
            return MarkdownView(self)
        return PlainView(self)


def styled(text: str, style: str, stream: TextIO) -> str:
    """``text`` in a style, where that is welcome."""
    return f"{style}{text}{_PLAIN}" if fancy(stream) else text


def bold(text: str, stream: TextIO) -> str:
    """``text`` in bold, where that is welcome."""
    return styled(text, _BOLD, stream)


def dim(text: str, stream: TextIO) -> str:
    """``text`` dimmed, where that is welcome."""
    return styled(text, _DIM, stream)


class _Reasoning:
    """Reasoning, dimmed, as it comes; a blank line parts it from the answer."""

    def __init__(self, stream: TextIO, clean_text: Callable[[str], str]) -> None:
        self._stream = stream
        self._clean = clean_text
        self._open = False

    def show(self, text: str) -> None:
        self._open = True
        print(dim(self._clean(text), self._stream), end="", file=self._stream, flush=True)

    def end(self) -> None:
        if self._open:
            print("\n", file=self._stream, flush=True)
        self._open = False


def _as_it_is(text: str) -> str:
    return text


class PlainView:
    """The text as it comes, cleaned unless ``raw``."""

    def __init__(self, look: Look) -> None:
        self._clean = _as_it_is if look.raw else clean
        self._label = look.label
        self._last = ""
        self._reasoning = _Reasoning(look.reasoning_to, self._clean)

    def reasoning(self, text: str) -> None:
        """Show the next piece of reasoning."""
        self._begin()
        self._reasoning.show(text)

    def text(self, text: str) -> None:
        """Show the next piece of the answer."""
        self._reasoning.end()
        self._begin()
        shown = self._clean(text)
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._last = shown[-1:] or self._last

    def _begin(self) -> None:
        if self._label:
            print(bold(self._label, sys.stdout), end="", flush=True)
            self._last, self._label = self._label[-1], ""

    def finish(self) -> None:
        """End the line."""
        self._reasoning.end()
        if self._last not in ("", "\n"):
            print(flush=True)


class MarkdownView:
    """The answer as Markdown, below its label."""

    def __init__(self, look: Look) -> None:
        self._label = look.label
        self._reasoning = _Reasoning(look.reasoning_to, clean)
        self._stream: MarkdownStream | None = None

    def reasoning(self, text: str) -> None:
        """Show the next piece of reasoning."""
        self._begin()
        self._reasoning.show(text)

    def text(self, text: str) -> None:
        """Show the next piece of the answer."""
        self._reasoning.end()
        self._begin()
        if self._stream is None:
            from rich.console import Console

            from myllm_cli.markdown import MarkdownStream

            self._stream = MarkdownStream(Console(markup=False, highlight=False))
        self._stream.feed(clean(text))

    def _begin(self) -> None:
        if self._label:
            print(bold(self._label, sys.stdout), flush=True)
            self._label = ""

    def finish(self) -> None:
        """Print what is left."""
        self._reasoning.end()
        if self._stream is not None:
            self._stream.finish()


class SilentView:
    """Shows nothing: the reply is printed as JSON when it is whole."""

    def reasoning(self, text: str) -> None:
        """Show nothing."""

    def text(self, text: str) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""
