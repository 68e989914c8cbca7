"""Manifests are strict, and a segment depends on seed and index alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from loading import recorded

from codec.config import CodecConfig
from codec.corpus.manifest import ManifestError, Record
from codec.level import LEVEL_DB
from codec.model import Codec
from codec.training import tracking
from codec.training.config import DataConfig, LossConfig
from codec.training.data import ResidentDataset, SegmentDataset, batches, draw_weights
from codec.training.losses import SpectralLoss
from codec.training.progress import TrainingError


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Sines of 440 Hz; bad.wav is none of them."""
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    records = []
    for name, length, rate in (("a.wav", 72000, 24000), ("b.wav", 16000, 16000), ("c.flac", 4800, 24000)):
        sine = 0.5 * np.sin(2 * np.pi * 440 / rate * np.arange(length))
        records.append(recorded(tmp_path / name, sine, rate, speaker="s"))
    return records


def test_segments_are_brought_to_one_level(records: list[Record]) -> None:
    """That at which speech is encoded, whatever the file's; a peak beyond all use is one bad file."""
    soundfile.write(records[0].path, 20 * soundfile.read(records[1].path)[0], 24000, "FLOAT")
    config = DataConfig(segment_seconds=0.2, normalize=True, gain_db=(0.0, 0.0), max_bad_fraction=1.0)
    dataset = SegmentDataset(records, 24000, config, seed=0)
    for index in range(20):
        assert 10 * dataset[index]["waveform"].square().mean().log10() == pytest.approx(LEVEL_DB, abs=0.1)
    assert dataset.bad == {"a"}


def test_a_speaker_beyond_the_cap_is_drawn_less_often() -> None:
    rate = 16000
    spoken = [("much", 3600), ("much", 3600), ("little", 900), ("", 600), ("", 5400)]
    records = [Record("alike", f"{i}.wav", seconds * rate, rate, who) for i, (who, seconds) in enumerate(spoken)]
    assert draw_weights(records, 0.0) == [3600, 3600, 900, 600, 5400]
    assert draw_weights(records, 1.0) == pytest.approx([1800, 1800, 900, 600, 3600])


def test_segments_are_resampled_without_edges(records: list[Record]) -> None:
    dataset = SegmentDataset(records, 24000, DataConfig(segment_seconds=0.5), seed=0)
    for position in (0.0, 0.4, 0.999):
        segment = dataset.cut(1, position).numpy()
        assert segment.shape == (12000,)
        assert np.abs(segment[200:-200]).max() == pytest.approx(0.5, rel=0.01)
        spectrum = np.abs(np.fft.rfft(segment * np.hanning(12000)))
        assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=2)
        assert spectrum[600:].max() < 1e-3 * spectrum.max()  # a click at an edge would spread
    short = dataset.cut(2, 0.5)
    assert short[:4800].any() and not short[4800:].any()


def test_too_many_bad_files_end_a_run(tmp_path: Path, records: list[Record], caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(segment_seconds=0.1)
    bad = [Record(f"bad{i}", str(tmp_path / "bad.wav"), 24000, 24000) for i in range(6)]
    dataset = SegmentDataset([*records, *bad[:1]], 24000, config, seed=0)
    for index in range(60):
        dataset[index]
    assert dataset.bad == {"bad0"}
    assert sum("bad.wav" in message for message in caplog.messages) == 1
    dataset = SegmentDataset([*records, *bad], 24000, config, seed=0)
    with pytest.raises(ManifestError, match="cannot be read"):
        for index in range(200):
            dataset[index]
    with pytest.raises(ManifestError, match="empty"):
        SegmentDataset([], 24000, config, seed=0)


def test_speech_in_memory_gives_the_segments_of_the_files(tmp_path: Path, records: list[Record]) -> None:
    """To 16 bits; unscaled integers are said, and never drawn, what is a little too loud is softer."""
    records[1] = Record("bad", str(tmp_path / "bad.wav"), 240000, 24000)
    soundfile.write(tmp_path / "bad.wav", np.linspace(-30_000, 30_000, 240_000), 24000, "FLOAT")
    dataset = SegmentDataset(records, 24000, DataConfig(segment_seconds=0.5), seed=0)
    resident = ResidentDataset(dataset, torch.device("cpu"))
    assert resident.bad == {"bad"} and [int(resident[index]["skipped"]) for index in range(20)] == [1] + 19 * [0]
    dataset.ends = resident.ends
    for index in range(20):
        for name, value in resident[index].items():
            torch.testing.assert_close(value, dataset[index][name], atol=1e-4, rtol=0)
    soundfile.write(tmp_path / "bad.wav", np.linspace(-2, 2, 240_000), 24000, "FLOAT")
    one = SegmentDataset(records[1:2], 24000, dataset.config, seed=0)
    assert len(ResidentDataset(one, torch.device("cpu")).utterances[0].unique()) > 50_000, "not clipped"
    bad = [Record(f"{i}", str(tmp_path / "none.wav"), 24000, 24000) for i in range(4)]
    good = [replace(records[2], id=f"good{i}") for i in range(5)]
    limits = [DataConfig(max_bad_fraction=share, workers=0) for share in (0.5, 0.01)]
    few, many = (SegmentDataset([*bad, *good], 24000, config, seed=0) for config in limits)
    ResidentDataset(few, torch.device("cpu"))
    with pytest.raises(ManifestError, match="4 of 9 files tried cannot be read"):
        ResidentDataset(many, torch.device("cpu"))


@pytest.mark.parametrize(
    "message",
    ["is killed by signal: Bus error. workers are out of shared memory", "</torch_1>: No space left on device"],
)
def test_too_little_shared_memory_is_said(records: list[Record], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentDataset, "__getitem__", Mock(side_effect=RuntimeError(message)))
    dataset = SegmentDataset(records, 24000, DataConfig(workers=0), seed=0)
    with pytest.raises(TrainingError, match=r"/dev/shm is too small .*--shm-size.*data.workers=0"):
        next(batches(dataset, 0, 1, Accelerator(cpu=True)))


def test_validation_cuts_a_long_utterance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LONGEST", 12)  # seconds, beyond the first block that is read
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 15 * 8000).astype(np.float32)
    codec: Any = SimpleNamespace(sample_rate=8000, device="cpu")
    for num_samples in (13 * 8000 + 1, 11 * 8000 + 3):
        soundfile.write(tmp_path / "x.wav", samples[:num_samples], 8000, subtype="FLOAT")
        ((_, speech),) = tracking.readable([Record("x", str(tmp_path / "x.wav"), num_samples, 8000)], codec)
        assert torch.equal(speech[0, 0], torch.from_numpy(samples[: min(num_samples, 12 * 8000)]))


def test_validation_skips_what_cannot_be_read(
    tiny_config: CodecConfig, records: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    accelerator, spectral = Accelerator(cpu=True), SpectralLoss(tiny_config.sample_rate, LossConfig())
    gone, loud = (replace(records[0], path=path) for path in ("gone.wav", records[0].path + ".loud.wav"))
    soundfile.write(loud.path, np.full(8000, 9.0), 8000, subtype="FLOAT")
    values = tracking.validate(Codec(tiny_config), [gone, loud, records[1]], spectral, False, accelerator)
    assert values["valid/utterances"] == 1 and values["valid/mel"] > 0
    assert "skipped gone.wav" in caplog.text and f"skipped {loud.path}: waveform must be in" in caplog.text
