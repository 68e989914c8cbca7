"""Metrics against known values, and pairs that have none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.manifest import Record, write_manifest
from codec.metrics import METRICS, MetricError, mel_distance, pesq_wb, si_sdr, stoi

ROOT = Path(__file__).parent.parent


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


def test_evaluate_script_counts_what_it_cannot_measure(
    speech: tuple[np.ndarray, int], tmp_path: Path, tiny_model_folder: Path
) -> None:
    x, rate = speech
    soundfile.write(tmp_path / "speech.wav", x, rate)
    soundfile.write(tmp_path / "short.wav", x[:1000], rate)
    records = [Record(n, str(tmp_path / f"{n}.wav"), k, rate) for n, k in (("speech", len(x)), ("short", 1000))]
    write_manifest(tmp_path / "m.jsonl", records)
    script = [sys.executable, str(ROOT / "recipes" / "evaluate.py"), "--manifest", str(tmp_path / "m.jsonl")]
    out = tmp_path / "eval.json"
    done = subprocess.run(
        [*script, "--model", str(tiny_model_folder), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    level = result["levels"][0]
    assert (level["utterances"], level["pesq_failed"], level["stoi_failed"]) == (2, 1, 1)
    assert level["pesq"] == next(
        r["pesq"] for r in result["rows"] if r["id"] == "speech" and r["num_quantizers"] == level["num_quantizers"]
    )
    assert set(METRICS) <= set(level)
    done = subprocess.run([*script[:-1], "nowhere.jsonl"], capture_output=True, text=True)
    assert done.returncode == 1 and "nowhere.jsonl" in done.stderr and "Traceback" not in done.stderr
