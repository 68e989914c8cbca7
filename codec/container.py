"""The ``.codes`` file: codes and what is needed to decode them, as bytes that are safe to store, to send and to read.

Layout of version 2, all numbers little-endian::

    offset  bytes
    0       4      magic "SVQC"
    4       1      format version, 2
    5       16     fingerprint: the first 16 bytes of the model's SHA-256 (Codec.fingerprint)
    21      4      sample rate of the model, Hz
    25      4      sample rate of the original, Hz
    29      8      samples (per channel) of the original; 2^64 - 1 where they are not known before the end
    37      2      hop length: samples per frame, at the model's rate
    39      1      number of quantizers K
    40      4      codebook size V
    44      4      gain in dB (IEEE float): decoded samples are multiplied by 10^(gain / 20)
    48      2      length X of what later programs may add, 0 here; readers pass over it
    50      1      length L of the model's name
    51      L      name of the model, UTF-8
    51+L    X      what was added
            4      CRC32 of all bytes before
    where the samples are not known, blocks as they come, each of 1 to 255 frames, and the end:
            3      number of frames n, three times; two that agree outvote the third
            ...    a block of n frames, as below
            3      zeros: the end
            8      samples of the original
            4      CRC32 of these 8 bytes
    then the frames that are left, in blocks of 256, the last one shorter:
            ...    codes, ceil(log2 V) bits each, most significant bit first, frame by frame and within a frame stage by
                   stage; the last byte is filled up with zero bits
            4      CRC32 of these bytes

The number of frames N is not stored: it is ``ceil(S / hop)`` with ``S = ceil(samples * model rate / original rate)``.
Nothing follows the last block. A block before the end takes 7 bytes beside its codes: 560 bit/s at ten blocks a second.

Version 1, which is read but no longer written, has no gain and no X (the name's length is at 44, the name at 45), knows its
samples, and has blocks of 1,024 frames. This module needs numpy only.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codec.config import RATES, set_whole
from codec.errors import CodecError
from codec.files import atomic_write
from codec.level import factor

Codes = NDArray[np.int64]

MAGIC = b"SVQC"
VERSION = 2
BLOCK_FRAMES = 256
MOST_FRAMES = 255  # of a block before the end: its head is one byte, written three times
MOST_DB = 200.0
FORMER = {  # where models' versions 1 and 2 are, by the fingerprint in files that they made
    "d29a3ad6b51dfa40fb0da4960fb4c009": "tests/golden/speech-24khz in the repository",
    "082fab0a77c69f8aadfad3abc4db6ac1": "tests/golden/speech-24khz-single in the repository",
    "7725cadd8f400093c92d5d2a43f1718e": "tests/golden/speech-24khz-v2 in the repository",
    "5c86e87a3ce490fb5b3c13b798dc2cff": "tests/golden/speech-24khz-single-v2 in the repository",
}
FINGERPRINT_BYTES = 16
_UNKNOWN = 2**64 - 1
_FIXED = {1: struct.Struct("<4sB16sIIQHBIB"), 2: struct.Struct("<4sB16sIIQHBIfHB")}
_CRC = struct.Struct("<I")


class ContainerError(CodecError):
    """A ``.codes`` file that cannot be read as it stands; the message says what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """What a file records about its codes.

    Attributes:
        model: name of the model, printable, at most 255 bytes of UTF-8.
        fingerprint: 32 lower-case hex digits, the beginning of ``Codec.fingerprint``.
        sample_rate: of the model, in Hz, from 1,000 to 768,000.
        original_sample_rate: of what was encoded, likewise.
        num_samples: length of what was encoded, in samples at its own rate; None while it is not known.
        hop_length: samples per frame at the model's rate.
        num_quantizers: stages K, at most 255.
        codebook_size: entries V, at most 2^32 - 1.
        gain_db: by how many dB decoded samples are to be raised, from -200 to 200, rounded to float32.
    """

    model: str
    fingerprint: str
    sample_rate: int
    original_sample_rate: int
    num_samples: int | None
    hop_length: int
    num_quantizers: int
    codebook_size: int
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        limits = {} if self.num_samples is None else {"num_samples": (0, _UNKNOWN - 1)}
        limits |= {"sample_rate": RATES, "original_sample_rate": RATES, "hop_length": (1, 2**16 - 1)}
        set_whole(self, ContainerError, **limits, num_quantizers=(1, 2**8 - 1), codebook_size=(2, 2**32 - 1))
        name, digits = self.model, self.fingerprint
        if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > 255:  # it is shown on terminals
            raise ContainerError(f"the model's name {name!r} is not printable, or longer than 255 bytes")
        if not isinstance(digits, str) or not re.fullmatch(f"[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}", digits):
            raise ContainerError(f"fingerprint must be {2 * FINGERPRINT_BYTES} hex digits, not {self.fingerprint!r}")
        object.__setattr__(self, "gain_db", float(np.float32(self.gain_db)))
        if not abs(self.gain_db) <= MOST_DB:  # NaN is no number, either
            raise ContainerError(f"gain_db must be a number from {-MOST_DB:g} to {MOST_DB:g}, not {self.gain_db}")

    @property
    def bits_per_code(self) -> int:
        """``ceil(log2 V)``."""
        return (self.codebook_size - 1).bit_length()

    @property
    def gain(self) -> float:
        """What decoded samples are multiplied by."""
        return factor(self.gain_db)

    @property
    def num_frames(self) -> int:
        """Frames N; 0 while the length is not known."""
        return -(-(self.length_at(self.sample_rate) or 0) // self.hop_length)

    @property
    def duration(self) -> float:
        """Seconds of the original; 0 while they are not known."""
        return (self.num_samples or 0) / self.original_sample_rate

    @property
    def bitrate(self) -> float:
        """Of the codes, in bit/s, without headers and checksums."""
        return self.sample_rate / self.hop_length * self.num_quantizers * float(np.log2(self.codebook_size))

    def length_at(self, rate: int) -> int | None:
        """Samples of the original at another rate, the fewest that last as long; None while they are not known."""
        return None if self.num_samples is None else -(-self.num_samples * rate // self.original_sample_rate)


@dataclass(frozen=True)
class Damage:
    """A block of ``num_frames`` that could not be read; if ``truncated``, it stands for all blocks from there on."""

    num_frames: int
    reason: str
    truncated: bool = False


def pack_codes(codes: Codes, bits: int) -> bytes:
    """Codes ``[K, n]`` as ``bits`` bits each, frame by frame, most significant bit first."""
    flat = np.ascontiguousarray(codes.T).reshape(-1, 1).astype(">u4")
    return np.packbits(np.unpackbits(flat.view(np.uint8), axis=1)[:, 32 - bits :]).tobytes()


def unpack_codes(packed: bytes, num_quantizers: int, num_frames: int, bits: int) -> Codes:
    """Inverse of :func:`pack_codes`: int64 ``[K, n]``."""
    count = num_quantizers * num_frames
    digits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * bits).reshape(count, bits)
    padded = np.concatenate([np.zeros((count, 32 - bits), np.uint8), digits], axis=1)
    flat = np.packbits(padded, axis=1).view(">u4").astype(np.int64)
    return flat.reshape(num_frames, num_quantizers).T


def _with_checksum(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _without_checksum(data: bytes) -> bytes | None:
    """The data before a checksum; None if the checksum is wrong."""
    return data[: -_CRC.size] if _with_checksum(data[: -_CRC.size]) == data else None


def pack_header(header: Header) -> bytes:
    """The header with its checksum."""
    name = header.model.encode()
    numbers = [_UNKNOWN if value is None else value for value in astuple(header)[2:]]
    fixed = _FIXED[VERSION].pack(MAGIC, VERSION, bytes.fromhex(header.fingerprint), *numbers, 0, len(name))
    return _with_checksum(fixed + name)


def _read_header(stream: IO[bytes]) -> tuple[int, Header]:
    """The format's version, and the header; the stream is left at the first block."""
    start = stream.read(len(MAGIC) + 1)
    if not start.startswith(MAGIC):
        raise ContainerError("not a .codes file" if start else "the file is empty")
    version = start[-1] if len(start) > len(MAGIC) else VERSION
    if version not in _FIXED:
        raise ContainerError(f"format version {version}; this program reads versions 1 to {VERSION}: upgrade it")
    size = _FIXED[version].size
    fixed = (start + stream.read(size - len(start))).ljust(size, b"\0")
    _, _, fingerprint, *numbers, name_length = _FIXED[version].unpack(fixed)
    added = numbers.pop() if version > 1 else 0
    if version > 1 and numbers[2] == _UNKNOWN:
        numbers[2] = None
    rest = stream.read(name_length + added + _CRC.size)
    if _without_checksum(fixed + rest) is None:
        raise ContainerError("the header is cut off or damaged (its checksum is wrong)")
    return version, Header(rest[:name_length].decode(errors="replace"), fingerprint.hex(), *numbers)


class Reader:
    """Reads a file or a buffered pipe block by block: it need not be seekable, and nothing is read before it is needed.

    After the last block one more byte is asked for, as nothing may follow. On a connection that stays open this would wait:
    send the length of each file there, and use :func:`loads`.

    Attributes:
        version: of the format.
        header: ``num_samples`` is None until the end has been read, if the end holds it; if there is no end, it is then
            the length of what was read.
        num_blocks: how many blocks were read.

    Raises:
        ContainerError: not a ``.codes`` file, of a newer version, truncated, or damaged in its header.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.version, self.header = _read_header(stream)
        self._stream, self._frames_per_block = stream, BLOCK_FRAMES if self.version > 1 else 1024
        self.num_blocks, self._frames = 0, 0  # read

    def blocks(self) -> Iterator[Codes | Damage]:
        """Yield the codes int64 ``[K, n]`` of each block, or its Damage; never more than one block in memory.

        Where the next block cannot be found, one Damage stands for all that are missing; bytes after the last are one more.
        """
        try:
            while frames := self._next_frames():
                count, bits = self.header.num_quantizers, self.header.bits_per_code
                packed = _without_checksum(self._read(-(-frames * count * bits // 8) + _CRC.size))
                self.num_blocks, self._frames = self.num_blocks + 1, self._frames + frames
                codes = None if packed is None else unpack_codes(packed, count, frames, bits)
                if codes is None or codes.max() >= self.header.codebook_size:
                    yield Damage(frames, f"block {self.num_blocks} is damaged (its checksum or a code is wrong)")
                else:
                    yield codes
        except ContainerError as error:  # nobody knows where the next block begins
            if self.header.num_samples is None:
                samples = self._frames * self.header.hop_length * self.header.original_sample_rate
                self.header = replace(self.header, num_samples=samples // self.header.sample_rate)
            missing = max(self.header.num_frames - self._frames, 0)
            yield Damage(missing, str(error), truncated=True)
        else:
            if self._stream.read(1):
                yield Damage(0, "bytes follow the last block")

    def intact(self) -> Iterator[Codes]:
        """The codes of all blocks; the first Damage is raised as a ContainerError."""
        for block in self.blocks():
            if isinstance(block, Damage):
                raise ContainerError(f"{block.reason}; codec-decode --salvage decodes the intact blocks")
            yield block

    def _next_frames(self) -> int:
        """Frames of the next block, 0 at the end."""
        if self.header.num_samples is None:
            head = self._read(3)
            frames = max(head, key=head.count)
            if head.count(frames) == 1:
                raise ContainerError(f"the head of block {self.num_blocks + 1} is damaged: what follows is lost")
            if frames:
                return frames
            end = _without_checksum(self._read(8 + _CRC.size)) or b""
            header = replace(self.header, num_samples=int.from_bytes(end, "little"))
            if not end or header.num_frames < self._frames:
                raise ContainerError("the end is damaged (its checksum is wrong, or it says less than there was)")
            self.header = header
        return min(self._frames_per_block, self.header.num_frames - self._frames)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise ContainerError("truncated: its end is missing")
        return data


class Writer:
    """Writes codes whose length is not known before the end to a file or pipe, block by block, each flushed at once.

    The ``num_samples`` of the header is ignored.
    """

    def __init__(self, stream: IO[bytes], header: Header) -> None:
        self._stream, self._header, self._frames = stream, replace(header, num_samples=None), 0
        self._send(pack_header(self._header))

    def write(self, codes: ArrayLike) -> None:
        """Send the next codes ``[K, n]``, any n. Errors as :func:`dumps`."""
        codes = _checked(codes, self._header)
        for start in range(0, codes.shape[1], MOST_FRAMES):
            block = codes[:, start : start + MOST_FRAMES]
            self._send(bytes([block.shape[1]]) * 3 + _pack_blocks(block, self._header))
        self._frames += codes.shape[1]

    def end(self, num_samples: int, codes: ArrayLike) -> None:
        """Send the length, in samples of the original, and the last codes. Errors as :func:`dumps`."""
        header = replace(self._header, num_samples=num_samples)
        if header.num_frames < self._frames:
            raise ContainerError(f"num_samples {num_samples} is less than the {self._frames} written frames hold")
        codes = _checked(codes, header, header.num_frames - self._frames)
        self._send(bytes(3) + _with_checksum(struct.pack("<Q", header.num_samples)) + _pack_blocks(codes, header))

    def _send(self, data: bytes) -> None:
        while data:  # an unbuffered pipe may take only a part
            data = data[self._stream.write(data) or len(data) :]
        self._stream.flush()


def _checked(codes: ArrayLike, header: Header, num_frames: int | None = None) -> Codes:
    """Codes ``[K, N]`` as int64, if they fit the header; any N by default."""
    codes = np.asarray(codes)
    shape = (header.num_quantizers, codes.shape[-1] if num_frames is None else num_frames)
    if codes.shape != shape or codes.dtype.kind not in "iu":
        raise ContainerError(f"codes must be integers {list(shape)}, not {codes.dtype} {list(codes.shape)}")
    if codes.size and not (codes.min() >= 0 and codes.max() < header.codebook_size):
        raise ContainerError(f"codes must be from 0 to {header.codebook_size - 1}")
    return codes.astype(np.int64, copy=False)


def _pack_blocks(codes: Codes, header: Header) -> bytes:
    """Codes in blocks of 256 frames."""
    blocks = [codes[:, start : start + BLOCK_FRAMES] for start in range(0, codes.shape[1], BLOCK_FRAMES)]
    return b"".join(_with_checksum(pack_codes(block, header.bits_per_code)) for block in blocks)


def dumps(header: Header, codes: ArrayLike) -> bytes:
    """The whole file.

    Args:
        codes: integers ``[K, N]``, ``0 <= code < codebook_size``; K and N as the header says. A tensor on the CPU will do.

    Raises:
        ContainerError: codes that do not fit the header.
    """
    if header.num_samples is None:
        raise ContainerError("the header must have a num_samples, as Codec.header gives it")
    return pack_header(header) + _pack_blocks(_checked(codes, header, header.num_frames), header)


def loads(data: bytes) -> tuple[Header, Codes]:
    """Header and codes int64 ``[K, N]`` of a whole file. Errors as :class:`Reader` and :meth:`Reader.intact`."""
    reader = Reader(io.BytesIO(data))
    blocks = [np.zeros((reader.header.num_quantizers, 0), np.int64), *reader.intact()]
    return reader.header, np.concatenate(blocks, axis=1)


def write(path: str | Path, header: Header, codes: ArrayLike) -> None:
    """Write a file as a whole: a temporary name first, then renamed. Errors as :func:`dumps`."""
    data = dumps(header, codes)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read(path: str | Path) -> tuple[Header, Codes]:
    """Header and codes int64 ``[K, N]`` of a file. Errors as :func:`loads`."""
    return loads(Path(path).read_bytes())
