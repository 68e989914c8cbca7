"""Files to files: the work of codec-encode and codec-decode on each pair of paths, in bounded memory."""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from codec import container
from codec.audio import AudioError, AudioReader, AudioWriter, Block, resample_blocks
from codec.base import CodecBase, Signal
from codec.cli.backends import load_codec
from codec.cli.jobs import STREAM, Job
from codec.cli.live import PcmPipe, decode_live, encode_live, send_live, stdout
from codec.container import FORMER, Codes, ContainerError, Damage, Header, Reader
from codec.errors import CodecError, UsageError
from codec.files import atomic_write
from codec.level import factor, gain_of
from codec.pretrained import DEFAULT_MODEL, ModelError, shipped_name

log = logging.getLogger(__name__)


class Worker:
    """Does the jobs of a command with the arguments ``args``, one by one; each process has its own worker."""

    is_done: Callable[[Job], bool]  # whether the target, a file, is what the job would write
    convert: Callable[[Job], None]  # does the job; a CodecError or an OSError is what a user can mend

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._models: dict[str, CodecBase[Any]] = {}

    def prepare(self) -> None:
        """Load what all jobs need: the model, if the command names it."""
        if self.args.model is not None:
            self.load(self.args.model)

    def load(self, model: str) -> CodecBase[Any]:
        """A model by its name, loaded once."""
        if model not in self._models:
            num_threads = None if self.args.workers == 1 else 1
            self._models[model] = load_codec(model, self.args.backend, self.args.device, num_threads)
        return self._models[model]

    def with_bar(self, blocks: Iterable[Signal], rate: float, seconds: float) -> Iterator[Signal]:
        """The blocks ``[..., n]`` of a file, ``rate`` values a second; of a long one with a bar, on terminals only."""
        if seconds <= 60 or self.args.workers > 1:
            yield from blocks
            return
        from tqdm import tqdm  # here: short files do not wait for it

        with tqdm(total=round(seconds), unit=" s", leave=False, disable=None) as bar:
            for block in blocks:
                yield block
                bar.update(block.shape[-1] / rate)

    def __call__(self, job: Job) -> bool | Exception:
        """Do a job; return whether there was anything to do, or the error of this job.

        Raises:
            ModelError: a model or device cannot be used, which ends all jobs.
            CodecError: the same for a number of quantizers.
            UsageError: the same for a device that the backend does not have.
        """
        self.prepare()
        try:
            if job.target != STREAM and job.target.exists() and self._keeps_target(job):
                return False
            self.convert(job)
        except (BrokenPipeError, ModelError, UsageError):
            raise  # whoever reads stdout has gone; or no job can be done
        except (CodecError, OSError) as error:
            return error
        return True

    def _keeps_target(self, job: Job) -> bool:
        """Whether the target already is what the job would write and is kept; an OSError if it may not be replaced."""
        compared = self.args.skip_existing and not job.is_stream
        if compared and self.is_done(job):
            return True
        if not self.args.force:
            other = " but is damaged, or was made otherwise (input or settings)" if compared else ""
            leave = "" if compared or job.is_stream else ", --skip-existing leaves it"
            raise FileExistsError(f"{job.target} exists{other}; --force overwrites it{leave}")
        return False


def _quantizer_count(args: argparse.Namespace, num_quantizers: int, bitrate: float) -> int:
    """How many to use of ``num_quantizers``, all ``bitrate`` bit/s together; logs a bitrate that is not --bitrate."""
    if args.num_quantizers is not None:
        if args.num_quantizers > num_quantizers:
            raise CodecError(f"--num-quantizers {args.num_quantizers}: there are only {num_quantizers}")
        return int(args.num_quantizers)
    if args.bitrate is None:
        return num_quantizers
    one = bitrate / num_quantizers
    count = int(min(args.bitrate * 1000 / one + 1e-6, num_quantizers))
    if count < 1:
        raise CodecError(f"--bitrate {args.bitrate:g}: the lowest is {one / 1000:g} kbit/s (one quantizer)")
    if abs(count * one - args.bitrate * 1000) > 1:
        log.info("using %d of %d quantizers, %g kbit/s", count, num_quantizers, count * one / 1000)
    return count


class FileEncoder(Worker):
    """Encodes audio files, or one channel of each, with one model and a number of its quantizers.

    WAV that goes from a pipe to stdout is encoded live, and so are raw samples of one channel, 16 bits each. Files are
    brought to one level, unless --no-normalize is given; the level of a pipe is not known before its end.
    """

    def prepare(self) -> None:
        self.codec = self.load(self.args.model or DEFAULT_MODEL)
        self.num_quantizers = _quantizer_count(self.args, self.codec.num_quantizers, self.codec.bitrate)

    def is_done(self, job: Job) -> bool:
        with self._open(job) as reader, suppress(ContainerError):
            found, _ = container.read(job.target)
            gain_db = self._gain_of(reader)
            num_samples = reader.num_samples or sum(map(len, reader.blocks()))  # counted by gain_of, or here
            return found == self.codec.header(num_samples, reader.sample_rate, self.num_quantizers, gain_db)
        return False

    def convert(self, job: Job) -> None:
        pipe, head = None, b""
        if self.args.raw is not None:
            pipe = PcmPipe(sys.stdin.buffer, self.args.raw, self.args.channel)
        elif _is_piped(job):
            pipe, head = PcmPipe.from_wav(sys.stdin.buffer, self.args.channel)
        if pipe is not None:
            if self.args.refine_steps:
                raise UsageError("--refine-steps is for files; pipes of WAV or raw samples to stdout are encoded live")
            self._tell_of_mixing(pipe.channels)
            encode_live(self.codec, pipe, self.num_quantizers)
            return
        with self._open(job, head) as reader, _output(job, self.args.force) as path:
            self._tell_of_mixing(reader.channels)
            gain_db = self._gain_of(reader)
            blocks = resample_blocks(reader.blocks(), reader.sample_rate, self.codec.sample_rate)
            samples = (block * np.float32(factor(-gain_db)) for block in blocks)
            windows = self.codec.encode_blocks(samples, self.num_quantizers, self.args.refine_steps)
            windows = self.with_bar(windows, self.codec.frame_rate, reader.claimed_samples / reader.sample_rate)
            codes = [self.codec.to_numpy(window).astype(np.uint32) for window in windows]
            header = self.codec.header(reader.num_samples, reader.sample_rate, self.num_quantizers, gain_db)
            path.write_bytes(container.dumps(header, np.concatenate(codes, axis=1)))

    def _tell_of_mixing(self, channels: int) -> None:
        if self.args.channel is None and channels > 1:
            log.info("channels are mixed down to one; --channel takes one of them")

    def _gain_of(self, reader: AudioReader) -> float:
        """The gain in dB of the input, for which it is read once more."""
        return 0.0 if self.args.no_normalize else gain_of(reader.blocks(), reader.sample_rate)

    @contextmanager
    def _open(self, job: Job, head: bytes = b"") -> Iterator[AudioReader]:
        """An audio file; stdin and pipes are copied first, after the ``head`` already read, as formats need seeking."""
        with ExitStack() as opened:
            source: Any = job.source
            if job.is_stream:
                source = opened.enter_context(tempfile.TemporaryFile())
                source.write(head)
                shutil.copyfileobj(opened.enter_context(_open_bytes(job)), source)
            yield opened.enter_context(AudioReader(source, job.source_name, self.args.channel))


class FileDecoder(Worker):
    """Decodes ``.codes`` files with one model, or, without one, each with the shipped model that it names.

    Codes are decoded live from a pipe to stdout if their length is not known before their end, and always if raw samples are
    to be written.
    """

    def is_done(self, job: Job) -> bool:
        with _open_bytes(job) as stream:
            codes = Reader(stream)
            deque(codes.blocks(), 0)  # the length may stand at the end
        rate = codes.header.sample_rate if self.args.native_rate else codes.header.original_sample_rate
        with suppress(AudioError), AudioReader(job.target) as reader:
            length = codes.header.length_at(rate)
            there = sum(map(len, reader.blocks())) if length else reader.claimed_samples
            return (reader.sample_rate, reader.channels, there) == (rate, 1, length)
        return False

    def convert(self, job: Job) -> None:
        with _open_bytes(job) as stream:
            codes = Reader(stream)
            header = codes.header
            codec = self._codec_for(header)
            count = _quantizer_count(self.args, header.num_quantizers, header.bitrate)
            rate = codec.sample_rate if self.args.native_rate else header.original_sample_rate
            live = self.args.raw or (header.num_samples is None and _is_piped(job))

            def decode(blocks: Iterable[Codes]) -> Iterator[Block]:
                kept = (block[:count] for block in blocks)
                audio = decode_live(codec, kept, count) if live else codec.decode_blocks(kept)
                return (codec.to_numpy(block) * np.float32(header.gain) for block in audio)

            signal = _salvage(job.source_name, codes, decode) if self.args.salvage else decode(codes.intact())
            signal = _up_to_end(signal, codes, codec.sample_rate)
            signal = _up_to_end(resample_blocks(signal, codec.sample_rate, rate), codes, rate)
            if live:
                send_live(signal, rate, self.args.raw)
                return
            length, name = header.length_at(rate) or 0, None if job.target == STREAM else str(job.target)
            with _output(job, self.args.force) as path, AudioWriter(path, rate, length, name) as writer:
                for block in self.with_bar(signal, rate, header.duration):
                    writer.write(block)

    def _codec_for(self, header: Header) -> CodecBase[Any]:
        """The model that made a file with this header; one with only the same name is refused."""
        right = FORMER.get(header.fingerprint)
        if self.args.model is None and shipped_name(header.model) is None:
            other = f"made with model {header.model!r}, which is not a shipped one"
            raise ContainerError(f"{other}; give {right or 'it'} with --model")
        codec = self.load(self.args.model or header.model)
        codec.check(header, f"give {right or 'the right one'} with --model, or none if it is shipped")
        return codec


def _up_to_end(blocks: Iterable[Block], codes: Reader, rate: int) -> Iterator[Block]:
    """The blocks up to the end of the original, known before the last frame; decoded frames are whole."""
    done = 0
    for block in blocks:
        length = codes.header.length_at(rate)
        yield block if length is None else block[: max(length - done, 0)]
        done += len(block)


def _salvage(name: str, codes: Reader, decode: Callable[[Iterable[Codes]], Iterator[Block]]) -> Iterator[Block]:
    """Decode each run of intact blocks by itself; a damaged block becomes silence, a missing end is left out.

    Raises:
        ContainerError: no block is intact.
    """
    intact = None
    for damaged, run in itertools.groupby(codes.blocks(), lambda block: isinstance(block, Damage)):
        intact = intact or not damaged
        if not damaged:
            yield from decode(cast(Iterator[Codes], run))
            continue
        for loss in cast(Iterator[Damage], run):
            seconds = loss.num_frames * codes.header.hop_length / codes.header.sample_rate
            if loss.truncated:
                effect = f"the output ends {seconds:.1f} s early" if seconds else "the output ends there"
            else:
                effect = f"{seconds:.1f} s of silence instead" if seconds else "they are left out"
                yield np.zeros(loss.num_frames * codes.header.hop_length, np.float32)
            log.info("%s: %s; %s", name, loss.reason, effect)
    if intact is False:
        raise ContainerError("no block is intact")


def _is_piped(job: Job) -> bool:
    """Whether the job goes from a pipe to stdout; a file at stdin counts as a file."""
    return job.source == job.target == STREAM and not sys.stdin.buffer.seekable()


def _open_bytes(job: Job) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if job.source == STREAM else open(job.source, "rb")


@contextmanager
def _output(job: Job, overwrite: bool) -> Iterator[Path]:
    """The path to write to: a temporary file that becomes the target, or goes to stdout, when it is complete.

    It is made at once, so that a folder that cannot be written to is noticed before the long work.
    """
    if job.target != STREAM:
        with suppress(FileExistsError):  # of a file; opening it says what is wrong
            job.target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(job.target, replace=overwrite) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdout.wav"
        yield path
        with open(path, "rb") as file, stdout() as stream:
            shutil.copyfileobj(file, stream)
