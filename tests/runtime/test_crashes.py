"""How long a model rests whose process keeps dying."""

from __future__ import annotations

import pytest

from myllm_core.errors import Overloaded
from myllm_core.runtime.crashes import Crashes


def rest(crashes: Crashes, now: float) -> int:
    try:
        crashes.check("model", now)
    except Overloaded as error:
        return int(error.data["retry_after"])
    return 0


def test_the_third_death_in_a_row_brings_a_rest_and_each_one_more_a_longer_one() -> None:
    crashes, now, rests = Crashes(), 1000.0, []
    for _ in range(9):
        crashes.note("model", now)
        rests.append(rest(crashes, now))
        assert rest(crashes, now + rests[-1]) == 0, "then it may be tried once"
        now += rests[-1] + 1
    assert rests == [0, 0, 30, 60, 120, 240, 300, 300, 300]


def test_a_rest_counts_down_and_says_for_how_long() -> None:
    crashes = Crashes()
    for _ in range(3):
        crashes.note("model", 50.0)
    with pytest.raises(Overloaded, match="died 3 times in a row; it rests for 20 s more, or until it is unloaded"):
        crashes.check("model", 60.5)
    crashes.check("another", 60.5)


@pytest.mark.parametrize("why", ["works", "quiet"])
def test_what_ends_a_row(why: str) -> None:
    crashes = Crashes()
    for _ in range(3):
        crashes.note("model", 0.0)
    if why == "works":
        crashes.forget("model")
        now = 5.0
    else:
        now = 601.0
    crashes.note("model", now)
    assert rest(crashes, now) == 0


def test_deaths_for_years_make_no_number_too_large() -> None:
    crashes = Crashes()
    for number in range(5000):
        crashes.note("model", number * 300.0)
    assert rest(crashes, 4999 * 300.0) == 300
