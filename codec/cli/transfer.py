"""Files to files: what codec-encode and codec-decode do with each pair of paths, in bounded memory."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codec import container
from codec.audio import AudioError, AudioReader, AudioWriter, Block, resample_blocks, resampled_length
from codec.cli.jobs import Job
from codec.cli.live import PcmPipe, WavPipe, decode_live, encode_live
from codec.container import Codes, ContainerError, Damage, Header, Reader
from codec.errors import UsageError
from codec.files import written_whole
from codec.model import Codec
from codec.pretrained import ALIAS, DEFAULT_MODEL, shipped_models

log = logging.getLogger(__name__)


@dataclass
class QuantizerChoice:
    """How many quantizers to use: a number, or as many as fit into a bitrate in kbit/s, or all.

    Raises:
        UsageError: a number or a bitrate that cannot be.
    """

    number: int | None
    kbps: float | None
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise UsageError("--num-quantizers must be at least 1")
        if self.kbps is not None and not 0 < self.kbps < math.inf:
            raise UsageError("--bitrate must be positive")

    def count(self, num_quantizers: int, bitrate: float) -> int:
        """How many of ``num_quantizers``, which together take ``bitrate`` bit/s; a bitrate other than asked for is said.

        Raises:
            UsageError: there are fewer quantizers, or one alone needs more than this bitrate.
        """
        if self.number is not None:
            if self.number > num_quantizers:
                raise UsageError(f"--num-quantizers {self.number}: there are only {num_quantizers}")
            return self.number
        if self.kbps is None:
            return num_quantizers
        one = bitrate / num_quantizers
        count = min(int(self.kbps * 1000 / one + 1e-6), num_quantizers)
        if count < 1:
            raise UsageError(f"--bitrate {self.kbps:g}: the lowest is {one / 1000:g} kbit/s (one quantizer)")
        text = f"using {count} of {num_quantizers} quantizers, {count * one / 1000:g} kbit/s"
        if abs(count * one - self.kbps * 1000) > 1 and text not in self.said:
            self.said.add(text)
            log.info(text)
        return count


class FileEncoder:
    """Encodes audio files, or one channel of each, with one model and a number of its quantizers.

    WAV that goes from a pipe to stdout is encoded live; with ``raw_rate``, stdin holds 16-bit samples of one channel at this
    rate in Hz, without a header.

    Raises:
        ModelError: no such model, or no such device here.
        UsageError: the model does not have this bitrate or number of quantizers.
    """

    def __init__(
        self,
        model: str | None,
        device: str,
        choice: QuantizerChoice,
        channel: int | None = None,
        raw_rate: int | None = None,
    ) -> None:
        self.channel, self.raw_rate, self.said_mixed = channel, raw_rate, False
        self.codec = Codec.from_pretrained(model or DEFAULT_MODEL, device)
        self.num_quantizers = choice.count(self.codec.num_quantizers, self.codec.bitrate)

    def is_done(self, job: Job) -> bool:
        """Whether the target is an intact file of this model, with as many quantizers and the input's sample rate."""
        with _open_audio(job, self.channel) as reader, open(job.target, "rb") as stream:
            try:
                codes = Reader(stream)
            except ContainerError:
                return False
            damaged = any(isinstance(block, Damage) for block in codes.blocks())
            expected = self.codec.header(codes.header.num_samples, reader.sample_rate, self.num_quantizers)
            return codes.header == expected and not damaged

    def encode(self, job: Job) -> None:
        """Encode one audio file.

        Raises:
            CodecError: not readable as audio, or not audio that the model takes.
            OSError: files that cannot be opened or written.
        """
        head, pipe = b"", None
        if self.raw_rate is not None:
            pipe = PcmPipe(sys.stdin.buffer, self.raw_rate, 1, "PCM_16", 2, None)
        elif _is_piped(job):
            pipe, head = PcmPipe.from_wav(sys.stdin.buffer)
        if pipe is not None:
            self._say_mixed("stdin", pipe.channels)
            with _named("stdout"):
                encode_live(self.codec, pipe, sys.stdout.buffer, self.num_quantizers, self.channel)
            return
        with _open_audio(job, self.channel, head) as reader:
            # made before the long work, in case something in it is wrong
            header = self.codec.header(0, reader.sample_rate, self.num_quantizers)
            with _output(job) as output, _seconds_bar(reader.claimed_seconds) as bar:
                self._say_mixed(reader.name, reader.channels)
                samples = resample_blocks(reader.blocks(), reader.sample_rate, self.codec.sample_rate)
                codes = []
                for window in self.codec.encode_blocks(map(torch.from_numpy, samples), self.num_quantizers):
                    codes.append(window.cpu().numpy().astype(np.uint32))
                    bar.update(window.shape[-1] / self.codec.frame_rate)
                header = replace(header, num_samples=reader.num_samples)
                output.write_bytes(container.dumps(header, np.concatenate(codes, axis=1)))

    def _say_mixed(self, name: str, channels: int) -> None:
        if self.channel is None and channels > 1 and not self.said_mixed:
            log.info("%s: %d channels mixed down to one", name, channels)
            self.said_mixed = True


class FileDecoder:
    """Decodes ``.codes`` files with one model, or, without one, each with the shipped model that it names.

    Audio has the original's sample rate, or with ``native_rate`` the model's; ``salvage`` is for damaged files. Codes whose
    length is not known before their end are decoded live from a pipe to stdout; with ``raw`` all are, without a header.

    Raises:
        ModelError: no such model, or no such device here.
    """

    def __init__(
        self,
        model: str | None,
        device: str,
        choice: QuantizerChoice,
        native_rate: bool,
        salvage: bool,
        raw: bool = False,
    ) -> None:
        self.model, self.choice, self.native_rate, self.salvage, self.raw = model, choice, native_rate, salvage, raw
        self._load = functools.cache(lambda name: Codec.from_pretrained(name, device))
        if model is not None:
            self._load(model)

    def is_done(self, job: Job) -> bool:
        """Whether the target is audio of one channel, of the sample rate and length that decoding gives."""
        with _open_bytes(job) as stream:
            codes = Reader(stream)
            if codes.header.num_samples is None:
                deque(codes.blocks(), 0)  # the end tells
        rate = codes.header.sample_rate if self.native_rate else codes.header.original_sample_rate
        try:
            with AudioReader(job.target) as reader:
                samples = sum(map(len, reader.blocks()))
                return (reader.sample_rate, reader.channels, samples) == (rate, 1, _length(codes.header, rate))
        except AudioError:
            return False

    def decode(self, job: Job) -> None:
        """Decode one ``.codes`` file.

        Raises:
            CodecError: the file is damaged, or the model, the quantizers or the output's format do not fit it.
            OSError: files that cannot be opened or written.
        """
        with _open_bytes(job) as stream:
            codes = Reader(stream)
            header = codes.header
            codec = self._codec_for(header)
            count = self.choice.count(header.num_quantizers, header.bitrate)
            rate = codec.sample_rate if self.native_rate else header.original_sample_rate
            live = self.raw or (header.num_samples is None and _is_piped(job))
            decode = functools.partial(decode_live, codec, num_quantizers=count) if live else codec.decode_blocks
            with self._writer(job, rate, live, header) as writer, _seconds_bar(header.duration) as bar:
                if self.salvage:
                    waveform = _salvaged(codec, codes.blocks(), count, decode)
                else:
                    waveform = decode(_tensors(codes.intact(), count))
                gain = np.float32(header.gain)
                signal = _cut((block.cpu().numpy() * gain for block in waveform), codes, codec.sample_rate)
                for block in _cut(resample_blocks(signal, codec.sample_rate, rate), codes, rate):
                    writer.write(block)
                    bar.update(len(block) / rate)

    @contextmanager
    def _writer(self, job: Job, rate: int, live: bool, header: Header) -> Iterator[AudioWriter | WavPipe]:
        if live:
            with _named("stdout"):
                yield WavPipe(sys.stdout.buffer, rate, self.raw)
            return
        with _output(job) as output, AudioWriter(output, rate, _length(header, rate) or 0, job.target_name) as writer:
            yield writer

    def _codec_for(self, header: Header) -> Codec:
        """The model that made a file, and not merely one of the same name."""
        if self.model is None and header.model not in (*shipped_models(), ALIAS):
            raise ContainerError(f"made with model {header.model!r}, which is not a shipped one; give it with --model")
        codec = self._load(self.model or header.model)
        own = replace(codec.header(header.num_samples, header.original_sample_rate), gain_db=header.gain_db)
        if own.fingerprint != header.fingerprint:
            raise ContainerError(
                f"made with another model: the file says {header.model!r}, fingerprint {header.fingerprint}; "
                f"this is {codec.name!r}, fingerprint {own.fingerprint}; give the right one with --model"
            )
        if header != replace(own, model=header.model, num_quantizers=min(header.num_quantizers, own.num_quantizers)):
            raise ContainerError("the header contradicts the model that it names")
        return codec


def _tensors(blocks: Iterable[Codes], num_quantizers: int) -> Iterator[Tensor]:
    for block in blocks:
        yield torch.from_numpy(block[:num_quantizers].copy())


def _length(header: Header, rate: int) -> int | None:
    """Samples of the original at this rate, None while they are not known."""
    if header.num_samples is None:
        return None
    return resampled_length(header.num_samples, header.original_sample_rate, rate)


def _cut(blocks: Iterable[Block], codes: Reader, rate: int) -> Iterator[Block]:
    """What lies before the end of the original: decoded frames are whole. It is known before the last frame."""
    done = 0
    for block in blocks:
        length = _length(codes.header, rate)
        yield block if length is None else block[: max(length - done, 0)]
        done += len(block)


def _salvaged(
    codec: Codec,
    blocks: Iterable[Codes | Damage],
    num_quantizers: int,
    decode: Callable[[Iterable[Tensor]], Iterator[Tensor]],
) -> Iterator[Tensor]:
    """Decode each run of intact blocks by itself; the time of a damaged one passes in silence, a missing end is left out.

    Raises:
        ContainerError: no block is intact.
    """
    losses: list[Damage] = []  # said once a block is intact: without one nothing is written, and the error says all
    intact = False
    for damaged, run in itertools.groupby(blocks, lambda block: isinstance(block, Damage)):
        if damaged:
            for loss in run:
                assert isinstance(loss, Damage)
                losses.append(loss)
                if loss.num_frames and not loss.truncated:
                    yield torch.zeros(loss.num_frames * codec.hop_length)
        else:
            intact = True
            yield from decode(_tensors((b for b in run if not isinstance(b, Damage)), num_quantizers))
        while intact and losses:
            loss = losses.pop(0)
            if loss.truncated and not loss.num_frames:
                log.info("%s; the output ends there", loss.reason)
            elif loss.truncated:
                log.info("%s; the output ends %.1f s early", loss.reason, loss.num_frames / codec.frame_rate)
            elif loss.num_frames:
                log.info("%s; %.1f s of silence instead", loss.reason, loss.num_frames / codec.frame_rate)
            else:
                log.info("%s; they are left out", loss.reason)
    if losses:
        raise ContainerError(f"{losses[0].reason}; no block is intact")


def _is_piped(job: Job) -> bool:
    """Whether it goes from a pipe to stdout; a file at stdin is there as a whole, and taken as any other."""
    return job.from_stdin and job.to_stdout and not sys.stdin.buffer.seekable()


def _open_bytes(job: Job) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if job.from_stdin else open(job.source, "rb")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a file that has no name of its own name this one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


@contextmanager
def _open_audio(job: Job, channel: int | None, head: bytes = b"") -> Iterator[AudioReader]:
    """An audio file; stdin or a pipe, its ``head`` already read, is copied first, since audio formats need seeking."""
    if not (job.from_stdin or job.source.is_fifo()):
        with AudioReader(job.source, channel=channel) as reader:
            yield reader
        return
    with tempfile.TemporaryFile() as copy:
        copy.write(head)
        with _open_bytes(job) as pipe:
            shutil.copyfileobj(pipe, copy)
        with AudioReader(copy, job.source_name, channel) as reader:
            yield reader


@contextmanager
def _output(job: Job) -> Iterator[Path]:
    """Where to write: a temporary file that becomes the target, or goes to stdout, once it is whole.

    It is made at once, so that a place that cannot be written to is known before the long work.
    """
    if not job.to_stdout:
        with suppress(FileExistsError):  # a file where the folder should be: the next line says so
            job.target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(job.target, replace=job.overwrite) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdout.wav"
        yield path
        with _named(job.target_name):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _seconds_bar(seconds: float) -> tqdm[NoReturn]:
    """A bar over the seconds of one long file, on terminals only."""
    return tqdm(total=round(seconds), unit=" s", leave=False, disable=None if seconds > 60 else True)
