"""Audio files of all kinds are read as mono blocks, resampled without a seam and written back."""

import io
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from loading import encoded, flipped, full_disk
from numpy.typing import NDArray

from codec import audio
from codec.audio import WRITTEN, AudioError, AudioReader, AudioWriter, load, measure, read_samples, resample, save
from codec.errors import CodecError

Samples = NDArray[np.float32]


def sine(hertz: float, rate: int, seconds: float = 1.0, amplitude: float = 0.5) -> Samples:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


# ---- reading and writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("length", [1, 319, 24_001, 300_001])  # more than a block of 10 s
def test_write_and_read(tmp_path: Path, suffix: str, length: int, speech: tuple[Samples, int]) -> None:
    samples, rate = 0.7 * np.resize(speech[0][4000:], length), speech[1]  # between the steps of 16 bits
    path = tmp_path / f"a{suffix.upper()}"
    with AudioWriter(path, rate) as writer:
        for block in np.array_split(samples, 3):
            writer.write(block)
    again, again_rate = read_samples(path)
    assert again_rate == rate and again.shape == samples.shape
    if suffix not in (".ogg", ".oga", ".opus", ".mp3"):
        assert np.abs(again - samples).max() <= 0.5 / 32768
    elif length > 10_000:
        assert np.corrcoef(again, samples)[0, 1] > 0.95


def test_save_and_load(tmp_path: Path, speech: tuple[Samples, int]) -> None:
    waveform, rate = torch.from_numpy(speech[0])[None], speech[1]
    for name, shape in (("a.wav", (-1,)), ("b.FLAC", (1, -1)), ("c.wav", (1, 1, -1))):
        save(tmp_path / name, waveform.reshape(shape).requires_grad_(), rate)
        again, again_rate = load(str(tmp_path / name))
        assert again_rate == rate and torch.equal(again, waveform)
    save(tmp_path / "a.wav", torch.tensor([0.5, 3.0, -3.0]).double(), 8000)
    assert load(tmp_path / "a.wav")[0].tolist() == [[0.5, 32767 / 32768, -1.0]]
    save(tmp_path / "a.ogg", torch.from_numpy(sine(440, 8000, amplitude=10)), 8000)
    assert 0.9 < read_samples(tmp_path / "a.ogg")[0].max() < 1.5  # Vorbis itself would keep what is beyond
    save(tmp_path / "a.ogg", torch.zeros(3_000_000), 48000)  # at once, which crashes libsndfile's Vorbis encoder
    assert soundfile.info(tmp_path / "a.ogg").frames == 3_000_000
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.0], [0.25, 0.75]]), 8000)
    for channel, samples in ((None, [0.25, 0.5]), (1, [0.5, 0.25]), (2, [0.0, 0.75])):
        assert load(tmp_path / "a.wav", channel)[0].tolist() == [samples]


@pytest.mark.parametrize(
    ("name", "items", "rate", "message"),
    [
        ("a.wav", 2, 44100, r"a\.wav: a file takes one waveform \[1, T\], not \[2, 80\]"),
        *((f"a{suffix}", 1, 24000, r"take one of \.wav, \.flac") for suffix in (".xyz", "", ".raw", ".mat5")),
        ("a.opus", 1, 44100, r"a\.opus.*44100 Hz.*48000.*take \.wav"),
        ("a.mp3", 1, 96000, r"a\.mp3.*96000 Hz.*take \.wav"),
    ],
)
def test_what_is_not_saved(tmp_path: Path, name: str, items: int, rate: int, message: str) -> None:
    (tmp_path / name).write_bytes(b"old")
    integers = torch.ones(80, dtype=torch.int16), "divide 16-bit values"
    for waveform, text in ((torch.zeros(items, 80), message), (np.full(80, np.nan), "holds NaN"), integers):
        with pytest.raises(AudioError, match=text):
            save(tmp_path / name, waveform, rate)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"old")]
    for suffix in (".flac", ".mp3", ".opus"):
        with pytest.raises(CodecError, match="without sound it is no file"):
            save(tmp_path / f"a{suffix}", np.zeros(0, np.float32), 48000)


# ---- headers that do not say what the file holds ----------------------------------------------------------------------

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 48_000).astype(np.float32)  # 2 s at 24 kHz
noise_as = partial(encoded, NOISE, 24_000)  # noise_as("WAV"): a file of this format
ID3 = b"ID3\3\0\0\0\0\1\0" + bytes(128)
ID3V1 = b"TAG" + bytes(125)


def ogg(subtype: str = "OPUS", samples: Samples = NOISE, rate: int = 24000) -> bytes:
    return encoded(samples, rate, "OGG", subtype=subtype)


def mp3(samples: Samples = NOISE, rate: int = 24000, info: bool = True, mode: str = "VARIABLE") -> bytes:
    """Without an Info header as encoders write it to a pipe."""
    data = encoded(samples, rate, "MP3", bitrate_mode=mode, compression_level=0.4)
    return data if info else data[data.index(data[:2], 4) :]


def decoded(data: bytes, **kind: Any) -> Samples:
    """Read twice, as codec-encode does."""
    with AudioReader(io.BytesIO(data), "a file", **kind) as reader:
        samples, again = (np.concatenate(list(reader.blocks())) for _ in range(2))
        np.testing.assert_array_equal(again, samples)
        assert reader.num_samples == len(samples)
        return samples


def with_size(size: int) -> bytes:
    """A WAV file whose header gives its samples this size."""
    data = bytearray(noise_as("WAV"))
    data[40:44] = size.to_bytes(4, "little")
    return bytes(data)


def flac_claiming(num_samples: int) -> bytes:
    data = noise_as("FLAC")
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | num_samples
    return data[:18] + packed.to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zeros.flac", bytes(5000), "is not audio that libsndfile reads"),
        ("list", b"ffconcat version 1.0\nfile a.wav\n", "is not audio"),  # FFmpeg would follow it
        ("list.m3u", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.ts\n", "is not audio"),
        ("nan.wav", encoded(np.array([0, np.nan]), subtype="FLOAT"), "holds NaN or infinity"),
        ("sum.wav", encoded(np.full((1, 2), 3e38), subtype="FLOAT"), "holds NaN or infinity"),  # beyond float32
        ("empty.wav", encoded(NOISE[:0]), "holds no samples"),
        ("short.flac", flac_claiming(48_001), "only 48,000 of 48,001 samples"),
        ("cut.flac", flac_claiming(0)[:-2000], "is damaged"),
        ("junk.mp3", mp3()[:6000] + bytes(300) + mp3()[6300:], "of 48,000 samples can be read"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=message) as error:
        read_samples(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize("size", [0, 2**32 - 1, 0x7FFFF000, 0x7FFFFFFF, 0x80000000])
def test_a_size_that_a_pipe_could_not_know(size: int, caplog: pytest.LogCaptureFixture) -> None:
    data = with_size(size)
    np.testing.assert_array_equal(decoded(data), decoded(noise_as("WAV")))
    assert measure(io.BytesIO(data)) == (48_000, 24_000) and not caplog.text


FORMATS = ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "WAVEX", "NIST", "FLAC", "MP3", "VORBIS", "OPUS"]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("left", [0.5, -300])
def test_files_that_are_cut_short(file_format: str, left: float) -> None:
    data = ogg(file_format) if file_format in ("VORBIS", "OPUS") else noise_as(file_format)
    with pytest.raises(AudioError, match="a file is damaged"):
        decoded(data[: int(left * len(data)) if left > 0 else int(left)])


def test_what_follows_the_samples(caplog: pytest.LogCaptureFixture) -> None:
    assert len(decoded(with_size(20_000))) == 10_000
    assert "76,000 bytes behind its audio are left out; 0.4 s are read" in caplog.text
    title = b"id3 " + (40_000).to_bytes(4, "little") + bytes(40_000)
    caplog.clear()
    assert len(decoded(noise_as("WAV") + title)) == len(NOISE) and not caplog.text
    for kind in (b"id3 ", b"bext", b"cue "):
        with pytest.raises(AudioError, match="holds no samples"):
            decoded(with_size(0)[:44] + kind + title[4:])
    aiff = noise_as("AIFF")
    for moved in (noise_as("CAF", subtype="ALAC_16"), aiff[:12] + aiff[38:] + aiff[12:38]):
        assert len(decoded(moved)) == len(NOISE) and not caplog.text


def test_a_gap_in_mp3_without_a_header_of_its_length() -> None:
    """At some of them the decoder stops without an error."""
    data = mp3(np.tile(NOISE, 3), info=False)
    for start in range(len(data) // 3, len(data) // 2, 331):
        with suppress(AudioError):
            assert len(decoded(data[:start] + data[start + 1500 :])) > 2.5 * len(NOISE)


def test_advertisements_in_a_podcast() -> None:
    """The Info frame of the podcast does not count them."""
    podcast = mp3()
    frames = [podcast.find(podcast[:2], start) for start in (500, len(podcast) // 2)]
    assert len(decoded(podcast[: frames[1]] + podcast[frames[0] :] + podcast[frames[1] :])) > 1.9 * len(NOISE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_lost_pages_of_ogg(subtype: str, caplog: pytest.LogCaptureFixture) -> None:
    """Any page behind the first ones of audio, but for the last one: a killed writer does not write it."""
    pages = [b"OggS" + page for page in ogg(subtype, np.tile(NOISE, 3)).split(b"OggS")[1:]]
    head = [page[6:14] == bytes(8) for page in pages].count(True)  # pages without audio
    assert len(pages) > head + 3
    for index, page in enumerate(pages[head + 1 : -1], head + 1):
        for instead in (b"", flipped(page, -20)):
            with pytest.raises(AudioError, match=r"only .* samples can be read"):
                decoded(b"".join([*pages[:index], instead, *pages[index + 1 :]]))
    assert 90_000 < len(decoded(b"".join([*pages[:head], *pages[head + 2 :]]))) < 144_000  # recorded from there on
    assert not caplog.text
    assert 100_000 < len(decoded(b"".join(pages[:-1]))) < 144_000
    assert "has no last page and may be cut short; " in caplog.text
    with pytest.raises(AudioError, match="its end is missing"):
        decoded(b"".join(pages[:-1]) + bytes(1000))


@pytest.mark.parametrize(
    "parts",
    [
        [ogg("VORBIS"), ogg("OPUS"), ogg("VORBIS")],
        [ogg("VORBIS"), ogg("VORBIS", np.stack([NOISE, NOISE], 1)[:44_100], 44_100)],
        [mp3(), mp3(mode="CONSTANT"), ID3 + mp3() + ID3V1],
        [mp3(), mp3(np.stack([NOISE, NOISE], 1)), mp3(NOISE[:44_100], 44_100)],
        [noise_as("FLAC"), noise_as("FLAC")],
        [mp3(), mp3(NOISE[:480])],
        [noise_as("WAV"), noise_as("WAV")[:36] + b"LIST\4\0\0\0abcd" + noise_as("WAV")[36:]],
    ],
)
def test_one_file_behind_another(parts: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    whole = decoded(b"".join(parts))
    expected = [resample(decoded(part), measure(io.BytesIO(part))[1], 24_000) for part in parts]
    np.testing.assert_array_equal(whole, np.concatenate(expected))
    assert measure(io.BytesIO(b"".join(parts))) == (len(whole), 24_000) and not caplog.text


MIXED = np.where(np.arange(48_000) < 16_000, NOISE, sine(200, 24_000, 2, 0.2)).astype(np.float32)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("samples", [NOISE, MIXED, MIXED[::-1].copy(), np.pad(NOISE[12_000:], (12_000, 0))])
def test_mp3_without_info_header(mode: str, samples: Samples, caplog: pytest.LogCaptureFixture) -> None:
    data = mp3(samples, info=False, mode=mode)
    again = decoded(data)
    assert 48_000 <= len(again) < 48_000 + 4 * 576 and measure(io.BytesIO(data))[0] == len(again)
    assert np.corrcoef(again[576 + 40_000 :][:2400], samples[40_000:42_400])[0, 1] > 0.8  # 576: the encoder's delay
    assert len(decoded(data + ID3 + data)) > 96_000 and not caplog.text
    assert len(decoded(mp3(samples, mode=mode) + data)) >= 96_000
    assert len(again) - 3 * 576 < len(decoded(data[:-30])) < len(again)  # as of a broadcast


@pytest.mark.parametrize("info", [True, False])
def test_mp3_with_tags(info: bool, caplog: pytest.LogCaptureFixture) -> None:
    data = mp3(info=info)
    ape = NOISE.tobytes()[:300] + b"APETAGEX" + np.array([2000, 332, 1, 0, 0, 0], "<u4").tobytes()
    whole = decoded(data)
    for tagged in (ID3 + data, ID3 + ID3 + data, data + ape, data + ID3V1, data + ape + ID3V1):
        np.testing.assert_array_equal(decoded(tagged), whole)
    assert not caplog.text


@pytest.mark.parametrize("form", ["WAV", "AIFF", "FLAC", "AU", "CAF", "W64", "OGG"])
def test_a_tag_before_other_formats(form: str, caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_array_equal(decoded(ID3 + noise_as(form)), decoded(noise_as(form)))
    assert not caplog.text


SEEKABLE = [noise_as("WAV"), noise_as("WAV", subtype="GSM610"), ogg(), mp3(), mp3(MIXED, info=False)]


@pytest.mark.parametrize("data", [*SEEKABLE, flac_claiming(0), ogg() + ogg("VORBIS"), mp3() + mp3()], ids=range(8))
def test_segments(data: bytes) -> None:
    """From anywhere they are what reading all gives there, and never silence from behind the end."""
    whole = decoded(data)
    for start in (0, 1, 20_000, 39_001, len(whole) - 2000):
        with AudioReader(io.BytesIO(data), "a file") as reader:
            np.testing.assert_allclose(reader.segment(start, 2000), whole[start : start + 2000], atol=1e-3)
    for start in (len(whole) - 1999, len(whole) + 5000):
        with AudioReader(io.BytesIO(data), "a file") as reader, pytest.raises(AudioError, match="is damaged"):
            reader.segment(start, 2000)


def test_channels_that_cancel(caplog: pytest.LogCaptureFixture) -> None:
    for other in (-NOISE, -0.9 * NOISE):
        stereo = encoded(np.stack([NOISE, other], 1), subtype="FLOAT")
        assert len(decoded(stereo)) == 48_000
        assert "a file: its channels cancel each other; take one" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(decoded(stereo, channel=2), other.astype(np.float32))
        assert not caplog.text
    with pytest.raises(AudioError, match="has no channel 3, only 2"):
        decoded(stereo, channel=3)
    with pytest.raises(AudioError, match="channel must be"):
        decoded(stereo, channel=0)
    for channels in ([NOISE, NOISE[::-1]], [NOISE, -0.2 * NOISE], [NOISE, *7 * [0 * NOISE]], 2 * [0 * NOISE]):
        decoded(encoded(np.stack(channels, 1)))
    assert not caplog.text


# ---- what libsndfile does not read ------------------------------------------------------------------------------------


def made_by_av(tmp_path: Path, container: str, codec: str, rate: int, layout: str = "mono", **options: str) -> bytes:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a"), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        samples = resample(NOISE, 24_000, rate)[None].repeat(av.AudioLayout(layout).nb_channels, axis=1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("kind", ["mp4 aac", "mp4 alac", "adts aac", "webm libopus", "matroska flac", "ogg flac"])
def test_formats_by_pyav(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    container, codec = kind.split()
    rate = 48_000 if codec == "libopus" else 24_000
    if kind == "mp4 aac":
        assert len(decoded(made_by_av(tmp_path, container, codec, rate, "7.1"), channel=8)) >= 2 * rate
    data = made_by_av(tmp_path, container, codec, rate, **{"live": "1"} if container == "webm" else {})
    samples = decoded(data)
    assert 2 * rate <= len(samples) < 2.1 * rate and measure(io.BytesIO(data)) == (len(samples), rate)
    with AudioReader(io.BytesIO(data), "a file") as reader:
        np.testing.assert_allclose(reader.segment(rate, 1000), samples[rate : rate + 1000], atol=1e-6)
    assert not caplog.text
    twice = len(decoded(data + data))  # one behind the other
    assert twice == 2 * len(samples) if container in ("mp4", "webm", "matroska") else twice > 2 * rate
    with pytest.raises(AudioError, match=r"^a file is (damaged|not audio that libsndfile reads, nor PyAV)"):
        decoded(data[: len(data) // 2])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"for M4A, AAC, WebM, AMR and others pip install .*\[formats\]"):
        decoded(data)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_too_long_for_wav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "WAV_BYTES", 1000)
    for length, expected in ((500, "WAV"), (501, "RF64")):
        with AudioWriter(tmp_path / "a.wav", 8000, length) as writer:
            writer.write(np.zeros(length, np.float32))
        info = soundfile.info(tmp_path / "a.wav")
        assert (info.format, info.frames) == (expected, length)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("missing", [300, 5000])
def test_full_disk(tmp_path: Path, suffix: str, missing: int, speech: tuple[Samples, int]) -> None:
    """Encoders write their last bytes when they are closed; where these do not fit, libsndfile reports no error."""

    def write(name: str) -> int:
        with AudioWriter(tmp_path / name, 24000, name="out") as writer:
            writer.write(speech[0])
        return (tmp_path / name).stat().st_size

    size = write(f"fits{suffix}")
    with (
        full_disk(size - missing),
        pytest.raises(CodecError, match=r"^out cannot be written; is the disk full\?$") as error,
    ):
        write(f"fails{suffix}")
    assert not isinstance(error.value, AudioError), "which would be one of the input"


# ---- resampling -----------------------------------------------------------------------------------------------------

RATES = [(8000, 8000), (8000, 24000), (44100, 24000), (24000, 44100), (16000, 24000), (24000, 11025), (12345, 16001)]


@given(
    rates=st.sampled_from(RATES),
    length=st.one_of(st.integers(1, 50), st.integers(1, 30_000)),
    cuts=st.lists(st.integers(0, 30_000), max_size=6),
)
def test_blocks_change_nothing(rates: tuple[int, int], length: int, cuts: list[int]) -> None:
    samples = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    whole = resample(samples, *rates)
    blocks = np.split(samples, sorted(min(at, length) for at in cuts))
    np.testing.assert_array_equal(np.concatenate(list(audio.resample_blocks(blocks, *rates))), whole)
    resampled = audio.resampled_length(length, *rates)
    assert len(whole) == resampled and whole.dtype == np.float32
    assert audio.resampled_length(resampled, *rates[::-1]) >= length


@pytest.mark.parametrize(("rate", "other"), RATES)
def test_a_tone_stays_where_it_is(rate: int, other: int) -> None:
    tone = resample(sine(1000, rate), rate, other)
    np.testing.assert_allclose(tone[500:-500], sine(1000, other)[500:-500], atol=0.005)
