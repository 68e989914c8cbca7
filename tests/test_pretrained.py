"""The shipped model: small enough, seamless on real speech, and intelligible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import codec.model
from codec import Codec
from codec.audio import resample
from codec.cli import info_main
from codec.metrics import pesq_wb, stoi
from codec.pretrained import find_model

Speech = tuple[NDArray[np.float32], int]


@pytest.fixture(scope="module")
def model() -> Codec:
    return Codec.from_pretrained()


def test_size_and_rates(model: Codec) -> None:
    folder: Path = find_model("speech-24khz")
    assert find_model("default") == folder and Codec.from_pretrained("default").name == model.name == "speech-24khz"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 24e6
    assert (model.sample_rate, model.num_quantizers, model.codebook_size, model.bitrate) == (24000, 8, 1024, 6000)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert model.fingerprint in card and "Not yet measured" not in card


def test_the_alias_is_known_to_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert info_main(["default"]) == 0
    assert "speech-24khz" in capsys.readouterr().out


def test_speech_stays_intelligible(model: Codec, speech: Speech) -> None:
    samples, rate = speech
    codes = model.encode(torch.from_numpy(samples), rate)
    scores = []
    for count in (8, 1):
        audio = resample(model.decode(codes, num_quantizers=count)[0, 0].numpy(), model.sample_rate, rate)
        scores.append((pesq_wb(samples, audio[: len(samples)], rate), stoi(samples, audio[: len(samples)], rate)))
    assert scores[0][0] > 1.7 and scores[0][1] > 0.8
    assert scores[0][0] > scores[1][0] and scores[0][1] > scores[1][1] > 0.5


def test_windows_leave_no_seam_in_real_speech(model: Codec, speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, rate = speech
    waveform = torch.from_numpy(resample(samples, rate, model.sample_rate))
    whole = model.encode(waveform, model.sample_rate)
    audio = model.decode(whole)
    monkeypatch.setattr(codec.model, "WINDOW_FRAMES", 50)
    windowed = model.encode(waveform, model.sample_rate)
    # other shapes round differently, which may turn a code that lies between two entries, and then its later stages
    assert (windowed != whole).any(dim=1).float().mean() < 0.01
    torch.testing.assert_close(model.decode(whole), audio, atol=1e-4, rtol=0)
