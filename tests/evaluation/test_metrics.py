"""Metrics against known values, and pairs that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.evaluation.metrics import (
    METRICS,
    MetricError,
    Pair,
    log_spectral_distance,
    mel_distance,
    pesq_wb,
    pitch_rmse,
    pitch_track,
    si_sdr,
    stoi,
    voicing_f1,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(ROOT / "tests" / "assets" / "example.wav", dtype="float32")
    return samples, rate


def test_identical_speech_has_the_best_values(speech: tuple[np.ndarray, int]) -> None:
    x, rate = speech
    assert pesq_wb(x, x, rate) == pytest.approx(4.64, abs=0.01)
    assert stoi(x, x, rate) == pytest.approx(1, abs=1e-4)
    assert mel_distance(x, x, rate) == 0
    assert si_sdr(x, x, rate) > 80


def test_noise_lowers_every_metric(speech: tuple[np.ndarray, int]) -> None:
    x, rate = speech
    noise = np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
    noise *= np.linalg.norm(x) / np.linalg.norm(noise)
    little, much = x + 0.1 * noise, x + noise
    assert pesq_wb(x, x, rate) > pesq_wb(x, little, rate) > pesq_wb(x, much, rate) >= 1
    assert 1 > stoi(x, little, rate) > stoi(x, much, rate)
    assert mel_distance(x, little, rate) < mel_distance(x, much, rate)
    assert si_sdr(x, little, rate) == pytest.approx(20, abs=0.3) and si_sdr(x, much, rate) == pytest.approx(0, abs=0.3)
    assert si_sdr(x, 3 * little, rate) == pytest.approx(si_sdr(x, little, rate), abs=1e-3)


def test_pairs_without_a_value_are_errors_not_numbers() -> None:
    short = np.zeros(1000, np.float32)
    silence = np.zeros(48000, np.float32)
    for metric in (pesq_wb, stoi, si_sdr):
        with pytest.raises(MetricError):
            metric(short, short, 24000)
        with pytest.raises(MetricError):
            metric(silence, silence, 24000)
    with pytest.raises(ValueError, match="one length"):
        stoi(silence, short, 24000)


def harmonic(frequency: float, seconds: float, rate: int = 16000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return sum(0.1 / k * np.sin(2 * np.pi * frequency * k * t) for k in range(1, 20)).astype(np.float32)


def test_log_spectral_distance_measures_level() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    assert log_spectral_distance(noise, 2 * noise, 24000) == pytest.approx(20 * np.log10(2), abs=0.02)
    assert log_spectral_distance(noise, noise, 24000) == 0
    with pytest.raises(MetricError, match="silence"):
        log_spectral_distance(noise, 0 * noise, 24000)


def test_pitch_and_voicing_of_known_sounds() -> None:
    silence = 1e-4 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    low, high = (pitch_track(np.concatenate([harmonic(f, 1.0), silence]), 16000) for f in (150.0, 160.0))
    voiced = ~np.isnan(low)
    assert voiced[10:90].all() and not voiced[110:].any()
    assert np.nanmedian(low) == pytest.approx(150, rel=0.01)
    assert voicing_f1(low, high) > 0.97 and pitch_rmse(low, high) == pytest.approx(10, abs=1.5)
    wanted, made = (
        np.array([100.0 if voiced else np.nan for voiced in marks]) for marks in ([1, 1, 1, 0], [1, 0, 1, 1])
    )
    assert voicing_f1(wanted, made) == pytest.approx(2 / 3)  # 2 hits, 3 voiced in each
    nothing = np.full(4, np.nan)
    with pytest.raises(MetricError, match="no voiced frame"):
        voicing_f1(nothing, made)
    with pytest.raises(MetricError, match="voiced in both"):
        pitch_rmse(wanted, nothing)
    with pytest.raises(MetricError, match="64 ms"):
        pitch_track(np.zeros(160, np.float32), 16000)


def test_every_metric_has_a_value_or_a_reason(speech: tuple[np.ndarray, int]) -> None:
    """The best one for identical files, worse for noise of 10 dB, a MetricError for 10 ms or silence, never a crash."""
    x, rate = speech
    noise = np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
    noisy = x + noise * np.linalg.norm(x) / np.linalg.norm(noise) * 10**-0.5
    for name, metric in METRICS.items():
        if metric.compute is None:
            continue
        same, worse = (metric.compute(Pair(x, y, rate, lambda: pitch_track(x, rate))) for y in (x, noisy))
        assert worse < same if metric.better == "higher" else worse > same, name
        for useless in (x[:240], np.zeros(24000, np.float32)):
            with pytest.raises(MetricError):
                metric.compute(Pair(useless, useless, rate, lambda u=useless: pitch_track(u, rate)))


def test_mel_distance_of_a_known_gain() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    assert mel_distance(noise, 2 * noise, 24000) == pytest.approx(np.log(2), abs=1e-3)


def test_log_spectral_distance_leaves_out_what_nobody_hears() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    padded, louder = (np.concatenate([part, np.zeros(24000, np.float32)]) for part in (noise, 2 * noise))
    assert log_spectral_distance(padded, louder, 24000) == pytest.approx(20 * np.log10(2), abs=0.2)
    faint = np.full(24000, 2.0**-15, np.float32)
    faint[::2] *= -1
    with pytest.raises(MetricError, match="above the floor"):
        log_spectral_distance(1e-2 * faint, 1e-2 * faint, 24000)


def test_pesq_is_not_asked_where_it_could_run_out_of_room(speech: tuple[np.ndarray, int]) -> None:
    x, rate = speech
    rng = np.random.default_rng(0)
    burst = np.concatenate([0.1 * rng.standard_normal(4000), np.zeros(6000)]).astype(np.float32)
    with pytest.raises(MetricError, match="bursts"):
        pesq_wb(np.tile(burst, 70), np.tile(burst, 70), 16000)  # 44 s; with 90 of them it ends the process
    lengths = -(-25 * rate // len(x))
    long = np.tile(x, lengths)
    assert len(long) > 20 * rate and pesq_wb(long, long, rate) == pytest.approx(4.64, abs=0.02)
