"""Reading, mixing down, resampling and writing audio, block by block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from codec.audio_parts import MOST_BEHIND, Part, find_parts, incomplete
from codec.audio_parts import AudioError as AudioError  # part of this module too
from codec.config import whole_number
from codec.errors import CodecError, install_command
from codec.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
Block = NDArray[np.float32]

BLOCK_SECONDS = 10
BLOCK_VALUES = 2**23  # at most in a block, all channels together
SYSTEM_ERROR = 2  # libsndfile's code if a system call fails
AV_FORMATS = "mov,matroska,aac,amr,caf,wav,ogg,mp3"  # and no others: FFmpeg would also follow lists of addresses
AV_SUFFIXES = {".3g2", ".3gp", ".aac", ".amr", ".bw64", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm"}
AV_BLOCKS = 200  # to read at once, mostly of 20 to 50 ms
AV_SLACK = 0.1  # s: times in WebM files are rounded, and include what the encoder puts before the audio
MP3_FRAME = 1152  # samples at most; some encoders count one frame more than there is
MP3_BEHIND = 2**11  # bytes at most behind the last frame of MP3 without a header of its length: tags, a cut frame
MP3_LEAD = 2**14  # samples that an MP3 decoder must read before a place to be right there
CANCELLING_DB = 6.0  # channels cancel if their mix is softer by this than with all but the loudest one silent
UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's number of samples if the header does not tell it
WRITE_SAMPLES = 2**16  # to write at once: libsndfile's Vorbis encoder crashes on blocks of some millions
LOUD = 2.0  # times full scale, which decoded speech exceeds by some tenths: by more only if its recording does
WAV_BYTES = 2**32 - 4096  # the size fields of a WAV file have 32 bits; longer ones are written as RF64

WRITTEN = {  # by suffix, libsndfile's names of the format and the sample format
    **{f".{name}": (name.upper(), "PCM_16") for name in ("wav", "flac", "aiff", "au", "caf", "rf64", "w64")},
    ".aif": ("AIFF", "PCM_16"),
    **dict.fromkeys((".ogg", ".oga"), ("OGG", "VORBIS")),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


def load(path: str | Path, channel: int | None = None) -> tuple[Tensor, int]:
    """Waveform float32 ``[1, T]`` of an audio file, and its sample rate in Hz.

    Channels are mixed down, or one alone is read, counted from 1. Samples are in [-1, 1]; files of floats may hold
    others, and so may Ogg and MP3 of very loud sound.

    Raises:
        AudioError: cannot be read as audio.
        OSError: cannot be opened.
    """
    import torch  # here, as moving audio block by block needs no torch

    samples, sample_rate = read_samples(path, channel=channel)
    return torch.from_numpy(samples)[None], sample_rate


def read_samples(path: str | Path | BinaryIO, name: str | None = None, channel: int | None = None) -> tuple[Block, int]:
    """All mono samples ``[T]``, and their rate in Hz; arguments and errors as AudioReader."""
    with AudioReader(path, name, channel) as reader:
        return np.concatenate(list(reader.blocks())), reader.sample_rate


def save(path: str | Path, waveform: Tensor | NDArray[Any], sample_rate: int) -> None:
    """Write a waveform of one channel, ``[T]``, ``[1, T]`` or ``[1, 1, T]``, in the format of the path's suffix.

    Samples beyond [-1, 1] are clipped. The file is written whole or not at all.

    Raises:
        AudioError: no floats; more than one item or channel; NaN; the format is unknown or does not take this sample rate.
        CodecError: the sample rate is no whole number; the disk is full.
        OSError: the file cannot be written.
    """
    rate, path = whole_number("sample_rate", sample_rate, 1, 2**31 - 1), Path(path)
    if not isinstance(waveform, np.ndarray) and hasattr(waveform, "detach") and waveform.is_floating_point():
        waveform = waveform.detach().cpu().double()  # NumPy has no bfloat16
    samples = np.asarray(waveform)
    if samples.dtype.kind != "f":  # integers would be clipped to noise
        raise AudioError(f"{path}: a waveform is an array or a tensor of floats; divide 16-bit values by 32768")
    if np.isnan(samples).any():
        raise AudioError(f"{path}: the waveform holds NaN")
    if samples.ndim == 0 or samples.size != samples.shape[-1]:
        raise AudioError(f"{path}: a file takes one waveform [1, T], not {list(samples.shape)}; save items one by one")
    with atomic_write(path) as temporary, AudioWriter(temporary, rate, samples.size, str(path)) as writer:
        writer.write(samples.reshape(-1).astype(np.float32))


def audio_suffixes() -> frozenset[str]:
    """Suffixes of the files that libsndfile reads here, or PyAV would."""
    formats = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    return frozenset(formats | {*WRITTEN, ".wave", ".snd", ".sph", ".aifc", ".mp2", ".mpga", ".spx"} | AV_SUFFIXES)


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks after each read, which is inexact in some MP3 files and fails in FLAC files of unknown length."""

    def seekable(self) -> bool:
        return False


class _AvFile:
    """The audio of a file, read by PyAV; it has what is used here of ``soundfile.SoundFile``, and cannot seek."""

    frames, format, subtype = 0, "", ""  # the length is not known before the end

    def __init__(self, part: Part, name: str) -> None:
        import av

        part.seek(0)
        try:
            self._container = av.open(part, "r", metadata_errors="ignore", options={"format_whitelist": AV_FORMATS})
        except av.FFmpegError as error:
            text = f"{name} is not audio that libsndfile reads, nor PyAV ({error.strerror}); convert it first"
            raise AudioError(text) from None
        streams = [s for s in self._container.streams.audio if s.codec_context and s.codec_context.sample_rate]
        if not streams:
            raise AudioError(f"{name} holds no audio that PyAV decodes")
        self._name, self._stream = name, streams[0]
        self.samplerate, self._layout = streams[0].codec_context.sample_rate, streams[0].codec_context.layout
        self.channels = len(self._layout.channels)
        self._blocks = self._decoded()

    def close(self) -> None:
        self._container.close()

    def read(self, *_: object, **__: object) -> Block:
        """Samples ``[T, C]`` of some seconds; none at the end."""
        return np.concatenate([np.zeros((0, self.channels), np.float32), *islice(self._blocks, AV_BLOCKS)])

    def _decoded(self) -> Iterator[Block]:
        import av

        form = None
        read = reached = 0.0  # s: the end by the lengths of all frames, and by the time of the last one
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise AudioError(f"{self._name} is damaged: its end is missing")
                for frame in packet.decode():
                    if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                        # not planar: PyAV crashes where a frame of more than seven planes becomes an array
                        resampler = av.AudioResampler("flt", self._layout, self.samplerate)
                    seconds, time = frame.samples / frame.sample_rate, frame.time or 0.0
                    read, reached = (read or time) + seconds, time + seconds
                    for block in resampler.resample(frame):
                        yield np.asarray(block.to_ndarray(), np.float32).reshape(-1, self.channels)
        except av.FFmpegError as error:
            raise AudioError(f"{self._name} is damaged ({error.strerror})") from None
        promised = 0.0
        if self._container.format.name.startswith("mov") and self._stream.duration and self._stream.time_base:
            promised = float(self._stream.duration * self._stream.time_base)
        if reached < promised - AV_SLACK:
            raise incomplete(self._name, round(read, 1), round(promised, 1), "s")
        if read < reached - AV_SLACK:  # or recorded so: in WebM some encoders leave silence out
            log.warning(incomplete(self._name, round(read, 1), round(reached, 1), "s"))


class AudioReader(AbstractContextManager["AudioReader"]):
    """One audio file as mono blocks; ``sample_rate`` (Hz) and ``channels`` are known once it is open.

    libsndfile decodes what it knows, PyAV (the extra ``formats``) the rest. Joined files (WAV, AIFF, CAF, FLAC, Ogg, MP3,
    MP4, Matroska) are read one after the other. A cut file is refused if its header tells its length; one of a pipe, a
    broadcast or a killed writer is read to its end, but for AU. Rare formats as VOC and PVF are read as libsndfile
    reads them, cut or not. Doubts are logged after all is read.

    Args:
        path: of the file; or an open binary file.
        name: its name in messages.
        channel: the one to read, counted from 1, instead of the mean of all.

    Attributes:
        claimed_samples: samples per channel by the header, if that is exact, else 0.
        num_samples: per channel, read so far.

    Raises:
        AudioError: cannot be read as audio, or has less than its header says; no such channel.
        OSError: cannot be opened.
    """

    def __init__(self, path: str | Path | BinaryIO, name: str | None = None, channel: int | None = None) -> None:
        self.name = name or str(path)
        self._channel = None if channel is None else whole_number("channel", channel, 1, 2**31 - 1, AudioError)
        self.num_samples, self._loudest, self._mixed = 0, 0.0, 0.0
        with ExitStack() as stack:
            if not hasattr(path, "read"):
                path = stack.enter_context(open(path, "rb"))
            self._parts = find_parts(cast(BinaryIO, path), self.name)
            with closing(self._open(self._parts[0])) as decoder:
                self.sample_rate: int = decoder.samplerate
                self.channels: int = decoder.channels
            self._stack = stack.pop_all()
        self.claimed_samples: int = (self._parts[0].num_samples or 0) if len(self._parts) == 1 else 0

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, part: Part) -> _SequentialFile | _AvFile:
        decoder: _SequentialFile | _AvFile
        part.seek(0)
        try:
            decoder = _SequentialFile(part)
        except soundfile.LibsndfileError as error:
            try:
                decoder = _AvFile(part, self.name)
            except ModuleNotFoundError:
                raise AudioError(
                    f"{self.name} is not audio that libsndfile reads ({error.error_string.strip(' .')}); for M4A, AAC, "
                    f"WebM, AMR and others {install_command('av')}, or convert it to WAV or FLAC first"
                ) from None
        if (channel := self._channel or 1) > decoder.channels:
            decoder.close()
            raise AudioError(f"{self.name} has no channel {channel}, only {decoder.channels}")
        if part.num_samples is None:
            guessed = decoder.frames >= UNKNOWN_LENGTH or (decoder.format, decoder.subtype) == ("WAV", "MPEG_LAYER_III")
            part.num_samples = 0 if guessed else decoder.frames
        return decoder

    def blocks(self) -> Iterator[Block]:
        """Mono float32 blocks ``[T]`` of about ten seconds at most; an AudioError if the file is cut or holds NaN.

        After all were read, they can be read again.
        """
        self.num_samples, self._loudest, self._mixed = 0, 0.0, 0.0
        for part in self._parts:
            with closing(self._open(part)) as decoder:
                for block in resample_blocks(self._decoded(part, decoder), decoder.samplerate, self.sample_rate):
                    self.num_samples += len(block)
                    yield block
        if self.num_samples == 0:
            raise AudioError(f"{self.name} holds no samples")
        if self._loudest > self._mixed * 10 ** (CANCELLING_DB / 10):
            log.warning("%s: its channels cancel each other; take one of them (codec-encode --channel)", self.name)

    def segment(self, start: int, num_samples: int) -> Block:
        """The mono samples ``[num_samples]`` from ``start`` on, quickly where a format allows; errors as :meth:`blocks`."""
        position, stream, samples = 0, self.blocks(), np.zeros(0, np.float32)
        with closing(self._open(self._parts[0])) as decoder:
            alone = len(self._parts) == 1
            if alone and isinstance(decoder, _SequentialFile) and super(_SequentialFile, decoder).seekable():
                position = max(0, start - MP3_LEAD * (decoder.format == "MP3"))
                stream = iter([self._read(decoder, start + num_samples - position, position)])
        while len(samples) < num_samples and (block := next(stream, None)) is not None:
            samples = np.concatenate([samples, block[max(0, start - position) :]])
            position += len(block)
        if len(samples) < num_samples:
            raise incomplete(self.name, position, start + num_samples, "samples")
        return samples[:num_samples]

    def _decoded(self, part: Part, decoder: _SequentialFile | _AvFile) -> Iterator[Block]:
        """Mono blocks of one part."""
        claimed, read, note = part.num_samples or 0, 0, part.note
        size = max(min(BLOCK_SECONDS * decoder.samplerate, BLOCK_VALUES // decoder.channels), 1)
        while len(block := self._read(decoder, min(size, claimed - read) if claimed else size)):
            read += len(block)
            yield block
        if read < claimed:
            error = incomplete(self.name, read, claimed, "samples")
            if claimed - read > MP3_FRAME or decoder.subtype != "MPEG_LAYER_III":
                raise error
            log.warning(error)
        behind = part.size - part.titles - part.tell()
        if behind > MP3_BEHIND and decoder.subtype == "MPEG_LAYER_III" and not claimed:  # a decoder stops at a gap
            raise AudioError(f"{self.name} is damaged: {behind:,} bytes of MP3 cannot be read; convert it first")
        if behind > MOST_BEHIND and isinstance(decoder, _SequentialFile):
            note = f"{behind:,} bytes behind its audio are left out"
        if note:
            log.warning("%s: %s; %.1f s are read", self.name, note, read / decoder.samplerate)

    def _read(self, decoder: Any, count: int, start: int | None = None) -> Block:
        """Mono samples ``[T]`` of a decoder, at most ``count`` of them from libsndfile; none at the end."""
        try:
            if start is not None:
                decoder.seek(start)
            block = decoder.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.name} is damaged ({error.error_string.strip(' .')})") from None
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused below
            mono: Block = block[:, self._channel - 1] if self._channel else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError(f"{self.name} holds NaN or infinity; repair it first")
        if not self._channel and block.shape[1] > 1:
            self._loudest += np.einsum("tc,tc->c", block, block, dtype=np.float64).max()
            self._mixed += np.einsum("t,t->", mono, mono, dtype=np.float64) * block.shape[1] ** 2
        return mono


class AudioWriter(AbstractContextManager["AudioWriter"]):
    """Writes mono blocks to an audio file whose format follows from the suffix; 16 bits where the format has them.

    At the end the file is read back, to find out whether all that was written is there.

    Args:
        path: of the file, in a folder that can be written to; one that exists is overwritten.
        sample_rate: in Hz.
        num_samples: how many will be written, if known: too many for a WAV file make it RF64, its 64-bit variant.
        name: its name in messages.

    Raises:
        AudioError: the format does not take this sample rate, or is unknown.
        CodecError: the disk is full.
    """

    def __init__(self, path: Path, sample_rate: int, num_samples: int = 0, name: str | None = None) -> None:
        self.name = name or str(path)
        self._path, self._written, self._peak = path, 0, 0.0
        if path.suffix.lower() not in WRITTEN:
            suffix = Path(self.name).suffix  # the name of a temporary file has another
            raise AudioError(f"{self.name}: audio is not written as {suffix!r}; take one of {', '.join(WRITTEN)}")
        file_format, subtype = WRITTEN[path.suffix.lower()]
        if file_format == "WAV" and 2 * num_samples > WAV_BYTES:
            file_format = "RF64"
        try:
            system_path = str(path) if os.name == "nt" else os.fsencode(path)  # as text it must be UTF-8
            self._file = soundfile.SoundFile(system_path, "w", sample_rate, 1, subtype, format=file_format)
        except (soundfile.LibsndfileError, ValueError) as error:
            if getattr(error, "code", None) == SYSTEM_ERROR:
                raise CodecError(f"{self.name} cannot be written; is the disk full?") from None
            reason = getattr(error, "error_string", str(error)).strip(" .")
            text = f"{self.name} cannot be written at {sample_rate} Hz ({reason}); take .wav, or the model's own rate"
            raise AudioError(f"{text} (codec-decode --native-rate)") from None

    def __exit__(self, kind: object, *_: object) -> None:
        with self._on_disk():
            self._file.close()
            if kind is None:  # the last bytes of FLAC, Opus and MP3 can be lost without an error
                with AudioReader(self._path) as reader:
                    if self._written and sum(map(len, reader.blocks())) != self._written:
                        raise AudioError(f"{self.name} lacks samples")
        if kind is None and self._peak > LOUD:
            log.warning("%s: reaches %.1f times full scale and is clipped there", self.name, self._peak)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turn errors of writing into a CodecError: libsndfile gives no reason, soundfile asserts that all was written."""
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError, AudioError):
            reason = "is the disk full?" if self._written else "without sound it is no file; take .wav"
            raise CodecError(f"{self.name} cannot be written; {reason}") from None

    def write(self, block: Block) -> None:
        """Append samples, which are clipped at full scale."""
        self._peak = max(self._peak, np.abs(block).max(initial=0.0))
        self._written += len(block)
        samples = to_pcm(block) if self._file.subtype == "PCM_16" else np.clip(block, -1.0, 1.0)
        with self._on_disk():
            for start in range(0, len(samples), WRITE_SAMPLES):
                self._file.write(samples[start : start + WRITE_SAMPLES])


def to_pcm(samples: Block) -> NDArray[np.int16]:
    """Samples as 16 bits, little-endian, clipped at full scale; libsndfile itself would round some formats downwards."""
    return np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")


def measure(path: str | Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Samples per channel and sample rate (Hz) of an audio file, by its header if that is exact; errors as AudioReader."""
    with AudioReader(path, name) as reader:
        return reader.claimed_samples or sum(map(len, reader.blocks())), reader.sample_rate


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
