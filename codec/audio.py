"""Reading, mixing down, resampling and writing audio, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.files import written_whole

if TYPE_CHECKING:
    from torch import Tensor

Block = NDArray[np.float32]

LARGEST_PEAK = 8.0  # full scale is 1; beyond this the samples are probably integers that were not scaled
BLOCK_SECONDS = 10
BLOCK_VALUES = 2**23  # and no block holds more, all channels together
SYSTEM_ERROR = 2  # libsndfile's code where the system calls fail
UNKNOWN_LENGTH = 2**62  # what libsndfile tells of a FLAC file written to a pipe is beyond this
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
VORBIS_HIGHEST = 200_000  # Hz: beyond it libsndfile's encoder crashes
WRITE_SAMPLES = 2**16  # at once: libsndfile's Vorbis encoder crashes on blocks of some millions
WAV_BYTES = 2**32 - 4096  # the size fields of a WAV file have 32 bits; longer ones are written as RF64

WRITTEN = {  # by suffix: libsndfile's names of the format and of the samples'
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aif": ("AIFF", "PCM_16"),
    ".aiff": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".rf64": ("RF64", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
}


class AudioError(CodecError):
    """Audio that cannot be read or written; the message names the file."""


def load(path: str | Path) -> tuple[Tensor, int]:
    """Waveform float32 ``[1, T]`` of an audio file, channels mixed down, and its sample rate in Hz.

    Samples are in [-1, 1]; only files of floats may hold others.

    Raises:
        AudioError: cannot be read as audio.
        OSError: cannot be opened.
    """
    import torch  # here, since what moves audio block by block needs none

    with AudioReader(path) as reader:
        return torch.from_numpy(np.concatenate(list(reader.blocks())))[None], reader.sample_rate


def save(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """Write a waveform of one channel, ``[T]``, ``[1, T]`` or ``[1, 1, T]``, in the format of the path's suffix.

    Samples beyond [-1, 1] are clipped. The file is written whole or not at all.

    Raises:
        AudioError: more than one item or channel; the format is unknown or does not take this sample rate.
        OSError: the file cannot be written.
    """
    samples = waveform.detach().cpu().float().numpy()
    if samples.ndim == 0 or samples.size != samples.shape[-1]:
        raise AudioError(f"{path}: a file takes one waveform [1, T], not {list(samples.shape)}; save items one by one")
    with written_whole(path) as temporary, AudioWriter(temporary, sample_rate, samples.size, str(path)) as writer:
        writer.write(samples.reshape(-1))


def audio_suffixes() -> set[str]:
    """Suffixes of the files that libsndfile reads here."""
    formats = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    return formats | {*WRITTEN, ".wave", ".snd", ".sph", ".aifc"}


def system_path(path: str | Path) -> str | bytes:
    """A path in the form in which soundfile takes every one: as text it refuses a name that is not UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks after each read, which is inexact in some MP3 files and fails in FLAC files of unknown length."""

    def seekable(self) -> bool:
        return False


class AudioReader:
    """One audio file as mono blocks; ``sample_rate`` (Hz) and ``channels`` are known once it is open.

    Args:
        path: of the file; or an open binary file.
        name: how messages call it.

    Raises:
        AudioError: cannot be read as audio.
        OSError: cannot be opened.
    """

    def __init__(self, path: str | Path | BinaryIO, name: str | None = None) -> None:
        self.name = name or str(path)
        if isinstance(path, (str, Path)):
            open(path, "rb").close()  # the system's own words for a missing or forbidden file
            if Path(path).stat().st_size == 0:
                raise AudioError(f"{self.name} is empty")
            if Path(path).suffix.lower() == ".raw":
                raise AudioError(f"{self.name}: raw samples do not tell their rate; convert it to WAV or FLAC first")
        try:
            self._file = _SequentialFile(system_path(path) if isinstance(path, (str, Path)) else path)
        except soundfile.LibsndfileError as error:
            reason = error.error_string.strip(" .")
            raise AudioError(
                f"{self.name} is not audio that libsndfile reads ({reason}); convert it to WAV or FLAC first"
            ) from None
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        frames = self._file.frames if 0 < self._file.frames < UNKNOWN_LENGTH else 0
        self.claimed_seconds: float = frames / self.sample_rate  # 0 if unknown, and a guess for some formats
        self.num_samples = 0  # per channel, read so far

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[Block]:
        """Mono float32 blocks ``[T]`` of up to ten seconds.

        Raises:
            AudioError: the file breaks off, holds NaN, or has no samples at all.
        """
        size = max(min(BLOCK_SECONDS * self.sample_rate, BLOCK_VALUES // self.channels), 1)
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{self.name} is damaged ({error.error_string.strip(' .')})") from None
            if len(block) == 0:
                break
            self.num_samples += len(block)
            with np.errstate(over="ignore", invalid="ignore"):  # the next line finds it
                mono = block.mean(axis=1, dtype=np.float32)
            if not np.isfinite(mono).all():
                raise AudioError(f"{self.name} holds NaN or infinity; repair it first")
            yield mono
        if self.num_samples == 0:
            raise AudioError(f"{self.name} holds no samples")
        seconds = self.num_samples / self.sample_rate
        if seconds < self.claimed_seconds - 1:  # the claim of an MP3 may be a little off
            raise AudioError(
                f"{self.name} is damaged: it breaks off after {seconds:.1f} of {self.claimed_seconds:.1f} s"
            )


class AudioWriter:
    """Writes mono blocks to an audio file whose format follows from the suffix; 16 bits where the format has them.

    At the end the file is read back: what is there then is all that was written.

    Args:
        path: of the file; one that exists is overwritten.
        sample_rate: in Hz.
        num_samples: how many will be written, if known: too many for a WAV file make it RF64, its 64-bit variant.
        name: how messages call it.

    Raises:
        AudioError: the format does not take this sample rate or is unknown; the disk is full.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, sample_rate: int, num_samples: int = 0, name: str | None = None) -> None:
        self.name = name or str(path)
        self._path, self._written = path, 0
        if path.suffix.lower() not in WRITTEN:
            raise AudioError(f"{self.name}: audio is not written as {path.suffix!r}; take .wav, .flac or .ogg")
        file_format, subtype = WRITTEN[path.suffix.lower()]
        if file_format == "WAV" and 2 * num_samples > WAV_BYTES:
            file_format = "RF64"
        lacks = {"OPUS": sample_rate not in OPUS_RATES, "VORBIS": sample_rate > VORBIS_HIGHEST}
        if lacks.get(subtype):
            raise AudioError(
                f"{self.name}: {subtype.capitalize()} has no sample rate {sample_rate} Hz; take .wav or .flac, or the "
                "model's own rate (--native-rate)"
            )
        open(path, "ab").close()  # the system's own words for a missing or forbidden folder
        try:
            self._file = soundfile.SoundFile(system_path(path), "w", sample_rate, 1, subtype, format=file_format)
        except (soundfile.LibsndfileError, ValueError) as error:
            if getattr(error, "code", None) == SYSTEM_ERROR:
                raise self._failure() from None
            reason = getattr(error, "error_string", str(error)).strip(" .")
            raise AudioError(
                f"{self.name} cannot be written at {sample_rate} Hz ({reason}); take .wav or .flac"
            ) from None

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._file.close()
        except soundfile.LibsndfileError:
            raise self._failure() from None
        if kind is None and self._written:
            self._verify()

    def _verify(self) -> None:
        """Read everything back: where the disk is full, the last bytes of FLAC, Opus and MP3 are lost without an error."""
        try:
            with AudioReader(self._path) as reader:
                for _ in reader.blocks():
                    pass
        except AudioError:
            raise self._failure() from None
        if reader.num_samples != self._written:
            raise self._failure()

    def write(self, block: Block) -> None:
        """Append samples; beyond full scale they are clipped."""
        samples = np.clip(block, -1.0, 1.0)
        try:
            for start in range(0, len(samples), WRITE_SAMPLES):
                self._file.write(samples[start : start + WRITE_SAMPLES])
        except (soundfile.LibsndfileError, AssertionError):  # soundfile asserts that all was written
            raise self._failure() from None
        self._written += len(samples)

    def _failure(self) -> AudioError:
        return AudioError(f"{self.name} cannot be written; is the disk full?")  # libsndfile does not tell the reason


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Samples after resampling: the smallest whole number that covers the same duration."""
    return -(-num_samples * to_rate // from_rate)


def resample_blocks(blocks: Iterable[Block], from_rate: int, to_rate: int) -> Iterator[Block]:
    """Resample one signal given in blocks (soxr, high quality); the total length is exactly ``resampled_length``."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    read = written = 0
    for block in blocks:
        read += len(block)
        resampled = stream.resample_chunk(block)
        written += len(resampled)
        yield resampled
    missing = resampled_length(read, from_rate, to_rate) - written
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[:missing]
    yield np.pad(rest, (0, missing - len(rest)))


def resample(waveform: Block, from_rate: int, to_rate: int) -> Block:
    """Resample a mono waveform ``[T]`` to exactly ``resampled_length`` samples."""
    return np.concatenate(list(resample_blocks([waveform], from_rate, to_rate)))


def cut(blocks: Iterable[Block], num_samples: int) -> Iterator[Block]:
    """The first ``num_samples`` of a signal given in blocks, or all of it if it is shorter."""
    left = num_samples
    for block in blocks:
        yield block[:left]
        left -= min(left, len(block))
