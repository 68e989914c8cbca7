"""Cutting a signal into windows gives every frame once, with its context, however the signal comes in."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.streaming import Context, overlapping


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
    padded = -(-total // unit) * unit
    pieces = [*pieces, padded - total] if padded > total else pieces
    signal = torch.arange(padded)
    frames = padded // unit
    done = 0
    for window, before, count in overlapping(signal.split(pieces), size, Context(left, right), unit):
        first, last = max(done - left, 0), min(done + count + right, frames)
        assert before == done - first
        assert torch.equal(window, signal[first * unit : last * unit])
        done += count
    assert done == frames
