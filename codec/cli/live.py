"""From pipe to pipe while the input still goes on: samples in and codes out, codes in and samples out."""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import signal
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
import soundfile

from codec.audio import AudioError, Block, to_pcm
from codec.audio_parts import HEAD_BYTES, UNKNOWN_SIZES, incomplete
from codec.base import CodecBase
from codec.container import Codes, Header, Writer
from codec.errors import GRACE_SECONDS, STOPPING, CodecError, drop_output

# shortest piece to encode: a block of 8 frames of 13.3 ms, whose 7 bytes of framing are 0.5 kbit/s
CHUNK_SECONDS = 0.1
READ_BYTES = 2**16  # the most to read at once
RAW = {"format": "RAW", "endian": "LITTLE"}
# bytes of a sample, by libsndfile's names for how it is coded
WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
log = logging.getLogger(__name__)


@dataclass
class PcmPipe(AbstractContextManager["PcmPipe"]):
    """Samples from a pipe, as they come; it has what is used here of ``AudioReader``.

    In its context ctrl-C, SIGTERM and a closed terminal end the input: what has come is encoded, and KeyboardInterrupt is
    raised at the end. A second signal, after ``GRACE_SECONDS``, ends the output too, in case nobody reads it.
    """

    stream: BinaryIO  # at the first sample, little-endian, channels interleaved
    sample_rate: int
    channel: int | None  # the one to read, counted from 1; by default the mean of all
    channels: int = 1
    subtype: str = "PCM_16"  # one of ``WIDTHS``
    claimed: float = math.inf  # samples per channel, if their number is known
    trailing_bytes: int = 0  # bytes that the header announces after the samples
    num_samples: int = 0  # read so far
    stopped: float = 0.0  # time (``time.monotonic``) of the signal that ended the input; 0: there was none
    outcome: str = "what came until then is encoded"
    name = "stdin"

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
                trailing = max(8 + int.from_bytes(head[4:8], "little") - len(head) - size, 0) + size % width
                return cls(stream, about.samplerate, channel, about.channels, about.subtype, claimed, trailing), head
        return None, head

    def blocks(self) -> Iterator[Block]:
        """Mono blocks ``[T]`` as they come, each but the last of ``CHUNK_SECONDS`` at least.

        Raises:
            AudioError: the pipe ends before its header says, or brings no samples; no such channel.
        """
        if not 1 <= (self.channel or 1) <= self.channels:
            raise AudioError(f"{self.name} has no channel {self.channel}, only {self.channels}")
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
            raise incomplete(self.name, self.num_samples, self.claimed, "samples")
        if not self.num_samples and not self.stopped:
            raise AudioError(f"{self.name} holds no samples")
        if data and not self.stopped:
            log.warning("%s ends within a sample, whose first %d of %d bytes are left out", self.name, len(data), width)

    def read_on(self) -> None:
        """Read what follows the samples, so that its writer can end; warn of what the header did not announce."""
        stray = -self.trailing_bytes
        while self.claimed < math.inf and (data := self.stream.read1(READ_BYTES)):  # type: ignore[attr-defined]
            stray += len(data)
        if stray > HEAD_BYTES:
            text = "%s: %d bytes that its header does not announce follow and are left out; %.1f s are read"
            log.warning(text, self.name, stray, self.num_samples / self.sample_rate)

    def __enter__(self) -> PcmPipe:
        signals = [each for each in STOPPING if signal.getsignal(each) != signal.SIG_IGN]
        self._handlers = {each: signal.signal(each, self._stop) for each in signals}
        return self

    def _stop(self, *_: object) -> None:
        late = self.stopped and time.monotonic() - self.stopped > GRACE_SECONDS
        blocked = sys.stdout if late else self.stream
        self.outcome = "nobody took the codes, whose end is missing" if late else self.outcome
        os.dup2(os.open(os.devnull, os.O_RDWR), blocked.fileno())  # so that whatever waits for it goes on
        self.stopped = self.stopped or time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.stopped and kind is None:
            raise KeyboardInterrupt(self.outcome)


@contextmanager
def stdout() -> Iterator[IO[bytes]]:
    """Stdout for bytes; its errors name it."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        drop_output()
        raise OSError(error.errno, error.strerror, "stdout") from None


def encode_live(codec: CodecBase[Any], pipe: PcmPipe, samples: Iterable[Block], header: Header) -> None:
    """Send the codes of all ``samples`` of the pipe, which are at the model's rate, block by block as soon as possible."""
    with stdout() as output:
        writer, stream = Writer(output, header), codec.streaming_encoder(1, header.num_quantizers)
        for block in samples:
            writer.write(codec.to_numpy(stream.push(block[None, None])[0]))
        writer.end(pipe.num_samples, codec.to_numpy(stream.flush()[0]))
    pipe.read_on()


def decode_live(codec: CodecBase[Any], blocks: Iterable[Codes], num_quantizers: int) -> Iterator[Any]:
    """Waveform ``[t]`` of codes ``[K, n]``, block by block as soon as possible."""
    stream = codec.streaming_decoder(1, num_quantizers)
    for block in blocks:
        yield stream.push(block[None])[0, 0]
    yield stream.flush()[0, 0]


def until_error(blocks: Iterable[Codes], errors: list[CodecError]) -> Iterator[Codes]:
    """The blocks before an error, which is put into ``errors``, so that the sound of these blocks is still sent."""
    try:
        yield from blocks
    except CodecError as error:
        errors.append(error)


def send_live(samples: Iterable[Block], sample_rate: int, raw: bool) -> None:
    """Send mono samples to stdout as 16-bit WAV of unknown length, or raw, each block at once; clipped at full scale."""
    with stdout() as output:
        coding = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
        head = b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + coding + b"data" + b"\xff" * 4
        for data in itertools.chain([] if raw else [head], (to_pcm(block).tobytes() for block in samples)):
            output.write(data)
            output.flush()
