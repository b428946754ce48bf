"""Frames between the runtime and its workers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.runtime.wire import MAX_FRAME, Frames, frame

VALUES = st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5), max_size=8)


@given(values=VALUES, sizes=st.lists(st.integers(1, 40), min_size=1))
def test_it_doesnt_matter_how_frames_are_cut(values: list[object], sizes: list[int]) -> None:
    data, found, frames, place = b"".join(map(frame, values)), [], Frames(), 0
    while place < len(data):
        size = sizes[place % len(sizes)]
        found += frames.feed(data[place : place + size])
        place += size
    assert found == values


@pytest.mark.parametrize("data", [struct.pack("<I", MAX_FRAME + 1), frame({}) + b"\1\0\0\0{", b"\2\0\0\0\xff\xfe"])
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(Frames().feed(data))
