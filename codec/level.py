"""The level of a signal: the largest peak that a waveform may have, and the gain that brings speech to one level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError

LARGEST_PEAK = 8.0  # full scale is 1; beyond this the samples are probably integers that were not scaled
LEVEL_DB = -28.0  # to which active speech is brought: mean power relative to 1
FRAMES_PER_SECOND = 50
ACTIVE_DB = 30.0  # frames that are softer than the loudest one by more than this are pauses
MOST_RAISED_DB = 60.0  # what would need more is hardly anything but rounding


def gain_of(blocks: Iterable[NDArray[np.float32]], sample_rate: int) -> float:
    """The ``gain_db`` of a mono signal given in blocks ``[T]``: by how many dB it is louder than speech is when encoded.

    Its level is the mean power of its active frames, those of 20 ms within 30 dB of the loudest. Nothing is raised beyond
    full scale, nor by more than 60 dB; digital silence stays as it is. Memory is that of a block and 400 bytes a second.

    Raises:
        CodecError: NaN, or a peak beyond 8.
    """
    size, peak, held, powers = max(sample_rate // FRAMES_PER_SECOND, 1), 0.0, np.zeros(0, np.float32), [np.zeros(1)]
    for block in itertools.chain(blocks, [None]):
        held = np.concatenate([held, np.zeros(-len(held) % size, np.float32) if block is None else block])
        peak = max(peak, check_peak(held))
        whole = len(held) // size * size
        powers.append(np.square(held[:whole].reshape(-1, size), dtype=np.float64).mean(axis=1))
        held = held[whole:]
    power = np.concatenate(powers)
    active = float(power[power >= power.max() * 10 ** (-ACTIVE_DB / 10)].mean())
    return max(10 * math.log10(active) - LEVEL_DB, 20 * math.log10(peak), -MOST_RAISED_DB) if active else 0.0


def factor(gain_db: float) -> float:
    """The factor by which a gain multiplies samples."""
    return math.pow(10, gain_db / 20)


def check_peak(waveform: Any) -> float:
    """The largest absolute value of an array or a tensor, 0 of an empty one; a CodecError if it cannot be a waveform's."""
    peak: float = abs(waveform).max().item() if 0 not in waveform.shape else 0.0
    if not math.isfinite(peak):
        raise CodecError("waveform holds NaN or infinity")
    if peak > LARGEST_PEAK:
        raise CodecError(f"waveform must be in [-1, 1], but reaches {peak:g}; divide 16-bit values by 32768")
    return peak
