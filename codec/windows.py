"""Cutting an endless signal into overlapping windows, so that any length runs in bounded memory without a seam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Signal = TypeVar("Signal", bound=Any)  # a numpy array or a tensor


@dataclass(frozen=True)
class Context:
    """How far a network looks: frames to the left and to the right of the one it computes."""

    left: int
    right: int


def reach(layers: Iterable[tuple[int, int, int]]) -> Context:
    """How far layers that follow one another look, in steps of the last one's output.

    Args:
        layers: ``(left, right, stride)`` of each: how many steps of its input before and after its own ones an output step
            depends on, and input steps per output step.
    """
    before, after, step = 0, 0, 1  # of the first one's input
    for left, right, stride in layers:
        before += step * left
        after += step * right
        step *= stride
    return Context(-(-before // step), -(-after // step))


def spread(look_ahead: int, depth: int) -> list[int]:
    """Frames that each of ``depth`` layers looks ahead where together they do ``look_ahead``: evenly, the first ones more."""
    return [look_ahead // depth + (index < look_ahead % depth) for index in range(depth)]


def overlapping(
    blocks: Iterable[Signal], size: int, context: Context, unit: int, join: Callable[[list[Signal]], Signal]
) -> Iterator[tuple[Signal, int, int]]:
    """Yield ``(window, before, count)``: frames ``before`` to ``before + count`` of each window are new.

    Windows start at multiples of ``size`` frames, however the blocks are cut, and reach ``context`` frames further on
    both sides, less at the ends of the signal. Window shapes, and so the rounding of everything computed on
    them, depend on the signal's length alone.

    Args:
        blocks: pieces of the signal along the last axis, any lengths, a multiple of ``unit`` in total.
        size: new frames per window.
        context: frames needed around them.
        unit: elements per frame along the last axis.
        join: concatenates blocks along the last axis.
    """
    held: Signal | None = None  # from the first frame still needed on
    start = 0  # frame at which ``held`` begins
    done = 0  # frames given out
    for block in blocks:
        for first in range(0, block.shape[-1], size * unit):
            piece = block[..., first : first + size * unit]
            held = piece if held is None else join([held, piece])
            while held.shape[-1] >= (done - start + size + context.right) * unit:
                yield held[..., : (done - start + size + context.right) * unit], done - start, size
                done += size
                keep = max(done - context.left, 0)
                held, start = held[..., (keep - start) * unit :], keep
    if held is None:
        return
    assert held.shape[-1] % unit == 0, "the signal must be a whole number of frames"
    total = start + held.shape[-1] // unit
    while done < total:
        count = min(size, total - done)
        stop = min(done + count + context.right, total)
        yield held[..., : (stop - start) * unit], done - start, count
        done += count
        keep = max(done - context.left, 0)
        held, start = held[..., (keep - start) * unit :], keep
