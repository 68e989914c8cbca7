"""The gain of a signal: by its active speech, in whatever blocks, and nothing made of silence."""

import numpy as np
import pytest

from codec.level import LEVEL_DB, MOST_RAISED_DB, gain_of

RATE = 16000
SINE = np.sin(2 * np.pi * 440 / RATE * np.arange(RATE)).astype(np.float32)  # a mean power of -3.01 dB


@pytest.mark.parametrize(
    ("signal", "gain_db"),
    [
        (SINE / 1000, -63.01 - LEVEL_DB),
        (np.concatenate([SINE, SINE / 100, 0 * SINE]), -3.01 - LEVEL_DB),  # pauses do not count
        (np.concatenate([SINE, SINE / 10]), 10 * np.log10((0.5 + 0.005) / 2) - LEVEL_DB),
        (0 * SINE, 0.0),
        (SINE[:1], 0.0),
        (SINE / 2**15, -MOST_RAISED_DB),
        (np.where(np.arange(RATE) == 99, 0.5, SINE / 50), 20 * np.log10(0.5)),  # a click: not beyond full scale
        (2 * SINE[:100], 20 * np.log10(2 * np.sqrt(np.square(SINE[:100]).sum() / 320)) - LEVEL_DB),  # less than a frame
    ],
    ids=["soft", "pauses", "two levels", "silence", "one sample", "tiny", "click", "short"],
)
def test_gain(signal: np.ndarray, gain_db: float) -> None:
    signal = signal.astype(np.float32)
    assert gain_of([signal], RATE) == pytest.approx(gain_db, abs=0.01)
    assert gain_of(np.split(signal, [0, 1, 333, 7000]), RATE) == gain_of([signal], RATE), "to the bit"
