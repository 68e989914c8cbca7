"""Files to files: what codec-encode and codec-decode do with each pair of paths, in bounded memory."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from tqdm import tqdm

from codec import container
from codec.audio import AudioError, AudioReader, AudioWriter, Block, cut, resample_blocks, resampled_length
from codec.base import CodecBase
from codec.cli.backends import Load
from codec.cli.jobs import Job
from codec.container import Codes, ContainerError, Damage, Header
from codec.errors import UsageError
from codec.files import atomic_write
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
        if abs(count * one - self.kbps * 1000) > 1:
            log.info(text, extra={"once": text})
        return count


class FileEncoder:
    """Encodes audio files, or one channel of each, with one model and a number of its quantizers.

    Raises:
        ModelError: no such model, or no such device here.
        UsageError: the model does not have this bitrate or number of quantizers.
    """

    def __init__(self, load: Load, model: str | None, choice: QuantizerChoice, channel: int | None = None) -> None:
        self.channel = channel
        self.codec = load(model or DEFAULT_MODEL)
        self.num_quantizers = choice.count(self.codec.num_quantizers, self.codec.bitrate)

    def is_done(self, job: Job) -> bool:
        """Whether the target is an intact file of this model, with as many quantizers and the input's sample rate."""
        with _open_audio(job, self.channel) as reader, open(job.target, "rb") as stream:
            try:
                header = container.read_header(stream)
            except ContainerError:
                return False
            expected = self.codec.header(header.num_samples, reader.sample_rate, self.num_quantizers)
            blocks = container.read_blocks(stream, header)
            return header == expected and not any(isinstance(block, Damage) for block in blocks)

    def __call__(self, job: Job) -> None:
        """Encode one audio file.

        Raises:
            CodecError: not readable as audio, or not audio that the model takes.
            OSError: files that cannot be opened or written.
        """
        with _open_audio(job, self.channel) as reader:
            # made before the long work, in case something in it is wrong
            header = self.codec.header(0, reader.sample_rate, self.num_quantizers)
            with _output(job) as output, _seconds_bar(reader.claimed_seconds) as bar:
                if self.channel is None and reader.channels > 1:
                    said = {"once": "mixed"}
                    log.info("%s: %d channels mixed down to one", reader.name, reader.channels, extra=said)
                samples = resample_blocks(reader.blocks(), reader.sample_rate, self.codec.sample_rate)
                codes = []
                for window in self.codec.encode_blocks(samples, self.num_quantizers):
                    codes.append(self.codec.to_numpy(window).astype(np.uint32))
                    bar.update(window.shape[-1] / self.codec.frame_rate)
                header = replace(header, num_samples=reader.num_samples)
                output.write_bytes(container.dumps(header, np.concatenate(codes, axis=1)))


class FileDecoder:
    """Decodes ``.codes`` files with one model, or, without one, each with the shipped model that it names.

    Audio has the original's sample rate, or with ``native_rate`` the model's; ``salvage`` is for damaged files.

    Raises:
        ModelError: no such model, or no such device here.
    """

    def __init__(
        self, load: Load, model: str | None, choice: QuantizerChoice, native_rate: bool, salvage: bool
    ) -> None:
        self.model, self.choice, self.native_rate, self.salvage = model, choice, native_rate, salvage
        self._load = functools.cache(load)
        if model is not None:
            self._load(model)

    def is_done(self, job: Job) -> bool:
        """Whether the target is audio of one channel, of the sample rate and length that decoding gives."""
        with _open_bytes(job) as stream:
            header = container.read_header(stream)
        rate = header.sample_rate if self.native_rate else header.original_sample_rate
        length = resampled_length(header.num_samples, header.original_sample_rate, rate)
        try:
            with AudioReader(job.target) as reader:
                return (reader.sample_rate, reader.channels, sum(map(len, reader.blocks()))) == (rate, 1, length)
        except AudioError:
            return False

    def __call__(self, job: Job) -> None:
        """Decode one ``.codes`` file.

        Raises:
            CodecError: the file is damaged, or the model, the quantizers or the output's format do not fit it.
            OSError: files that cannot be opened or written.
        """
        with _open_bytes(job) as stream:
            header = container.read_header(stream)
            codec = self._codec_for(header)
            count = self.choice.count(header.num_quantizers, header.bitrate)
            rate = codec.sample_rate if self.native_rate else header.original_sample_rate
            decoded_length = resampled_length(header.num_samples, header.original_sample_rate, codec.sample_rate)
            length = resampled_length(header.num_samples, header.original_sample_rate, rate)
            with (
                _output(job) as output,
                AudioWriter(output, rate, length, job.target_name) as writer,
                _seconds_bar(header.duration) as bar,
            ):
                if self.salvage:
                    waveform = _salvaged(codec, container.read_blocks(stream, header), count)
                else:
                    blocks = (block[:count] for block in container.intact_blocks(stream, header))
                    waveform = map(codec.to_numpy, codec.decode_blocks(blocks))
                signal = cut(waveform, decoded_length)
                for block in cut(resample_blocks(signal, codec.sample_rate, rate), length):
                    writer.write(block)
                    bar.update(len(block) / rate)

    def _codec_for(self, header: Header) -> CodecBase[Any]:
        """The model that made a file, and not merely one of the same name."""
        if self.model is None and header.model not in (*shipped_models(), ALIAS):
            raise ContainerError(f"made with model {header.model!r}, which is not a shipped one; give it with --model")
        codec = self._load(self.model or header.model)
        own = codec.header(header.num_samples, header.original_sample_rate)
        if own.fingerprint != header.fingerprint:
            raise ContainerError(
                f"made with another model: the file says {header.model!r}, fingerprint {header.fingerprint}; "
                f"this is {codec.name!r}, fingerprint {own.fingerprint}; give the right one with --model"
            )
        if header != replace(own, model=header.model, num_quantizers=min(header.num_quantizers, own.num_quantizers)):
            raise ContainerError("the header contradicts the model that it names")
        return codec


def _salvaged(codec: CodecBase[Any], blocks: Iterable[Codes | Damage], num_quantizers: int) -> Iterator[Block]:
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
                    yield np.zeros(loss.num_frames * codec.hop_length, np.float32)
        else:
            intact = True
            codes = (block[:num_quantizers] for block in run if not isinstance(block, Damage))
            yield from map(codec.to_numpy, codec.decode_blocks(codes))
        while intact and losses:
            loss = losses.pop(0)
            if loss.truncated:
                log.info("%s; the output ends %.1f s early", loss.reason, loss.num_frames / codec.frame_rate)
            elif loss.num_frames:
                log.info("%s; %.1f s of silence instead", loss.reason, loss.num_frames / codec.frame_rate)
            else:
                log.info("%s; they are left out", loss.reason)
    if losses:
        raise ContainerError(f"{losses[0].reason}; no block is intact")


def _open_bytes(job: Job) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if job.from_stdin else open(job.source, "rb")


@contextmanager
def _open_audio(job: Job, channel: int | None) -> Iterator[AudioReader]:
    """An audio file; stdin or a pipe is first copied to a temporary file, since audio formats need seeking."""
    if not (job.from_stdin or job.source.is_fifo()):
        with AudioReader(job.source, channel=channel) as reader:
            yield reader
        return
    with tempfile.TemporaryFile() as copy:
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
        with atomic_write(job.target, replace=job.overwrite) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdout.wav"
        yield path
        try:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, job.target_name) from None


def _seconds_bar(seconds: float) -> tqdm[NoReturn]:
    """A bar over the seconds of one long file, on terminals only."""
    return tqdm(
        total=round(seconds),
        unit=" s",
        leave=False,
        disable=None if seconds > 60 and parent_process() is None else True,
    )
