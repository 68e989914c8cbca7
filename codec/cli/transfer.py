"""Files to files: what codec-encode and codec-decode do with each pair of paths, in bounded memory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from codec import container
from codec.audio import (
    LARGEST_PEAK,
    AudioError,
    AudioReader,
    AudioWriter,
    Block,
    cut,
    resample_blocks,
    resampled_length,
)
from codec.cli.jobs import Job
from codec.container import Codes, ContainerError, Damage, Header
from codec.errors import UsageError
from codec.files import written_whole
from codec.model import Codec
from codec.pretrained import ALIAS, DEFAULT_MODEL, ModelError, shipped_models

Note = Callable[[str], None]


def quantizers_for(bitrate_of_one: float, most: int, num_quantizers: int | None, kbps: float | None) -> int:
    """How many quantizers to use for a number asked for, or for a bitrate in kbit/s, which is never exceeded.

    Raises:
        UsageError: there are fewer quantizers, or one alone needs more than this bitrate.
    """
    if num_quantizers is not None:
        if num_quantizers > most:
            raise UsageError(f"--num-quantizers {num_quantizers}: there are only {most}")
        return num_quantizers
    if kbps is None:
        return most
    count = int(kbps * 1000 / bitrate_of_one + 1e-6)
    if count < 1:
        raise UsageError(f"--bitrate {kbps:g}: the lowest is {bitrate_of_one / 1000:g} kbit/s (one quantizer)")
    return min(count, most)


def _say_bitrate(count: int, most: int, bitrate_of_one: float, kbps: float, said: set[str], note: Note) -> None:
    """Note, once, the bitrate that is used where the one asked for cannot be met exactly."""
    text = f"using {count} of {most} quantizers, {count * bitrate_of_one / 1000:g} kbit/s"
    if abs(count * bitrate_of_one - kbps * 1000) > 1 and text not in said:
        said.add(text)
        note(text)


@dataclass
class Encoding:
    """A loaded model and how many of its quantizers to use."""

    codec: Codec
    num_quantizers: int
    said_mixed: bool = False

    @classmethod
    def load(
        cls, model: str | None, device: str, num_quantizers: int | None, kbps: float | None, note: Note
    ) -> Encoding:
        """Load the model; say which bitrate is used where the one asked for is not one of the model's.

        Raises:
            ModelError: no such model, or no such device here.
            UsageError: the model does not have this bitrate or number of quantizers.
        """
        codec = Codec.from_pretrained(model or DEFAULT_MODEL, device)
        one = codec.bitrate / codec.num_quantizers
        count = quantizers_for(one, codec.num_quantizers, num_quantizers, kbps)
        if kbps is not None:
            _say_bitrate(count, codec.num_quantizers, one, kbps, set(), note)
        return cls(codec, count)


def encode_file(encoding: Encoding, job: Job, note: Note) -> None:
    """Encode one audio file.

    Raises:
        AudioError: not readable as audio.
        ContainerError: a sample rate that is no sample rate of audio.
        OSError: files that cannot be opened or written.
    """
    codec = encoding.codec
    with ExitStack() as stack:
        reader = stack.enter_context(_open_audio(job))
        # before the long work, in case that something in it is wrong
        header = codec.header(0, reader.sample_rate, encoding.num_quantizers)
        output = stack.enter_context(_output(job))
        if reader.channels > 1 and not encoding.said_mixed:
            note(f"{reader.name}: {reader.channels} channels mixed down to one")
            encoding.said_mixed = True
        blocks = _watched(reader.blocks(), reader.name)
        samples = resample_blocks(blocks, reader.sample_rate, codec.sample_rate)
        windows = codec.encode_blocks((torch.from_numpy(block) for block in samples), encoding.num_quantizers)
        bar = _seconds_bar(stack, reader.claimed_seconds)
        codes = []
        for window in windows:
            codes.append(window.cpu().numpy().astype(np.uint32))
            bar(window.shape[-1] / codec.frame_rate)
        header = replace(header, num_samples=reader.num_samples)
        output.write_bytes(container.dumps(header, np.concatenate(codes, axis=1)))


def _watched(blocks: Iterator[Block], name: str) -> Iterator[Block]:
    """The blocks, none so far beyond full scale that something else must be meant.

    Raises:
        AudioError: one is.
    """
    for block in blocks:
        if (peak := float(np.abs(block).max(initial=0))) > LARGEST_PEAK:
            raise AudioError(f"{name}: samples reach {peak:g} where full scale is 1; divide 16-bit values by 32768")
        yield block


@dataclass
class Decoding:
    """How to decode; models are loaded as files name them, and kept."""

    model: str | None
    device: str
    num_quantizers: int | None
    kbps: float | None
    native_rate: bool
    salvage: bool
    loaded: dict[str, Codec] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def load(self, name: str) -> Codec:
        """The model of this name.

        Raises:
            ModelError: it cannot be loaded, or not on this device.
        """
        if name not in self.loaded:
            self.loaded[name] = Codec.from_pretrained(name, self.device)
        return self.loaded[name]

    def codec_for(self, header: Header) -> Codec:
        """The model that made this file: the one asked for, else the shipped one of that name.

        Raises:
            ContainerError: that model did not make it.
            ModelError: the model cannot be loaded.
        """
        if self.model is None and header.model not in (*shipped_models(), ALIAS):
            raise ModelError(f"made with model {header.model!r}, which is not a shipped one; give it with --model")
        codec = self.load(self.model or header.model)
        check_model(codec, header)
        return codec


def check_model(codec: Codec, header: Header) -> None:
    """Refuse codes of another model.

    Raises:
        ContainerError: naming both fingerprints, or a header that contradicts its own model.
    """
    own = codec.fingerprint[: 2 * container.FINGERPRINT_BYTES]
    if own != header.fingerprint:
        raise ContainerError(
            f"made with another model: the file says {header.model!r}, fingerprint {header.fingerprint}; "
            f"this is {codec.name!r}, fingerprint {own}; give the right one with --model"
        )
    told = (header.sample_rate, header.hop_length, header.codebook_size)
    if (
        told != (codec.sample_rate, codec.hop_length, codec.codebook_size)
        or header.num_quantizers > codec.num_quantizers
    ):
        raise ContainerError("the header contradicts the model that it names")


def decode_file(decoding: Decoding, job: Job, note: Note) -> None:
    """Decode one ``.codes`` file.

    Raises:
        ContainerError: not a .codes file, of another model, or damaged.
        AudioError: the output format does not take the sample rate.
        OSError: files that cannot be opened or written.
    """
    with ExitStack() as stack:
        stream: IO[bytes] = sys.stdin.buffer if job.from_stdin else stack.enter_context(open(job.source, "rb"))
        header = container.read_header(stream)
        codec = decoding.codec_for(header)
        one = header.bitrate / header.num_quantizers
        stages = quantizers_for(one, header.num_quantizers, decoding.num_quantizers, decoding.kbps)
        if decoding.kbps is not None:
            _say_bitrate(stages, header.num_quantizers, one, decoding.kbps, decoding.said, note)
        rate = codec.sample_rate if decoding.native_rate else header.original_sample_rate
        wanted = resampled_length(header.num_samples, header.original_sample_rate, rate)
        output = stack.enter_context(_output(job))
        if decoding.salvage:
            waveform = _salvaged(codec, container.read_blocks(stream, header), stages, note)
        else:
            waveform = codec.decode_blocks(_tensors(container.intact_blocks(stream, header), stages))
        length = resampled_length(header.num_samples, header.original_sample_rate, codec.sample_rate)
        signal = cut((block.cpu().numpy() for block in waveform), length)
        writer = stack.enter_context(AudioWriter(output, rate, wanted, job.target_name))
        bar = _seconds_bar(stack, header.duration)
        for block in cut(resample_blocks(signal, codec.sample_rate, rate), wanted):
            writer.write(block)
            bar(len(block) / rate)


def _tensors(blocks: Iterator[Codes], stages: int) -> Iterator[Tensor]:
    for block in blocks:
        yield torch.from_numpy(block[:stages].copy())


def _salvaged(codec: Codec, blocks: Iterator[Codes | Damage], stages: int, note: Note) -> Iterator[Tensor]:
    """Decode each run of intact blocks by itself; the time of a damaged one passes in silence, a missing end is left out.

    Raises:
        ContainerError: no block is intact.
    """
    damage: list[Damage] = []
    held: list[str] = []  # notes wait for an intact block: without one nothing is written, and the error says all
    found = 0

    def run() -> Iterator[Codes]:
        nonlocal found
        for block in blocks:
            if isinstance(block, Damage):
                damage.append(block)
                return
            found += 1
            yield block

    def say() -> None:
        while found and held:
            note(held.pop(0))

    while True:
        before = len(damage)
        yield from codec.decode_blocks(_tensors(run(), stages))
        if len(damage) == before:
            break
        last = damage[-1]
        seconds = last.num_frames / codec.frame_rate
        if last.truncated:
            held.append(f"{last.reason}; the output ends {seconds:.1f} s early")
        elif last.num_frames:
            held.append(f"{last.reason}; {seconds:.1f} s of silence instead")
        else:
            held.append(f"{last.reason}; they are left out")
        say()
        if last.num_frames and not last.truncated:
            yield torch.zeros(last.num_frames * codec.hop_length)
    say()
    if damage and not found:
        raise ContainerError(f"{damage[0].reason}; no block is intact")


@contextmanager
def _open_audio(job: Job) -> Iterator[AudioReader]:
    """An audio file; stdin or a pipe is first copied to a temporary file, since audio formats need seeking."""
    with ExitStack() as stack:
        if job.from_stdin or job.source.is_fifo():
            pipe = sys.stdin.buffer if job.from_stdin else stack.enter_context(open(job.source, "rb"))
            held = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "audio"
            with open(held, "wb") as file:
                shutil.copyfileobj(pipe, file)
            yield stack.enter_context(AudioReader(held, job.source_name))
        else:
            yield stack.enter_context(AudioReader(job.source))


@contextmanager
def _output(job: Job) -> Iterator[Path]:
    """Where to write: a temporary file that becomes the target, or goes to stdout, once it is whole.

    It is made at once, so that a place that cannot be written to is known before the long work.
    """
    if not job.to_stdout:
        with suppress(FileExistsError):  # a file where the folder should be: the next line says so
            job.target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(job.target) as temporary:
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


def _seconds_bar(stack: ExitStack, seconds: float) -> Callable[[float], object]:
    """A bar over the seconds of one long file, on terminals only."""
    from tqdm import tqdm

    bar = stack.enter_context(
        tqdm(total=round(seconds), unit=" s", leave=False, disable=None if seconds > 60 else True)
    )
    return lambda done: bar.update(done)


__all__ = ["Decoding", "Encoding", "check_model", "decode_file", "encode_file"]
