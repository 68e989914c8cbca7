"""Files to files: what codec-encode and codec-decode do with each pair of paths, in bounded memory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from codec import container
from codec.audio import AudioReader, AudioWriter, Block, cut, resample_blocks, resampled_length
from codec.container import Codes, ContainerError, Damage, Header
from codec.files import written_whole
from codec.model import Codec
from codec.paths import Job
from codec.pretrained import DEFAULT_MODEL, ModelError, shipped_models

Note = Callable[[str], None]


def load_codec(model: str, device: str) -> Codec:
    """A model on a device given by name.

    Raises:
        ModelError: no such model, or no such device here.
    """
    codec = Codec.from_pretrained(model)
    try:
        return codec.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split(".")[0].split())
        raise ModelError(f"--device {device} cannot be used here: {reason}") from None


def quantizers_for(bitrate_of_one: float, most: int, num_quantizers: int | None, kbps: float | None) -> int:
    """How many quantizers to use for a number asked for, or for a bitrate in kbit/s, which is never exceeded.

    Raises:
        ValueError: the model has fewer quantizers, or needs more than this bitrate for one.
    """
    if num_quantizers is not None:
        if num_quantizers > most:
            raise ValueError(f"--num-quantizers {num_quantizers}: there are {most}")
        return num_quantizers
    if kbps is None:
        return most
    count = int(kbps * 1000 / bitrate_of_one + 1e-6)
    if count < 1:
        raise ValueError(f"--bitrate {kbps:g}: the lowest is {bitrate_of_one / 1000:g} kbit/s (one quantizer)")
    return min(count, most)


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
        """Load the model; say which bitrate is used where the one asked for is not one of the model's."""
        codec = load_codec(model or DEFAULT_MODEL, device)
        one = codec.bitrate / codec.num_quantizers
        count = quantizers_for(one, codec.num_quantizers, num_quantizers, kbps)
        if kbps is not None and abs(count * one - kbps * 1000) > 1:
            note(f"using {count} quantizers, {count * one / 1000:g} kbit/s")
        return cls(codec, count)


def encode_file(encoding: Encoding, job: Job, note: Note) -> None:
    """Encode one audio file.

    Raises:
        AudioError: not readable as audio.
        OSError: files that cannot be opened or written.
    """
    codec = encoding.codec
    with ExitStack() as stack:
        reader = stack.enter_context(_open_audio(job))
        if reader.channels > 1 and not encoding.said_mixed:
            note(f"{reader.name}: {reader.channels} channels mixed down to one")
            encoding.said_mixed = True
        samples = resample_blocks(reader.blocks(), reader.sample_rate, codec.sample_rate)
        windows = codec.encode_blocks((torch.from_numpy(block) for block in samples), encoding.num_quantizers)
        bar = _seconds_bar(stack, reader.claimed_seconds)
        codes = []
        for window in windows:
            codes.append(window.cpu().numpy().astype(np.uint32))
            bar(window.shape[-1] / codec.frame_rate)
        header = Header(
            model=codec.name,
            fingerprint=codec.fingerprint[: 2 * container.FINGERPRINT_BYTES],
            sample_rate=codec.sample_rate,
            original_sample_rate=reader.sample_rate,
            num_samples=reader.num_samples,
            hop_length=codec.hop_length,
            num_quantizers=encoding.num_quantizers,
            codebook_size=codec.codebook_size,
        )
    data = container.dumps(header, np.concatenate(codes, axis=1))
    if job.to_stdout:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with written_whole(job.target) as temporary:
            temporary.write_bytes(data)


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

    def codec_for(self, header: Header) -> Codec:
        """The model that made this file: the one asked for, else the shipped one of that name.

        Raises:
            ContainerError: that model did not make it.
            ModelError: the model cannot be loaded.
        """
        name = self.model or header.model
        if self.model is None and header.model not in shipped_models():
            raise ModelError(f"made with model {header.model!r}, which is not a shipped one; give it with --model")
        if name not in self.loaded:
            self.loaded[name] = load_codec(name, self.device)
        codec = self.loaded[name]
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
            f"this is {codec.name!r}, fingerprint {own}"
        )
    told = (header.sample_rate, header.hop_length, header.codebook_size)
    if told != (codec.sample_rate, codec.hop_length, codec.codebook_size) or header.num_quantizers > codec.num_quantizers:
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
        rate = codec.sample_rate if decoding.native_rate else header.original_sample_rate
        wanted = resampled_length(header.num_samples, header.original_sample_rate, rate)
        target = stack.enter_context(_output(job))
        writer = stack.enter_context(AudioWriter(target, rate, str(job.target)))
        bar = _seconds_bar(stack, header.duration)
        for block in cut(resample_blocks(_waveform(codec, header, stream, stages, decoding, note), codec.sample_rate, rate), wanted):
            writer.write(block)
            bar(len(block) / rate)


def _waveform(codec: Codec, header: Header, stream: IO[bytes], stages: int, decoding: Decoding, note: Note) -> Iterator[Block]:
    """The decoded signal at the model's rate, cut to its length; silence for damaged blocks if they are salvaged."""
    if decoding.salvage:
        blocks = _salvaged(codec, container.read_blocks(stream, header), stages, note)
    else:
        blocks = codec.decode_blocks(_tensors(container.intact_blocks(stream, header), stages))
    left = resampled_length(header.num_samples, header.original_sample_rate, codec.sample_rate)
    for block in blocks:
        yield block[:left].cpu().numpy()
        left -= min(left, len(block))


def _tensors(blocks: Iterator[Codes], stages: int) -> Iterator[Tensor]:
    for block in blocks:
        yield torch.from_numpy(block[:stages].copy())


def _salvaged(codec: Codec, blocks: Iterator[Codes | Damage], stages: int, note: Note) -> Iterator[Tensor]:
    """Decode each run of intact blocks by itself; the time of a damaged one passes in silence."""
    damage: list[Damage] = []

    def intact() -> Iterator[Codes]:
        for block in blocks:
            if isinstance(block, Damage):
                damage.append(block)
                return
            yield block

    while True:
        damage.clear()
        yield from codec.decode_blocks(_tensors(intact(), stages))
        if not damage:
            return
        lost = damage[0].num_frames * codec.hop_length
        note(f"{damage[0].reason}; {lost / codec.sample_rate:.1f} s of silence instead")
        if lost:
            yield torch.zeros(lost)


@contextmanager
def _open_audio(job: Job) -> Iterator[AudioReader]:
    """An audio file, or stdin kept in a temporary file since audio formats need seeking."""
    with ExitStack() as stack:
        if job.from_stdin:
            held = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(sys.stdin.buffer, held)
            held.seek(0)
            yield stack.enter_context(AudioReader(held, "stdin"))
        else:
            yield stack.enter_context(AudioReader(job.source))


@contextmanager
def _output(job: Job) -> Iterator[Path]:
    """Where to write the audio: a temporary file that becomes the target, or goes to stdout, once it is whole."""
    if not job.to_stdout:
        with written_whole(job.target) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdout.wav"
        yield path
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _seconds_bar(stack: ExitStack, seconds: float) -> Callable[[float], object]:
    """A bar over the seconds of one long file, on terminals only."""
    from tqdm import tqdm

    bar = stack.enter_context(tqdm(total=round(seconds), unit=" s", leave=False, disable=None if seconds > 60 else True))
    return lambda done: bar.update(done)


__all__ = ["Decoding", "Encoding", "check_model", "decode_file", "encode_file"]
