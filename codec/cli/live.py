"""From pipe to pipe while the input still goes on: samples in and codes out, codes in and samples out."""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
import soundfile

from codec.audio import AudioError, Block, resample_blocks, to_pcm
from codec.audio_parts import MOST_BEHIND, UNKNOWN_SIZES, incomplete
from codec.base import CodecBase
from codec.container import Codes, Writer
from codec.errors import at_interrupt, drop_output

# shortest piece to encode: a block of 8 frames of 13.3 ms, whose 7 bytes of framing are 0.5 kbit/s
CHUNK_SECONDS = 0.1
READ_BYTES = 2**16  # the most to read at once
RAW = {"format": "RAW", "endian": "LITTLE"}
# bytes of a sample, by libsndfile's names for how it is coded
WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
log = logging.getLogger(__name__)


@dataclass
class PcmPipe:
    """Samples from a pipe, as they come."""

    stream: BinaryIO  # at the first sample, little-endian, channels interleaved
    sample_rate: int
    channel: int | None  # the one to read, counted from 1; by default the mean of all
    channels: int = 1
    subtype: str = "PCM_16"  # one of ``WIDTHS``
    claimed: float = math.inf  # samples per channel, if their number is known
    num_samples: int = 0  # read so far
    stopped: bool = False  # by a signal

    @classmethod
    def from_wav(cls, stream: BinaryIO, channel: int | None) -> tuple[PcmPipe | None, bytes]:
        """The samples of a WAV file, or None if it must be read as a whole; and the bytes of its head, which were read."""
        head = stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None, head
        frame_bytes = 0  # of a sample of all channels: 24 bits may lie in 3 bytes or in 4
        while len(head) < READ_BYTES:
            chunk = stream.read(8)
            head, size = head + chunk, int.from_bytes(chunk[4:], "little")
            if len(chunk) < 8 or chunk[:4] == b"data":
                break
            data = stream.read(min(size + size % 2, READ_BYTES))
            head += data
            if chunk[:4] == b"fmt ":
                frame_bytes = int.from_bytes(data[12:14], "little")
        with suppress(soundfile.LibsndfileError):  # of a head that libsndfile does not understand
            about = soundfile.info(io.BytesIO(head))
            width = about.channels * WIDTHS.get(about.subtype, 0)
            if chunk[:4] == b"data" and width and width == frame_bytes:
                unknown = size == 0 or any(size in sizes for sizes in UNKNOWN_SIZES)
                claimed = math.inf if unknown else size // width
                return cls(stream, about.samplerate, channel, about.channels, about.subtype, claimed), head
        return None, head

    def blocks(self) -> Iterator[Block]:
        """Mono blocks ``[T]`` as they come, each but the last of ``CHUNK_SECONDS`` at least.

        Raises:
            AudioError: the pipe ends before its header says, or brings no samples; no such channel.
        """
        if not 1 <= (self.channel or 1) <= self.channels:
            raise AudioError(f"stdin has no channel {self.channel}, only {self.channels}")
        kind = {"samplerate": self.sample_rate, "channels": self.channels, "subtype": self.subtype, **RAW}
        width = self.channels * WIDTHS[self.subtype]  # bytes of a sample of all channels
        least = math.ceil(CHUNK_SECONDS * self.sample_rate)
        data, left, ended = b"", self.claimed * width, False
        while not ended:
            more = self.stream.read1(int(min(READ_BYTES, left)))  # type: ignore[attr-defined]
            data, left = data + more, left - len(more)
            ended, whole = not more or not left, len(data) // width
            if whole >= (1 if ended else least):
                self.num_samples += whole
                raw, data = io.BytesIO(data[: whole * width]), data[whole * width :]
                samples, _ = soundfile.read(raw, dtype="float32", always_2d=True, **kind)
                yield samples[:, self.channel - 1] if self.channel else samples.mean(axis=1, dtype=np.float32)
        if self.num_samples < self.claimed < math.inf and not self.stopped:
            raise incomplete("stdin", self.num_samples, self.claimed, "samples")
        if not self.num_samples and not self.stopped:
            raise AudioError("stdin holds no samples")

    def read_on(self) -> None:
        """Read what follows the samples, so that its writer can end; warn if it is more than a few tags."""
        stray = 0
        while self.claimed < math.inf and (data := self.stream.read1(READ_BYTES)):  # type: ignore[attr-defined]
            stray += len(data)
        if stray > MOST_BEHIND:
            seconds = self.num_samples / self.sample_rate
            log.warning("stdin: %d bytes that follow its samples are left out; %.1f s are read", stray, seconds)

    def stop(self) -> None:
        """End the input, whatever waits for it."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), self.stream.fileno())
        self.stopped = True


@contextmanager
def stdout() -> Iterator[IO[bytes]]:
    """Stdout for bytes; its errors name it."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BaseException as error:
        drop_output()  # what it still holds might block, or fail again
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("the end of what went to stdout is missing") from None
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, "stdout") from None
        raise


def encode_live(codec: CodecBase[Any], pipe: PcmPipe, num_quantizers: int) -> None:
    """Send the codes of all samples of the pipe, block by block as soon as possible.

    Ctrl-C, SIGTERM and a closed terminal end the input: what has come is encoded before KeyboardInterrupt is raised. A second
    signal ends the output too, in case nobody reads it.
    """
    header = codec.header(None, pipe.sample_rate, num_quantizers)
    with stdout() as output, at_interrupt(pipe.stop):
        writer, stream = Writer(output, header), codec.streaming_encoder(1, num_quantizers)
        for block in resample_blocks(pipe.blocks(), pipe.sample_rate, codec.sample_rate):
            writer.write(codec.to_numpy(stream.push(block[None, None])[0]))
        writer.end(pipe.num_samples, codec.to_numpy(stream.flush()[0]))
        pipe.read_on()
    if pipe.stopped:
        raise KeyboardInterrupt("what came until then is encoded")


def decode_live(codec: CodecBase[Any], blocks: Iterable[Codes], num_quantizers: int) -> Iterator[Any]:
    """Waveform ``[t]`` of codes ``[K, n]``, block by block as soon as possible."""
    stream = codec.streaming_decoder(1, num_quantizers)
    for block in blocks:
        yield stream.push(block[None])[0, 0]
    yield stream.flush()[0, 0]


def send_live(samples: Iterable[Block], sample_rate: int, raw: bool) -> None:
    """Send mono samples to stdout as 16-bit WAV of unknown length, or raw, each block at once; clipped at full scale."""
    with stdout() as output:
        coding = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
        head = b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + coding + b"data" + b"\xff" * 4
        for data in itertools.chain([] if raw else [head], (to_pcm(block).tobytes() for block in samples)):
            output.write(data)
            output.flush()
