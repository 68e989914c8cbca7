"""Audio files of all kinds are read as mono blocks, resampled without a seam and written back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec import audio
from codec.audio import (
    WRITTEN,
    AudioError,
    AudioReader,
    AudioWriter,
    audio_suffixes,
    cut,
    load,
    resample,
    resample_blocks,
    resampled_length,
    save,
)

Samples = NDArray[np.float32]
LOSSY = {".ogg", ".oga", ".opus", ".mp3"}


def sine(hertz: float, rate: int, seconds: float = 1.0, amplitude: float = 0.5) -> Samples:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def read(path: Path) -> Samples:
    with AudioReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


def amplitude_of(hertz: float, samples: Samples, rate: int) -> tuple[float, float]:
    """Amplitude of one frequency, and of all that is left without it, in the middle of the signal."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    phase = 2 * np.pi * hertz * np.arange(len(middle)) / rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, middle, rcond=None)
    return float(np.hypot(*weights)), float(np.sqrt(2 * np.mean((middle - basis @ weights) ** 2)))


# ---- reading and writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("length", [1, 319, 24001])
def test_write_and_read(tmp_path: Path, suffix: str, length: int, speech: tuple[Samples, int]) -> None:
    samples, rate = speech[0][4000 : 4000 + length], speech[1]
    path = tmp_path / f"a{suffix.upper()}"
    with AudioWriter(path, rate) as writer:
        for block in np.array_split(samples, 3):
            writer.write(block)
    again = read(path)
    assert soundfile.info(path).samplerate == rate and again.shape == samples.shape
    if suffix not in LOSSY:
        assert np.abs(again - samples).max() <= 0.5 / 32768
    elif length > 10_000:
        assert np.corrcoef(again, samples)[0, 1] > 0.95


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels_are_mixed_down(tmp_path: Path, rate: int, channels: int) -> None:
    samples = np.stack([sine(300 + 50 * c, rate, 0.1) for c in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with AudioReader(tmp_path / "a.wav") as reader:
        assert (reader.sample_rate, reader.channels, reader.claimed_seconds) == (rate, channels, 0.1)
        mono = np.concatenate(list(reader.blocks()))
        assert reader.num_samples == len(samples)
    np.testing.assert_allclose(mono, samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.opus"])
def test_long_files_come_in_blocks(tmp_path: Path, name: str) -> None:
    samples = sine(440, 8000, 25)
    with AudioWriter(tmp_path / name, 8000) as writer:
        writer.write(samples)
    with AudioReader(tmp_path / name) as reader:
        blocks = list(reader.blocks())
    assert [len(block) for block in blocks] == [80_000, 80_000, 40_000]
    assert amplitude_of(440, np.concatenate(blocks), 8000) == pytest.approx((0.5, 0), abs=0.05)


def test_wav_and_flac_from_a_pipe_do_not_know_their_length(tmp_path: Path, speech: tuple[Samples, int]) -> None:
    samples, rate = speech
    long = np.tile(samples, 8)  # more than one block
    for suffix, length_at, unknown in ((".wav", 40, b"\xff" * 4), (".flac", 22, b"\x00" * 4)):
        soundfile.write(tmp_path / f"a{suffix}", long, rate)
        data = bytearray((tmp_path / f"a{suffix}").read_bytes())
        data[length_at : length_at + 4] = unknown
        (tmp_path / f"b{suffix}").write_bytes(data)
        np.testing.assert_array_equal(read(tmp_path / f"b{suffix}"), long)


def test_suffixes() -> None:
    assert {".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff"} <= audio_suffixes()
    assert set(WRITTEN) <= audio_suffixes() and ".raw" not in audio_suffixes()


def test_save_and_load(tmp_path: Path, speech: tuple[Samples, int]) -> None:
    waveform, rate = torch.from_numpy(speech[0])[None], speech[1]
    for name, shape in (("a.wav", (-1,)), ("b.FLAC", (1, -1)), ("c.wav", (1, 1, -1))):
        save(tmp_path / name, waveform.reshape(shape).requires_grad_(), rate)
        again, again_rate = load(str(tmp_path / name))
        assert again_rate == rate and torch.equal(again, waveform)
    save(tmp_path / "a.wav", torch.tensor([0.5, 3.0, -3.0]).double(), 8000)
    assert load(tmp_path / "a.wav")[0].tolist() == [[0.5, 32767 / 32768, -1.0]]
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.0], [0.25, 0.75]]), 8000)
    assert load(tmp_path / "a.wav")[0].tolist() == [[0.25, 0.5]]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a.wav", (2, 80), r"a\.wav: a file takes one waveform \[1, T\], not \[2, 80\]"),
        ("a.xyz", (1, 80), r"a\.xyz: audio is not written as '\.xyz'; take \.wav"),
        ("a.opus", (1, 80), r"a\.opus: Opus has no sample rate 44100 Hz"),
    ],
)
def test_what_is_not_saved_leaves_the_file_as_it_was(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(AudioError, match=message):
        save(tmp_path / name, torch.zeros(shape), 44100)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"old")]


# ---- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0, np.nan], [np.inf, 0], [[3e38, 3e38]]])  # the last ones' sum is beyond float32
def test_what_is_not_finite_is_refused(tmp_path: Path, values: list[float]) -> None:
    soundfile.write(tmp_path / "a.wav", np.array(values), 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav holds NaN or infinity"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"hello, world\n" * 100, "is not audio that libsndfile reads"),
        ("zeros.flac", bytes(5000), "is not audio that libsndfile reads"),
        ("samples.raw", bytes(5000), "raw samples"),
    ],
)
def test_what_is_not_audio(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=message) as error:
        read(tmp_path / name)
    assert name in str(error.value)


def test_no_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 8000)
    with pytest.raises(AudioError, match=r"a\.wav holds no samples"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".flac", ".mp3"])
def test_files_that_break_off(tmp_path: Path, suffix: str, speech: tuple[Samples, int]) -> None:
    soundfile.write(tmp_path / f"a{suffix}", np.tile(speech[0], 2), speech[1])
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=rf"b{suffix} is damaged"):
        read(tmp_path / f"b{suffix}")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        AudioReader(tmp_path / "nowhere.wav")
    with pytest.raises(IsADirectoryError):
        AudioReader(tmp_path)
    with pytest.raises(FileNotFoundError):
        AudioWriter(tmp_path / "missing" / "a.wav", 24000)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_writer_clips(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav", 8000) as writer:
        writer.write(np.array([0, 1, 1.5, 100, -1, -1.5, -100, 0.5], np.float32))
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert samples.tolist() == [0, 32767, 32767, 32767, -32768, -32768, -32768, 16384]
    with AudioWriter(tmp_path / "a.ogg", 8000) as writer:
        writer.write(sine(440, 8000, amplitude=10))
    assert 0.9 < np.abs(read(tmp_path / "a.ogg")).max() < 1.5  # Vorbis itself would keep what is beyond


@pytest.mark.parametrize(
    ("name", "rate"), [("a.opus", 44100), ("a.opus", 22050), ("a.mp3", 96000), ("a.flac", 700_000), ("a.ogg", 200_001)]
)
def test_rates_that_a_format_does_not_have(tmp_path: Path, name: str, rate: int) -> None:
    with pytest.raises(AudioError, match=rf"^out\.x.*{rate} Hz.*take \.wav"):
        AudioWriter(tmp_path / name, rate, name="out.x")


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.raw", "a.mat5"])
def test_formats_that_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(AudioError, match=r"take \.wav, \.flac or \.ogg"):
        AudioWriter(tmp_path / name, 24000)
    assert list(tmp_path.iterdir()) == []


def test_too_long_for_wav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "WAV_BYTES", 1000)
    for length, expected in ((500, "WAV"), (501, "RF64")):
        with AudioWriter(tmp_path / "a.wav", 8000, length) as writer:
            writer.write(np.zeros(length, np.float32))
        info = soundfile.info(tmp_path / "a.wav")
        assert (info.format, info.frames) == (expected, length)


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files")
@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("missing", [300, 5000])
def test_full_disk(tmp_path: Path, suffix: str, missing: int, speech: tuple[Samples, int]) -> None:
    """Encoders write their last bytes when they are closed; where these do not fit, libsndfile reports no error."""
    import resource

    def write(name: str) -> int:
        with AudioWriter(tmp_path / name, 24000, name="out") as writer:
            writer.write(speech[0])
        return (tmp_path / name).stat().st_size

    size = write(f"fits{suffix}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, hard))
        with pytest.raises(AudioError, match=r"^out cannot be written; is the disk full\?$"):
            write(f"fails{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_long_blocks(tmp_path: Path) -> None:
    """Some millions of samples at once crash libsndfile's Vorbis encoder."""
    with AudioWriter(tmp_path / "a.ogg", 48000) as writer:
        writer.write(np.zeros(3_000_000, np.float32))
    assert soundfile.info(tmp_path / "a.ogg").frames == 3_000_000


# ---- resampling -----------------------------------------------------------------------------------------------------

RATES = [
    (8000, 8000),
    (8000, 24000),
    (44100, 24000),
    (48000, 24000),
    (24000, 44100),
    (16000, 24000),
    (24000, 11025),
    (12345, 16001),
]


@settings(max_examples=60, deadline=None)
@given(
    rates=st.sampled_from(RATES),
    length=st.one_of(st.integers(1, 50), st.integers(1, 30_000)),
    cuts=st.lists(st.integers(0, 30_000), max_size=6),
)
def test_blocks_change_nothing(rates: tuple[int, int], length: int, cuts: list[int]) -> None:
    samples = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    whole = resample(samples, *rates)
    blocks = np.split(samples, sorted(min(at, length) for at in cuts))
    np.testing.assert_array_equal(np.concatenate(list(resample_blocks(blocks, *rates))), whole)
    assert len(whole) == resampled_length(length, *rates) and whole.dtype == np.float32


@given(st.integers(0, 10**9), st.integers(1000, 768_000), st.integers(1000, 768_000))
def test_there_and_back_is_never_shorter(length: int, rate: int, other: int) -> None:
    assert resampled_length(resampled_length(length, rate, other), other, rate) >= length


@pytest.mark.parametrize(("rate", "other"), RATES)
def test_a_tone_stays_what_it_is(rate: int, other: int) -> None:
    found, rest = amplitude_of(1000, resample(sine(1000, rate), rate, other), other)
    assert found == pytest.approx(0.5, rel=0.01) and rest < 0.005


def test_what_is_above_half_the_new_rate_goes() -> None:
    assert np.abs(resample(sine(9500, 24000), 24000, 16000)[1000:-1000]).max() < 5e-4
    assert np.abs(resample(sine(15_000, 48000), 48000, 24000)[1000:-1000]).max() < 5e-4


def test_delay_is_compensated(speech: tuple[Samples, int]) -> None:
    samples, rate = speech
    back = resample(resample(samples, rate, 2 * rate), 2 * rate, rate)
    assert np.sqrt(np.mean((back - samples) ** 2)) < 0.02 * samples.std()


# ---- cutting --------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(0, 20), max_size=6), num_samples=st.integers(0, 100))
def test_cut(lengths: list[int], num_samples: int) -> None:
    blocks = np.split(np.arange(sum(lengths), dtype=np.float32), np.cumsum(lengths)[:-1])
    parts = list(cut(blocks, num_samples))
    assert np.concatenate([[], *parts]).tolist() == list(range(min(sum(lengths), num_samples)))
