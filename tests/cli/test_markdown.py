"""Markdown on a terminal: nothing is lost, whatever its length and however it arrives in pieces."""

from __future__ import annotations

import io

import pyte
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from myllm_cli.markdown import Document, MarkdownStream, split_finished

BLOCKS = [
    "# A heading",
    "Some *text* with `code`\nand a second line.",
    "- one\n- two\n  - deeper\n- three",
    "1. first\n\n2. second",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "```python\nprint('x')\n\nprint('y')\n```",
    "> quoted",
    "<div>markup</div>",
    "[1]: https://example.org/reference",
    "See [here](https://example.org/there) and ![image](https://example.org/i.png).",
    "para\n#hashtag",
]


def _shown(pieces: list[str]) -> list[str]:
    """What a terminal of 12 lines has shown in the end, with what scrolled away."""
    screen = pyte.HistoryScreen(60, 12, history=10_000, ratio=0.001)
    terminal = pyte.Stream(screen)
    out = io.StringIO(newline="")
    stream = MarkdownStream(Console(file=out, force_terminal=True, width=60, height=12, legacy_windows=False))
    for piece in pieces:
        stream._next = 0.0  # draw at every piece: the worst case
        stream.feed(piece)
    stream.finish()
    terminal.feed(out.getvalue().replace("\n", "\r\n"))
    past = ["".join(line[x].data for x in range(60)) for line in screen.history.top]
    return [line.rstrip() for line in (*past, *screen.display)]


def _words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


def test_an_answer_longer_than_the_screen_is_whole_and_there_once() -> None:
    text = "# Title\n\n" + "\n".join(f"- item{i}" for i in range(40)) + "\n\n```\n" + "\n".join(
        f"line{i}" for i in range(50)
    ) + "\n```\n\nlast words"  # fmt: skip
    words = _words(_shown([text[i : i + 7] for i in range(0, len(text), 7)]))
    for expected in ("Title", *(f"item{i}" for i in range(40)), *(f"line{i}" for i in range(50)), "last", "words"):
        assert words.count(expected) == 1, expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6), st.integers(1, 40))
def test_pieces_show_the_same_as_the_whole(blocks: list[str], size: int) -> None:
    text = "\n\n".join(blocks)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert _words(_shown(pieces)) == _words(_shown([text]))


@given(st.text(st.sampled_from("ab \n#-*`|>1.[]():=~")))
def test_splitting_loses_nothing(text: str) -> None:
    finished, rest = split_finished(text)
    assert (rest if not finished and rest == text else f"{finished}\n{rest}") == text


def test_what_other_renderers_drop_is_shown() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    for block in BLOCKS:
        console.print(Document(block))
    shown = out.getvalue()
    for text in (
        "<div>markup</div>",
        "https://example.org/reference",
        "https://example.org/there",
        "example.org/i.png",
    ):
        assert text in shown
    assert "and a second line." in [line.strip() for line in shown.splitlines()]
    assert "\x1b]8" not in shown  # no hidden link targets


def test_markup_of_the_renderer_is_text() -> None:
    assert "[red]x[/red] [link=http://evil]y[/link]" in " ".join(_shown(["[red]x[/red] [link=http://evil]y[/link]"]))
