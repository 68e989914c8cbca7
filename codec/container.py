"""The ``.codes`` file: codes and what is needed to decode them, as bytes that are safe to store and to read.

Layout, all integers little-endian::

    offset  bytes
    0       4      magic "SVQC"
    4       1      format version, 1
    5       16     fingerprint: the first 16 bytes of the model's SHA-256 (Codec.fingerprint)
    21      4      sample rate of the model, Hz
    25      4      sample rate of the original, Hz
    29      8      samples (per channel) of the original
    37      2      hop length: samples per frame, at the model's rate
    39      1      number of quantizers K
    40      4      codebook size V
    44      1      length L of the model's name
    45      L      name of the model, UTF-8
    45+L    4      CRC32 of all bytes before
    then blocks of 1,024 frames, the last one shorter:
            n      codes, ceil(log2 V) bits each, most significant bit first, frame by frame and within a frame stage by
                   stage; the last byte is filled up with zero bits
            4      CRC32 of these n bytes

The number of frames N is not stored: it is ``ceil(S / hop)`` with ``S = ceil(samples * model rate / original rate)``.
Nothing follows the last block. This module needs numpy only.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codec.config import RATES, set_whole
from codec.errors import CodecError
from codec.files import as_path, atomic_write

Codes = NDArray[np.int64]

MAGIC = b"SVQC"
VERSION = 1
BLOCK_FRAMES = 1024
FINGERPRINT_BYTES = 16
_FIXED = struct.Struct("<4sB16sIIQHBIB")
_CRC = struct.Struct("<I")


class ContainerError(CodecError):
    """A ``.codes`` file that cannot be read as it stands; the message says what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """What a file says of its codes.

    Attributes:
        model: name of the model, printable, at most 255 bytes of UTF-8.
        fingerprint: 32 lower-case hex digits, the beginning of ``Codec.fingerprint``.
        sample_rate: of the model, in Hz, from 1,000 to 768,000.
        original_sample_rate: of what was encoded, likewise.
        num_samples: length of what was encoded, in samples at its own rate.
        hop_length: samples per frame at the model's rate.
        num_quantizers: stages K, at most 255.
        codebook_size: entries V, at most 2^32 - 1.
    """

    model: str
    fingerprint: str
    sample_rate: int
    original_sample_rate: int
    num_samples: int
    hop_length: int
    num_quantizers: int
    codebook_size: int

    def __post_init__(self) -> None:
        set_whole(self, ContainerError, sample_rate=RATES, original_sample_rate=RATES, num_samples=(0, 2**64 - 1))
        stages, size = (1, 2**8 - 1), (2, 2**32 - 1)
        set_whole(self, ContainerError, hop_length=(1, 2**16 - 1), num_quantizers=stages, codebook_size=size)
        if not isinstance(self.model, str) or not self.model.isprintable():  # it is shown on terminals
            raise ContainerError(f"the model's name {self.model!r} is not printable")
        if len(self.model.encode()) > 255:
            raise ContainerError("the model's name is longer than 255 bytes")
        digits = self.fingerprint if isinstance(self.fingerprint, str) else ""
        if len(digits) != 2 * FINGERPRINT_BYTES or set(digits) - set("0123456789abcdef"):
            raise ContainerError(f"fingerprint must be {2 * FINGERPRINT_BYTES} hex digits, not {self.fingerprint!r}")

    @property
    def bits_per_code(self) -> int:
        """``ceil(log2 V)``."""
        return (self.codebook_size - 1).bit_length()

    @property
    def num_frames(self) -> int:
        """Frames N."""
        samples = -(-self.num_samples * self.sample_rate // self.original_sample_rate)
        return -(-samples // self.hop_length)

    @property
    def duration(self) -> float:
        """Seconds of the original."""
        return self.num_samples / self.original_sample_rate

    @property
    def bitrate(self) -> float:
        """Of the codes, in bit/s, without headers and checksums."""
        return self.sample_rate / self.hop_length * self.num_quantizers * float(np.log2(self.codebook_size))

    @property
    def num_blocks(self) -> int:
        """Blocks in the file."""
        return -(-self.num_frames // BLOCK_FRAMES)

    def frames_in_block(self, index: int) -> int:
        """Frames of block ``index``."""
        return min(BLOCK_FRAMES, self.num_frames - index * BLOCK_FRAMES)

    def bytes_in_block(self, index: int) -> int:
        """Bytes of the packed codes of block ``index``, without its checksum."""
        return -(-self.frames_in_block(index) * self.num_quantizers * self.bits_per_code // 8)


@dataclass(frozen=True)
class Damage:
    """A block that could not be read: its index, its frames, and why.

    Where the file is ``truncated``, these are the first block that is missing and the frames of all that are.
    """

    index: int
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


def pack_header(header: Header) -> bytes:
    """The header with its checksum."""
    name = header.model.encode()
    fixed = _FIXED.pack(MAGIC, VERSION, bytes.fromhex(header.fingerprint), *astuple(header)[2:], len(name))
    return fixed + name + _CRC.pack(zlib.crc32(fixed + name))


def read_header(stream: IO[bytes]) -> Header:
    """Read and check the header, leaving the stream at the first block.

    Raises:
        ContainerError: not a ``.codes`` file, of a newer version, truncated, or damaged.
    """
    fixed = stream.read(_FIXED.size)
    if not fixed.startswith(MAGIC):
        raise ContainerError("not a .codes file" if fixed else "the file is empty")
    if len(fixed) > len(MAGIC) and fixed[len(MAGIC)] != VERSION:
        raise ContainerError(f"format version {fixed[len(MAGIC)]}; this program reads version {VERSION}: upgrade it")
    if len(fixed) < _FIXED.size:
        raise ContainerError("truncated in the header")
    _, _, fingerprint, *numbers, name_length = _FIXED.unpack(fixed)
    rest = stream.read(name_length + _CRC.size)
    if len(rest) < name_length + _CRC.size:
        raise ContainerError("truncated in the header")
    name, checksum = rest[:name_length], rest[name_length:]
    if _CRC.unpack(checksum)[0] != zlib.crc32(fixed + name):
        raise ContainerError("the header is damaged (its checksum is wrong)")
    try:
        return Header(name.decode(), fingerprint.hex(), *numbers)
    except UnicodeDecodeError:
        raise ContainerError("the header is damaged (the model's name is not UTF-8)") from None


def read_blocks(stream: IO[bytes], header: Header) -> Iterator[Codes | Damage]:
    """Yield the codes int64 ``[K, n]`` of each block after the header, or its damage; never more than one in memory.

    A truncated file ends with one damage for all that is missing. Bytes after the last block are reported
    as the damage of one more block without frames.
    """
    for index in range(header.num_blocks):
        frames, size = header.frames_in_block(index), header.bytes_in_block(index)
        name = f"block {index + 1} of {header.num_blocks}"
        data = stream.read(size + _CRC.size)
        if len(data) < size + _CRC.size:
            reason = f"truncated: {header.num_blocks - index} of {header.num_blocks} blocks are missing"
            yield Damage(index, header.num_frames - index * BLOCK_FRAMES, reason, truncated=True)
            return
        packed, checksum = data[:size], data[size:]
        if _CRC.unpack(checksum)[0] != zlib.crc32(packed):
            yield Damage(index, frames, f"{name} is damaged (its checksum is wrong)")
            continue
        codes = unpack_codes(packed, header.num_quantizers, frames, header.bits_per_code)
        spare = 8 * size - codes.size * header.bits_per_code  # bits of the last byte
        if codes.max(initial=0) >= header.codebook_size or packed[-1] & (2**spare - 1):
            yield Damage(index, frames, f"{name} holds codes beyond the codebook, or bits beyond the codes")
            continue
        yield codes
    if stream.read(1):
        yield Damage(header.num_blocks, 0, "bytes follow the last block")


def intact_blocks(stream: IO[bytes], header: Header) -> Iterator[Codes]:
    """The blocks of :func:`read_blocks`; the first damage is raised.

    Raises:
        ContainerError: truncated or damaged.
    """
    any_intact = False
    blocks = read_blocks(stream, header)
    for block in blocks:
        if isinstance(block, Damage):
            any_intact = any_intact or any(not isinstance(other, Damage) for other in blocks)
            advice = "--salvage decodes the intact blocks" if any_intact else "no block is intact"
            raise ContainerError(f"{block.reason}; {advice}")
        any_intact = True
        yield block


def dumps(header: Header, codes: ArrayLike) -> bytes:
    """The whole file.

    Args:
        codes: integers ``[K, N]``, ``0 <= code < codebook_size``; K and N as the header says. A tensor on the CPU will do.

    Raises:
        ContainerError: codes that do not fit the header.
    """
    if not isinstance(header, Header):
        raise ContainerError(f"the header must be a Header, as Codec.header gives it, not {type(header).__name__}")
    try:
        codes = np.asarray(codes)
    except (ValueError, TypeError) as error:  # rows of unequal lengths, a tensor on another device
        raise ContainerError(f"codes cannot be taken as an array: {error}") from None
    shape = (header.num_quantizers, header.num_frames)
    if codes.shape != shape:
        raise ContainerError(f"codes must be [K, N] = {list(shape)} for this header, not {list(codes.shape)}")
    if codes.dtype.kind not in "iu":
        raise ContainerError(f"codes must be integers, not {codes.dtype}")
    if codes.size and not (codes.min() >= 0 and codes.max() < header.codebook_size):
        raise ContainerError(f"codes must be from 0 to {header.codebook_size - 1}")
    parts = [pack_header(header)]
    for start in range(0, header.num_frames, BLOCK_FRAMES):
        packed = pack_codes(codes[:, start : start + BLOCK_FRAMES], header.bits_per_code)
        parts += [packed, _CRC.pack(zlib.crc32(packed))]
    return b"".join(parts)


def loads(data: bytes) -> tuple[Header, Codes]:
    """Header and codes int64 ``[K, N]`` of a whole file.

    Raises:
        ContainerError: see :func:`read_header` and :func:`intact_blocks`.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ContainerError(f"a file is given as bytes, not {type(data).__name__}")
    return _load(io.BytesIO(data))


def write(path: str | Path, header: Header, codes: ArrayLike) -> None:
    """Write a file as a whole: a temporary name first, then renamed. Errors as :func:`dumps`."""
    data = dumps(header, codes)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read(path: str | Path) -> tuple[Header, Codes]:
    """Header and codes int64 ``[K, N]`` of a file. Errors as :func:`loads`."""
    with open(as_path(path), "rb") as stream:
        return _load(stream)


def _load(stream: IO[bytes]) -> tuple[Header, Codes]:
    header = read_header(stream)
    small = np.min_scalar_type(header.codebook_size - 1)  # until all are there: int64 takes 64 bytes for one of V = 2
    blocks = [np.zeros((header.num_quantizers, 0), small), *(b.astype(small) for b in intact_blocks(stream, header))]
    return header, np.concatenate(blocks, axis=1, dtype=np.int64)
