"""The shipped models: small enough, seamless on real speech, and intelligible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

import codec.base
from codec import Codec
from codec.audio import resample
from codec.cli.commands import decode_main, encode_main
from codec.evaluation.metrics import pesq_wb, stoi
from codec.pretrained import find_model, shipped_models

ROOT = Path(__file__).parent.parent
Speech = tuple[NDArray[np.float32], int]


# name: quantizers, codebook size, bit/s, and the least PESQ-WB and STOI of two short clips
SHIPPED = {"speech-24khz": (8, 1024, 6000, 2.6, 0.89), "speech-24khz-single": (1, 65536, 1200, 1.5, 0.8)}


@pytest.fixture(scope="module", params=SHIPPED)
def model(request: pytest.FixtureRequest) -> Codec:
    return Codec.from_pretrained(request.param)


def test_the_list_is_whole() -> None:
    assert shipped_models() == list(SHIPPED)
    assert Codec.from_pretrained().name == Codec.from_pretrained("default").name == "speech-24khz"


def test_size_rates_and_card(model: Codec) -> None:
    folder: Path = find_model(model.name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 24e6
    quantizers, size, bitrate, *_ = SHIPPED[model.name]
    assert (model.sample_rate, model.frame_rate, model.num_quantizers, model.codebook_size, model.bitrate) == (
        24000, 75, quantizers, size, bitrate,
    )  # fmt: skip
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert model.fingerprint in card and "Not yet measured" not in card


@pytest.mark.slow
def test_files_of_both_models_are_told_apart(tmp_path: Path) -> None:
    """A .codes file names its model, and decodes without being told which."""
    source = ROOT / "tests" / "assets" / "vctk-p228-0006.flac"
    decoded = []
    for name in SHIPPED:
        codes, audio = tmp_path / f"{name}.codes", tmp_path / f"{name}.wav"
        assert encode_main([str(source), str(codes), "--model", name]) == 0
        assert decode_main([str(codes), str(audio)]) == 0
        decoded.append(soundfile.read(audio)[0])
    assert decoded[0].shape == decoded[1].shape and not np.allclose(*decoded, atol=1e-3)
    # and never with the other one
    assert decode_main([str(tmp_path / "speech-24khz.codes"), str(audio), "--force", "--model", name]) == 1


@pytest.mark.slow
def test_speech_stays_intelligible(model: Codec, speech: Speech) -> None:
    samples, rate = speech
    codes = model.encode(torch.from_numpy(samples), rate)
    scores = []
    for count in sorted({model.num_quantizers, 1}, reverse=True):
        audio = resample(model.decode(codes, num_quantizers=count)[0, 0].numpy(), model.sample_rate, rate)
        scores.append((pesq_wb(samples, audio[: len(samples)], rate), stoi(samples, audio[: len(samples)], rate)))
    *_, least_pesq, least_stoi = SHIPPED[model.name]
    assert scores[0][0] > least_pesq and scores[0][1] > least_stoi
    assert scores[0] >= scores[-1] and scores[-1][1] > 0.5


def test_windows_leave_no_seam_in_real_speech(model: Codec, speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, rate = speech
    waveform = torch.from_numpy(resample(samples[: 3 * rate // 2], rate, model.sample_rate))
    whole = model.encode(waveform, model.sample_rate)
    audio = model.decode(whole)
    monkeypatch.setattr(codec.base, "WINDOW_FRAMES", 50)
    windowed = model.encode(waveform, model.sample_rate)
    # other shapes round differently, which may turn a code that lies between two entries, and then its later stages
    assert (windowed != whole).any(dim=1).float().mean() < 0.01
    torch.testing.assert_close(model.decode(whole), audio, atol=1e-4, rtol=0)
