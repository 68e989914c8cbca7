"""Metrics and artefacts of decoders against known values, and pairs that have none."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
from loading import ASSETS

from codec.evaluation import metrics
from codec.evaluation.metrics import METRICS, STEP, MetricError, Pair, mean_spectrum

SPEECH, SPEECH_RATE = soundfile.read(ASSETS / "example.wav", dtype="float32")
RATE = 24000
TIME = np.arange(2 * RATE) / RATE
RNG = np.random.default_rng(0)
NOISE = 0.05 * RNG.standard_normal(len(TIME))


def value(metric: Callable[[Pair], float], reference: np.ndarray, decoded: np.ndarray) -> float:
    return metric(Pair(reference.astype(np.float32), decoded.astype(np.float32), RATE))


def with_noise(x: np.ndarray, snr: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
    return x + noise * np.linalg.norm(x) / np.linalg.norm(noise) * 10 ** (-snr / 20)


@pytest.mark.parametrize("name", [name for name, (a, _) in METRICS.items() if not a.package or find_spec(a.package)])
def test_every_metric_is_best_for_the_same_and_worse_with_noise(name: str) -> None:
    """And has a reason instead of a value for 10 ms, or for silence."""
    (about, compute), rate, x = METRICS[name], SPEECH_RATE, SPEECH[: 3 * SPEECH_RATE // 2]
    same, worse = (about.goodness(compute(Pair(x, estimate, rate))) for estimate in (x, with_noise(x, 0)))
    assert same > worse
    for useless in (x[:240], np.zeros(24000, np.float32)):
        with pytest.raises(MetricError):
            compute(Pair(useless, useless, rate))


def test_known_values() -> None:
    for snr in (20, 0):
        assert metrics.si_sdr(Pair(SPEECH, with_noise(SPEECH, snr), SPEECH_RATE)) == pytest.approx(snr, abs=0.3)
    assert metrics.si_sdr(Pair(SPEECH, 3 * with_noise(SPEECH, 20), SPEECH_RATE)) == pytest.approx(20, abs=0.3)
    assert value(metrics.mel_distance, NOISE, 2 * NOISE) == pytest.approx(np.log(2), abs=1e-3)
    assert value(metrics.log_spectral_distance, NOISE, 2 * NOISE) == pytest.approx(20 * np.log10(2), abs=0.02)


def voice(drift: float, noise: float = 0.02, pitch: float = 150) -> np.ndarray:
    """Harmonics of a pitch in Hz, and of up to ``drift`` times as much and back, over noise."""
    phase = 2 * np.pi * np.cumsum(pitch * (1 + (drift - 1) * np.sin(np.pi * TIME / 2))) / RATE
    return sum(0.2 / k * np.sin(k * phase) for k in range(1, 30)) + noise * NOISE


def test_pitch_and_voicing_of_known_sounds() -> None:
    sounds = (np.concatenate([voice(1.0, 0.0, pitch), 0.002 * NOISE]) for pitch in (150, 160))
    low, high = (metrics.pitch_track(sound.astype(np.float32), RATE) for sound in sounds)
    voiced = ~np.isnan(low)
    assert voiced[10:190].all() and not voiced[210:].any()
    assert np.nanmedian(low) == pytest.approx(150, rel=0.01)
    assert metrics.voicing_f1(low, high) > 0.97 and metrics.pitch_rmse(low, high) == pytest.approx(10, abs=1.5)
    reference, estimate = np.array([100.0, 100.0, 100.0, np.nan]), np.array([100.0, np.nan, 100.0, 100.0])
    assert metrics.voicing_f1(reference, estimate) == pytest.approx(2 / 3)  # 2 hits, 3 voiced in each
    unvoiced = np.full(4, np.nan)
    with pytest.raises(MetricError, match="no voiced frame"):
        metrics.voicing_f1(unvoiced, estimate)
    with pytest.raises(MetricError, match="voiced in both"):
        metrics.pitch_rmse(reference, unvoiced)


def test_log_spectral_distance_leaves_out_what_nobody_hears() -> None:
    padded, louder = (np.concatenate([part, np.zeros(RATE)]) for part in (NOISE, 2 * NOISE))
    assert value(metrics.log_spectral_distance, padded, louder) == pytest.approx(20 * np.log10(2), abs=0.2)
    faint = np.full(24000, 2.0**-15, np.float32)
    faint[::2] *= -1
    for metric in (metrics.log_spectral_distance, metrics.mel_distance):
        with pytest.raises(MetricError, match="above 80 dB under"):
            metric(Pair(1e-2 * faint, 1e-2 * faint, 24000))


def test_pesq_is_not_asked_where_it_could_run_out_of_room() -> None:
    with pytest.raises(MetricError, match="longer than 60 s"):
        metrics.pesq_wb(Pair(np.ones(16000 * 61, np.float32), np.ones(16000 * 61, np.float32), 16000))
    burst = np.concatenate([0.1 * np.random.default_rng(0).standard_normal(4000), np.zeros(6000)]).astype(np.float32)
    with pytest.raises(MetricError, match="bursts"):
        bursts = np.tile(burst, 70)  # 44 s; with 90 of them it ends the process
        metrics.pesq_wb(Pair(bursts, bursts, 16000))
    long = np.resize(SPEECH, 25 * SPEECH_RATE)
    assert metrics.pesq_wb(Pair(long, long, SPEECH_RATE)) == pytest.approx(4.64, abs=0.02)


# ---- artefacts of decoders on made-up sounds -------------------------------------------------------------------------


def test_lines_are_counted_in_the_mean_of_many_frames() -> None:
    """At any sample rate; neither noise nor what moves is a line, nor a sine below 7 kHz, nor one of the recordings."""
    recorded = mean_spectrum(NOISE, RATE)
    sweep = 0.05 * np.sin(2 * np.pi * (7500 + 500 * TIME) * TIME)
    sines = [0.01 * np.sin(2 * np.pi * frequency * TIME) for frequency in (5000, 9000, 9075, 11993.75)]
    for moving in (NOISE, NOISE + sweep, NOISE + sines[0]):
        assert len(metrics.lines(mean_spectrum(moving, RATE), recorded)) == 0
    assert metrics.lines(mean_spectrum(NOISE + sines[1], RATE), recorded) == pytest.approx([9000])
    decoded = NOISE + sum(sines)
    assert metrics.lines(mean_spectrum(decoded, RATE), recorded) == pytest.approx([9000, 9075, 11993.75])
    whistling = mean_spectrum(NOISE + sines[2], RATE)
    assert metrics.lines(mean_spectrum(decoded, RATE), whistling) == pytest.approx([9000, 11993.75])
    slower = [mean_spectrum(x, 22050) for x in (decoded, NOISE)]
    assert metrics.lines(*slower) == pytest.approx([f * 22050 / RATE for f in (9000, 9075, 11993.75)], abs=STEP)


def test_a_mean_spectrum_is_power_relative_to_a_full_scale_sine() -> None:
    spectrum = mean_spectrum(0.1 * np.sin(2 * np.pi * 1000 * TIME), RATE)
    assert len(spectrum) * STEP == pytest.approx(RATE / 2, abs=2 * STEP) and np.argmax(spectrum) * STEP == 1000
    assert 10 * np.log10(spectrum.max()) == pytest.approx(-20, abs=0.5)
    assert metrics.is_wide(mean_spectrum(NOISE, RATE)) and not metrics.is_wide(spectrum)
    assert metrics.is_wide(mean_spectrum(NOISE[:10], RATE)) and not metrics.is_wide(mean_spectrum(NOISE, 16000))


def test_ripple_falls_as_noise_fills_the_gaps_between_harmonics() -> None:
    clear = voice(1.3)
    values = [value(metrics.ripple, clear, voice(1.3, noise)) for noise in (0.02, 0.1, 0.5)]
    assert values[0] == 0 and -3 > values[1] > values[2] + 3
    assert value(metrics.ripple, voice(1.3, 0.5), clear) == pytest.approx(-values[2])
    assert value(metrics.ripple, clear, 0.3 * clear) == pytest.approx(0, abs=0.05)  # of no level
    assert value(metrics.ripple, clear, voice(1.31)) == pytest.approx(0, abs=0.5)  # nor of a pitch that is slightly off
    with pytest.raises(MetricError, match="no voiced frame"):
        value(metrics.ripple, NOISE, NOISE)


def test_energy_ahead_of_onsets() -> None:
    """Bursts over noise 30 dB below them, of which 20 ms at -20 dB come too early: 10 log10(1.1 / 0.1) dB more."""
    pieces = RNG.standard_normal((8, RATE // 4))
    pieces[:, : RATE // 8] = 0
    clear = (pieces + 10 ** (-30 / 20) * RNG.standard_normal(pieces.shape)).flatten()
    early = np.zeros_like(pieces)
    early[:, RATE // 8 - RATE // 50 : RATE // 8] = 0.1 * RNG.standard_normal((8, RATE // 50))
    assert value(metrics.onset_blur, clear, clear + early.flatten()) == pytest.approx(10 * np.log10(11), abs=0.5)
    assert value(metrics.onset_blur, clear + early.flatten(), clear) == pytest.approx(-10 * np.log10(11), abs=1.5)
    silent = pieces.flatten()
    late = silent + early.flatten()
    assert value(metrics.onset_blur, silent, late) == pytest.approx(30, abs=0.5)  # from the floor of -50 dB
    assert value(metrics.onset_blur, silent, 0.3 * late) == pytest.approx(30, abs=0.5)
    with pytest.raises(MetricError, match="no onset"):
        value(metrics.onset_blur, NOISE, NOISE)


def test_level_error_is_the_gain_of_what_is_spoken() -> None:
    """Whatever lies in the pauses."""
    spoken = NOISE * (np.arange(len(TIME)) % 9600 < 4800)
    quieter = spoken * 10 ** (-3 / 20)
    assert value(metrics.level_error, spoken, quieter) == pytest.approx(-3, abs=1e-4)
    assert value(metrics.level_error, spoken, quieter + 0.5 * NOISE * (spoken == 0)) == pytest.approx(-3, abs=0.01)
