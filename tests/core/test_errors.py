"""The error tree: stable codes, and the trip through JSON."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core import errors
from myllm_core.errors import ERRORS, InvalidOption, MyllmError, NotFound, Overloaded, error_from_dict

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(lambda name: name not in ("message", "self"))


def classes() -> list[type[MyllmError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MyllmError)]


def test_every_error_has_a_code_of_its_own() -> None:
    assert sorted(cls.code for cls in classes()) == sorted(ERRORS)
    assert all(ERRORS[cls.code] is cls for cls in classes())


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.code)
def test_the_tree_in_the_docstring_is_the_tree_in_the_code(cls: type[MyllmError]) -> None:
    line = re.search(rf"[ ─├└│]{cls.__name__} +(\d+) +exit (\d+)", str(errors.__doc__))
    assert line, f"{cls.__name__} isn't drawn"
    assert (int(line[1]), int(line[2])) == (cls.http_status, cls.exit_code)


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.code)
@given(message=st.text(), data=st.dictionaries(names, json_values, max_size=4))
def test_an_error_survives_the_trip_through_json(cls: type[MyllmError], message: str, data: dict[str, object]) -> None:
    error = cls(message, **data)
    back = error_from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is cls
    assert (str(back), back.data) == (message, data)


def test_an_unknown_or_empty_body_becomes_a_plain_error() -> None:
    assert type(error_from_dict({"code": "from_the_future", "message": "hm"})) is MyllmError
    assert str(error_from_dict({"code": "from_the_future", "message": "hm"})) == "hm"
    assert type(error_from_dict({})) is MyllmError


def test_an_error_can_be_caught_by_its_family() -> None:
    assert isinstance(error_from_dict(errors.ModelNotFound("x").to_dict()), NotFound)
    assert isinstance(error_from_dict(InvalidOption("x").to_dict()), errors.InvalidRequest)
    assert error_from_dict(Overloaded("busy", retry_after=3).to_dict()).data["retry_after"] == 3
