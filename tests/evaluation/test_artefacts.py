"""Artefacts of decoders on made-up sounds whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from codec.evaluation.artefacts import STEP, is_wide, level_error, lines, mean_spectrum, onset_blur, ripple
from codec.evaluation.metrics import MetricError, Pair

RATE = 24000
TIME = np.arange(2 * RATE) / RATE
RNG = np.random.default_rng(0)
NOISE = 0.05 * RNG.standard_normal(len(TIME))


def value(metric: Callable[[Pair], float], reference: np.ndarray, decoded: np.ndarray) -> float:
    return metric(Pair(reference.astype(np.float32), decoded.astype(np.float32), RATE))


def voice(drift: float, noise: float = 0.02) -> np.ndarray:
    """Harmonics of a pitch from 150 Hz to ``drift`` times as much and back, over noise."""
    phase = 2 * np.pi * np.cumsum(150 * (1 + (drift - 1) * np.sin(np.pi * TIME / 2))) / RATE
    return sum(0.2 / k * np.sin(k * phase) for k in range(1, 30)) + noise * NOISE


def test_lines_are_counted_in_the_mean_of_many_frames() -> None:
    """At any sample rate; neither noise nor what moves is a line, nor a sine below 7 kHz, nor one of the recordings."""
    recorded = mean_spectrum(NOISE, RATE)
    sweep = 0.05 * np.sin(2 * np.pi * (7500 + 500 * TIME) * TIME)
    sines = [0.01 * np.sin(2 * np.pi * frequency * TIME) for frequency in (5000, 9000, 9075, 11850)]
    for moving in (NOISE, NOISE + sweep, NOISE + sines[0]):
        assert len(lines(mean_spectrum(moving, RATE), recorded)) == 0
    assert lines(mean_spectrum(NOISE + sines[1], RATE), recorded) == pytest.approx([9000])
    decoded = NOISE + sum(sines)
    assert lines(mean_spectrum(decoded, RATE), recorded) == pytest.approx([9000, 9075, 11850])
    whistling = mean_spectrum(NOISE + sines[2], RATE)
    assert lines(mean_spectrum(decoded, RATE), whistling) == pytest.approx([9000, 11850])
    slower = [mean_spectrum(x, 22050) for x in (decoded, NOISE)]
    assert lines(*slower) == pytest.approx([frequency * 22050 / RATE for frequency in (9000, 9075, 11850)], abs=STEP)


def test_a_mean_spectrum_is_power_relative_to_a_full_scale_sine() -> None:
    spectrum = mean_spectrum(0.1 * np.sin(2 * np.pi * 1000 * TIME), RATE)
    assert len(spectrum) * STEP == pytest.approx(RATE / 2, abs=2 * STEP) and np.argmax(spectrum) * STEP == 1000
    assert 10 * np.log10(spectrum.max()) == pytest.approx(-20, abs=0.5)
    assert is_wide(mean_spectrum(NOISE, RATE)) and not is_wide(spectrum)
    assert is_wide(mean_spectrum(NOISE[:10], RATE)) and not is_wide(mean_spectrum(NOISE, 16000))


def test_ripple_falls_as_noise_fills_the_gaps_between_harmonics() -> None:
    clear = voice(1.3)
    values = [value(ripple, clear, voice(1.3, noise)) for noise in (0.02, 0.1, 0.5)]
    assert values[0] == 0 and -3 > values[1] > values[2] + 3
    assert value(ripple, voice(1.3, 0.5), clear) == pytest.approx(-values[2])
    assert value(ripple, clear, 0.3 * clear) == pytest.approx(0, abs=0.05)  # of no level
    assert value(ripple, clear, voice(1.31)) == pytest.approx(0, abs=0.5)  # nor of a pitch that is slightly off
    with pytest.raises(MetricError, match="no voiced frame"):
        value(ripple, NOISE, NOISE)


def test_energy_ahead_of_onsets() -> None:
    """Bursts over noise 30 dB below them, of which 20 ms at -20 dB come too early: 10 log10(1.1 / 0.1) dB more."""
    pieces = RNG.standard_normal((8, RATE // 4))
    pieces[:, : RATE // 8] = 0
    clear = (pieces + 10 ** (-30 / 20) * RNG.standard_normal(pieces.shape)).flatten()
    early = np.zeros_like(pieces)
    early[:, RATE // 8 - RATE // 50 : RATE // 8] = 0.1 * RNG.standard_normal((8, RATE // 50))
    assert value(onset_blur, clear, clear + early.flatten()) == pytest.approx(10 * np.log10(11), abs=0.5)
    assert value(onset_blur, clear + early.flatten(), clear) == pytest.approx(-10 * np.log10(11), abs=1.5)
    silent = pieces.flatten()
    assert value(onset_blur, silent, silent + early.flatten()) == pytest.approx(30, abs=0.5)  # from the floor of -50 dB
    assert value(onset_blur, silent, 0.3 * (silent + early.flatten())) == pytest.approx(30, abs=0.5)
    with pytest.raises(MetricError, match="no onset"):
        value(onset_blur, NOISE, NOISE)


def test_level_error_is_the_gain_of_what_is_spoken() -> None:
    """Whatever lies in the pauses."""
    spoken = NOISE * (np.arange(len(TIME)) % 9600 < 4800)
    quieter = spoken * 10 ** (-3 / 20)
    assert value(level_error, spoken, quieter) == pytest.approx(-3, abs=1e-4)
    assert value(level_error, spoken, quieter + 0.5 * NOISE * (spoken == 0)) == pytest.approx(-3, abs=0.01)
