"""Markdown that is rendered on a terminal while it is written.

A block that is finished is printed for good and scrolls away like any other output, so an answer longer than the
screen loses nothing. Only the block that is still being written is drawn again and again, and of it no more lines
than fit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_LEAST_INTERVAL = 0.08  # seconds between two drawings
_MOST_SHARE = 0.1  # of the time is spent drawing


def _parser() -> MarkdownIt:
    # HTML, images and link definitions would not be shown at all; as text they are.
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return parser.disable(["reference", "image"])


class Document(Markdown):
    """Markdown of which everything is shown: line ends are kept, and links show where they lead."""

    def __init__(self, markup: str) -> None:
        super().__init__(markup, hyperlinks=False)
        self.parsed = _parser().parse(markup)
        for token in _all(self.parsed):
            if token.type == "softbreak":
                token.type = "hardbreak"


def _all(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or [])


def split_finished(text: str) -> tuple[str, str]:
    """Split Markdown before the block that more text could still change: the last one with a whole line."""
    whole = text.rpartition("\n")[0] + "\n"
    starts = [token.map[0] for token in _parser().parse(whole) if token.level == 0 and token.map and token.nesting >= 0]
    if not starts or starts[-1] == 0:
        return "", text
    lines = text.split("\n")
    return "\n".join(lines[: starts[-1]]), "\n".join(lines[starts[-1] :])


class _Tail:
    """The last lines of Markdown, as many as fit the screen."""

    def __init__(self, markup: str) -> None:
        self._markup = markup

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Document(self._markup), options, pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Renders Markdown that arrives in pieces. The text must be ``clean``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._pending = ""
        self._started = False
        self._printed = False
        self._next = 0.0

    def feed(self, text: str) -> None:
        """Take the next piece."""
        self._pending += text
        now = time.monotonic()
        if now < self._next or not self._pending.strip():
            return
        if not self._started:
            self._live.start()
            self._started = True
        self._draw()
        cost = time.monotonic() - now
        self._next = now + max(_LEAST_INTERVAL, cost / _MOST_SHARE)

    def _draw(self) -> None:
        finished, self._pending = split_finished(self._pending)
        if finished.strip():
            self._print(finished)
        self._live.update(_Tail(self._pending), refresh=True)

    def _print(self, markup: str) -> None:
        if self._printed:
            self._console.print()
        self._console.print(Document(markup))
        self._printed = True

    def finish(self) -> None:
        """Print what is left. Call it in any case, or the terminal's cursor stays hidden."""
        if self._started:
            self._live.update("")
            self._live.stop()
        if self._pending.strip():
            self._print(self._pending)
        self._pending = ""
