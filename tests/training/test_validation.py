"""Validation reads no more of an utterance than it can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec.corpus.manifest import Record
from codec.training import validation


def test_a_long_utterance_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LONGEST", 12)  # beyond the first block that is read
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 15 * 8000).astype(np.float32)
    for num_samples in (13 * 8000 + 1, 15 * 8000, 11 * 8000 + 3):
        soundfile.write(tmp_path / "x.wav", samples[:num_samples], 8000, subtype="FLOAT")
        speech = validation.read_speech(Record("x", str(tmp_path / "x.wav"), num_samples, 8000), 8000)
        assert torch.equal(speech, torch.from_numpy(samples[: min(num_samples, 12 * 8000)]))
