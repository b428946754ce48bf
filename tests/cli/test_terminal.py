"""What a terminal is shown of text from outside, and how tables are laid out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_cli.tables import count_text, print_fields, print_table, size_text
from myllm_cli.terminal import clean, clean_line

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "title": "\x1b]0;owned\x1b\\",
    "C1 CSI": "\x9b2J",
    "C1 OSC": "\x9d0;owned\x9c",
    "bell and backspace": "rm\x07\x08\x08ls",
    "carriage return": "safe\rEVIL",
    "override": "\u202ecod.exe",
    "isolate": "\u2066a\u2069",
    "arabic mark": "\u061cx",
    "surrogate": "\ud800x",
    "delete": "a\x7fb",
}
text_from_outside = st.text(st.characters() | st.sampled_from("\x1b\x9b\r\n\t\u202e\u2028\ud800"))


def _dangerous(text: str, allowed: str) -> list[str]:
    bidi = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0x2028, 0x2029)}
    return [character for character in text if character in (bidi | controls) - set(allowed)]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_harmless(text: str) -> None:
    assert not _dangerous(clean(text), allowed="\n\t")
    assert not _dangerous(clean_line(text), allowed="")


def test_what_people_write_stays() -> None:
    text = "naïve 日本語 עברית 👩‍👩‍👧 [red]x[/red]\n\ttab"
    assert clean(text) == text


@given(text_from_outside)
def test_cleaning_leaves_nothing_dangerous_and_is_stable(text: str) -> None:
    assert not _dangerous(clean(text), allowed="\n\t")
    assert clean(clean(text)) == clean(text)
    assert not _dangerous(clean_line(text), allowed="")


@given(text_from_outside, st.integers(0, 30))
def test_pieces_of_a_stream_are_cleaned_as_the_whole(text: str, at: int) -> None:
    assert clean(text[:at]) + clean(text[at:]) == clean(text)


def test_table_columns_line_up_with_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("日本", "x"), ("ab", "y"), ("\x1b[1mz", "y" * 300)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["A     B", "日本  x", "ab    y"]  # each of the two characters is two columns wide
    assert lines[3] == "[1mz  " + "y" * 300  # off a terminal nothing is cut, and no escape is left


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("name", "x"), ("licence", ""), ("context", 0), ("two", "a\nb")])
    assert capsys.readouterr().out == "name  x\ntwo   a b\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_200_000, "98.2 MB"), (4.9e12, "4.9 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("count", "text"), [(134_515_008, "134.5M"), (7 * 10**9, "7B"), (12, "12")])
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text
