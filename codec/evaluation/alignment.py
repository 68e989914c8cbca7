"""Bringing a reconstruction of unknown delay to its reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codec.evaluation.metrics import Waveform

MAX_DELAY = 0.1  # seconds, either way
SURE = 0.5  # normalised correlation of waveforms from which on their peak is believed
ENVELOPE_RATE = 1000  # Hz
ENVELOPE_GAIN = 0.02  # a shift by the envelopes must raise their correlation by this much

HOW = (
    "Models and Opus: by construction. Folders and Codec2: one delay a file, up to 100 ms, where the waveforms' correlation "
    "peaks (if it reaches 0.5 there), else where that of their 1 ms envelopes does; then cut, or filled with zeros, to the "
    "reference's length."
)


def aligned(reference: Waveform, estimate: Waveform, sample_rate: int) -> Waveform:
    """``estimate`` shifted by :func:`find_delay` and cut, or filled with zeros, to the reference's length."""
    delay = find_delay(reference, estimate, sample_rate)
    shifted = estimate[delay:] if delay >= 0 else np.pad(estimate, (-delay, 0))
    shifted = shifted[: len(reference)]
    return np.pad(shifted, (0, len(reference) - len(shifted))).astype(np.float32)


def find_delay(reference: Waveform, estimate: Waveform, sample_rate: int) -> int:
    """Samples that ``estimate`` comes after ``reference``, both ``[T]``; negative if it comes before.

    A codec that keeps the waveform is found to the sample by it; one that makes new phases (a vocoder) only by the
    envelopes, to a millisecond, and not at all if the envelopes fit nearly as well unshifted.
    """
    most = int(MAX_DELAY * sample_rate)
    delay, peak, _ = _peak(reference, estimate, most)
    if peak >= SURE:
        return delay
    step = max(1, round(sample_rate / ENVELOPE_RATE))
    delay, peak, unshifted = _peak(_envelope(reference, step), _envelope(estimate, step), most // step)
    return delay * step if peak > unshifted + ENVELOPE_GAIN else 0


def _peak(a: NDArray[np.float32], b: NDArray[np.float32], most: int) -> tuple[int, float, float]:
    """Lag of b against a with the highest normalised correlation, that correlation, and the one without a lag."""
    size = 1 << (len(a) + len(b) + 2 * most).bit_length()
    product = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
    correlation = np.fft.irfft(product, size) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12)
    lags = np.arange(-most, most + 1)
    values = correlation[lags]
    best = int(np.argmax(values))
    return int(lags[best]), float(values[best]), float(correlation[0])


def _envelope(waveform: Waveform, step: int) -> NDArray[np.float32]:
    """Mean level of every ``step`` samples, its mean taken off."""
    whole = waveform[: len(waveform) // step * step]
    level = np.sqrt(np.abs(whole).reshape(-1, step).mean(axis=1))
    return (level - level.mean()).astype(np.float32) if len(level) else np.zeros(1, np.float32)
