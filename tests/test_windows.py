"""Cutting a signal into windows gives every frame once, with its context, however the signal comes in."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.windows import Context, overlapping


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 40), max_size=8),
    size=st.integers(1, 9),
    left=st.integers(0, 12),
    right=st.integers(0, 12),
    unit=st.integers(1, 3),
)
def test_every_frame_once_with_its_context(pieces: list[int], size: int, left: int, right: int, unit: int) -> None:
    total = sum(pieces)
    frames = -(-total // unit)
    pieces = [*pieces, frames * unit - total]
    signal = np.arange(frames * unit)
    blocks = np.split(signal, np.cumsum(pieces)[:-1])
    done = 0
    for window, before, count in overlapping(blocks, size, Context(left, right), unit, np.concatenate):
        assert count == min(size, frames - done)
        first, last = max(done - left, 0), min(done + count + right, frames)
        assert before == done - first
        assert np.array_equal(window, signal[first * unit : last * unit])
        done += count
    assert done == frames


def test_no_blocks_no_windows() -> None:
    assert list(overlapping([], 4, Context(1, 1), 1, np.concatenate)) == []
