"""Generation options: strict types, ranges, unknown names refused, layers merged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.errors import InvalidOption, UnsupportedError
from myllm_core.options import Options, merge, parse_options, sampling
from myllm_core.types import Sampling

RANGES = {
    "temperature": (0, 2),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_last_n": (0, 2**20),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, 2**32 - 1),
    "max_tokens": (1, 2**20),
    "logprobs": (0, 20),
}
FLOATS = {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"}


@pytest.mark.parametrize(("name", "low", "high"), [(name, *limits) for name, limits in RANGES.items()])
def test_the_ends_of_a_range_are_in_it_and_the_next_values_are_not(name: str, low: int, high: int) -> None:
    for inside in (low, high):
        assert getattr(parse_options({name: inside}), name) == inside
    step = 0.001 if name in FLOATS else 1
    for outside in (low - step, high + step, 2**63, -(2**63), 10**5000 if name not in FLOATS else 1e308):
        with pytest.raises(InvalidOption, match=rf"^option {name}: input should be "):
            parse_options({name: outside})


@pytest.mark.parametrize("name", [*RANGES, "repeat_penalty"])
@pytest.mark.parametrize("value", ["5", "", True, False, [1], {}, float("nan"), float("inf"), float("-inf"), b"1"])
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"^option {name}: "):
        parse_options({name: value})


@pytest.mark.parametrize("name", sorted(RANGES.keys() - FLOATS))
def test_a_fraction_is_no_whole_number(name: str) -> None:
    with pytest.raises(InvalidOption):
        parse_options({name: 1.5})


@pytest.mark.parametrize(("value", "kept"), [("end", ["end"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_is_one_text_or_several(value: object, kept: list[str]) -> None:
    assert parse_options({"stop": value}).stop == kept


@pytest.mark.parametrize("value", ["", [""], [1], ["x"] * 17, ["x" * 1001], {"a": 1}, 7])
def test_stop_texts_have_limits(value: object) -> None:
    with pytest.raises(InvalidOption, match="^option stop: "):
        parse_options({"stop": value})


@pytest.mark.parametrize(
    "name", ["n_discard", "model_path", "rpc_servers", "chat_template", "Temperature", "x" * 10_000]
)
def test_an_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_options({name: 1})
    assert str(caught.value).startswith(f"unknown option {name[:60]}")
    assert all(known in str(caught.value) for known in Options.model_fields)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@given(st.dictionaries(st.text() | st.sampled_from(sorted(Options.model_fields)), st.none() | st.floats() | st.text()))
def test_anything_is_either_taken_or_refused_with_one_line(given_options: dict[str, object]) -> None:
    try:
        taken = parse_options(given_options)
    except InvalidOption as error:
        assert len(str(error)) < 1000
    else:
        assert taken.model_dump(exclude_none=True).keys() <= given_options.keys()


def test_later_layers_win_and_none_takes_nothing_away() -> None:
    merged = merge({"temperature": 0.1, "top_k": 5}, Options(temperature=0.9, top_k=None), None, {"seed": 1})
    assert merged == Options(temperature=0.9, top_k=5, seed=1)


def test_a_layer_is_checked_too() -> None:
    with pytest.raises(InvalidOption, match="unknown option heat"):
        merge({"heat": 1}, Options())


def test_sampling_fills_in_the_general_defaults_and_a_random_seed() -> None:
    everything = frozenset(Sampling.__dataclass_fields__)
    resolved = sampling(Options(temperature=0.0, max_tokens=5), everything, "any")
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.0, 40, 0.95)
    seeds = {sampling(Options(), everything, "any").seed for _ in range(20)}
    assert len(seeds) > 15 and all(0 <= seed < 2**32 for seed in seeds)
    assert sampling(Options(seed=7), everything, "any").seed == 7


def test_an_option_that_the_engine_hasnt_is_refused_when_given_only() -> None:
    assert sampling(Options(temperature=1.0), {"temperature"}, "plain").temperature == 1.0
    with pytest.raises(UnsupportedError, match="^the plain engine has no option top_k; it has: temperature$"):
        sampling(Options(top_k=3), {"temperature"}, "plain")
    with pytest.raises(UnsupportedError, match="it has: none$"):
        sampling(Options(top_k=3), (), "plain")


def test_an_option_that_is_off_needs_no_engine_that_has_it() -> None:
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": 0}
    assert sampling(Options(**off), (), "plain").top_p == 1
    for name in off:
        with pytest.raises(UnsupportedError, match=f"has no option {name}"):
            sampling(Options(**{**off, name: 0.5 if name != "top_k" else 1}), (), "plain")
