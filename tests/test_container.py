"""The .codes file: bytes as documented, nothing lost, and no damage that goes unnoticed or costs much memory."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import container
from codec.container import BLOCK_FRAMES, Codes, ContainerError, Damage, Header, dumps, loads
from codec.errors import CodecError

GOLDEN = Path(__file__).parent / "assets" / "golden_v1.codes"
GOLDEN_HEADER = Header("golden-ü", "00112233445566778899aabbccddeeff", 24000, 44100, 3000, 320, 2, 1000)
GOLDEN_CODES = np.array([[0, 1, 2, 3, 4, 999], [999, 512, 511, 256, 255, 0]])


def make(frames: int, stages: int = 2, size: int = 32, seed: int = 0, **fields: object) -> tuple[Header, Codes]:
    """A header for so many frames, and random codes."""
    header = Header("default", "0123456789abcdef" * 2, 24000, 24000, frames * 320, 320, stages, size)
    codes = np.random.default_rng(seed).integers(0, size, (stages, frames))
    return dataclasses.replace(header, **fields), codes  # type: ignore[arg-type]


def with_checksum(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def header_bytes(num_samples: int = 320, stages: int = 2, size: int = 32, name: bytes = b"x", hop: int = 320) -> bytes:
    """A header written without the module under test."""
    fixed = b"SVQC\x01" + bytes(16) + struct.pack("<IIQHBIB", 24000, 24000, num_samples, hop, stages, size, len(name))
    return with_checksum(fixed + name)


def read_by_documentation(data: bytes) -> tuple[list[int], str, list[list[int]]]:
    """Numbers, name and frames of a file, following the description of the format with nothing but integers."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(data[start:stop], "little")

    assert data[:4] == b"SVQC" and data[4] == 1
    fields = [(21, 25), (25, 29), (29, 37), (37, 39), (39, 40), (40, 44)]
    rate, original, samples, hop, stages, size = numbers = [number(*field) for field in fields]
    at = 45 + data[44]
    name = data[45:at].decode()
    assert number(at, at + 4) == zlib.crc32(data[:at])
    at += 4
    bits = math.ceil(math.log2(size))
    left = math.ceil(Fraction(math.ceil(Fraction(samples * rate, original)), hop))
    frames = []
    while left:
        count = min(1024, left)
        packed = data[at : at + math.ceil(Fraction(count * stages * bits, 8))]
        at += len(packed)
        assert number(at, at + 4) == zlib.crc32(packed)
        at += 4
        digits = "".join(f"{byte:08b}" for byte in packed)
        codes = [int(digits[i * bits : (i + 1) * bits], 2) for i in range(count * stages)]
        assert "1" not in digits[count * stages * bits :]
        frames += [codes[i : i + stages] for i in range(0, len(codes), stages)]
        left -= count
    assert at == len(data)
    return numbers, name, frames


# ---- what is written is read --------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    size=st.one_of(st.integers(2, 2**20), st.sampled_from([2, 1023, 1024, 1025, 2**16, 2**16 + 1, 2**18, 2**20])),
    stages=st.integers(1, 9),
    frames=st.one_of(st.integers(0, 40), st.sampled_from([1023, 1024, 1025, 2048, 2049])),
    seed=st.integers(0, 1000),
)
def test_round_trip(size: int, stages: int, frames: int, seed: int) -> None:
    header, codes = make(frames, stages, size, seed)
    codes[:, : frames // 2] = size - 1
    data = dumps(header, codes)
    again, read = loads(data)
    assert again == header and read.dtype == np.int64
    np.testing.assert_array_equal(read, codes)


@pytest.mark.parametrize("frames", [0, 1, 5, BLOCK_FRAMES - 1, BLOCK_FRAMES, BLOCK_FRAMES + 1])
@pytest.mark.parametrize(("stages", "size"), [(1, 2), (3, 1000), (8, 1024), (2, 2**18), (1, 2**20 - 3)])
def test_bytes_are_as_documented(frames: int, stages: int, size: int) -> None:
    header, codes = make(frames, stages, size)
    numbers, name, read = read_by_documentation(dumps(header, codes))
    assert numbers == [24000, 24000, frames * 320, 320, stages, size] and name == "default"
    assert read == codes.T.tolist()


@settings(deadline=None)
@given(
    samples=st.integers(0, 200_000),
    original=st.integers(1000, 768_000),
    rate=st.integers(1000, 768_000),
    hop=st.integers(1, 65535),
)
def test_number_of_frames(samples: int, original: int, rate: int, hop: int) -> None:
    header, _ = make(0, num_samples=samples, original_sample_rate=original, sample_rate=rate, hop_length=hop)
    assert header.num_frames == math.ceil(Fraction(math.ceil(Fraction(samples * rate, original)), hop))


def test_golden_file_of_version_1() -> None:
    header, codes = loads(GOLDEN.read_bytes())
    assert header == GOLDEN_HEADER
    np.testing.assert_array_equal(codes, GOLDEN_CODES)
    assert dumps(GOLDEN_HEADER, GOLDEN_CODES) == GOLDEN.read_bytes()
    assert GOLDEN.read_bytes()[5:21].hex() == GOLDEN_HEADER.fingerprint


def test_write_and_read_files(tmp_path: Path) -> None:
    header, codes = make(30)
    container.write(tmp_path / "a.codes", header, codes)
    again, read = container.read(tmp_path / "a.codes")
    assert again == header and np.array_equal(read, codes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.codes"]


@pytest.mark.parametrize("stages", [1, 8])
def test_overhead_of_ten_seconds(stages: int) -> None:
    header, codes = make(750, stages, 1024)
    packed = math.ceil(750 * stages * 10 / 8)
    assert len(dumps(header, codes)) <= packed + 64 + 0.002 * packed


def test_properties() -> None:
    header, _ = make(1025, 8, 1024, original_sample_rate=48000, num_samples=656_000)
    assert (header.num_frames, header.num_blocks, header.frames_in_block(1), header.bits_per_code) == (1025, 2, 1, 10)
    assert header.bytes_in_block(0) == 10240 and header.bytes_in_block(1) == 10
    assert header.bitrate == 6000 and header.duration == pytest.approx(13.6667, abs=1e-4)


# ---- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes",
    [
        *[np.zeros((2, 9), int), np.zeros((1, 10), int), np.full((2, 10), -1), np.full((2, 10), 32), np.zeros((2, 10))],
        *[None, "codes", 5, [[0] * 10, [0] * 9], [["0"] * 10] * 2, np.zeros((2, 10), bool), {1: 2}],
        torch.zeros(2, 10, dtype=torch.int64, device="meta"),
    ],
    ids=lambda codes: str(codes)[:20],
)
def test_codes_that_do_not_fit_are_refused(codes: Any) -> None:
    header, _ = make(10)
    with pytest.raises(ContainerError, match=r"codes (must be|cannot be taken)"):
        dumps(header, codes)


@pytest.mark.parametrize("header", [None, 5, "header", {}])
def test_what_is_no_header_is_refused(header: Any, tmp_path: Path) -> None:
    for call in (lambda: dumps(header, make(10)[1]), lambda: container.write(tmp_path / "a", header, make(10)[1])):
        with pytest.raises(ContainerError, match="the header must be a Header"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, 5, "SVQC", [1], 1.5])
def test_what_is_no_file_is_refused(value: Any) -> None:
    with pytest.raises(ContainerError, match="as bytes, not"):
        loads(value)
    if not isinstance(value, str):
        for call in (lambda: container.read(value), lambda: container.write(value, *make(10))):
            with pytest.raises(CodecError, match="a path must be"):
                call()


def test_numbers_of_other_libraries_are_taken() -> None:
    header, codes = make(10)
    again = dataclasses.replace(header, sample_rate=torch.tensor(24000), hop_length=np.int64(320), num_samples=3200.0)
    assert again == header and dumps(again, codes.astype(np.uint8)) == dumps(header, torch.from_numpy(codes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("sample_rate", 0), ("original_sample_rate", 999), ("original_sample_rate", 2**31)],
        *[("num_samples", -1), ("num_samples", 2**64), ("hop_length", 0), ("hop_length", 2**16)],
        *[("num_quantizers", 0), ("num_quantizers", 256), ("codebook_size", 1), ("codebook_size", 2**32)],
        *[("num_samples", 1.5), ("num_samples", "9"), ("hop_length", None), ("num_quantizers", [1])],
        *[("model", None), ("model", b"x"), ("fingerprint", None), ("fingerprint", 5)],
        *[("model", "ü" * 128), ("model", "a\nb"), ("model", "\x1b[31m"), ("model", "\udcff")],
        *[("fingerprint", "0123"), ("fingerprint", "x" * 32), ("fingerprint", "01 " * 10 + "01")],
    ],
)
def test_headers_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(ContainerError):
        make(10, **{field: value})


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_every_truncation_is_noticed() -> None:
    data = dumps(*make(BLOCK_FRAMES + 6))
    for length in range(len(data)):
        with pytest.raises(ContainerError):
            loads(data[:length])


def test_every_flip_is_noticed() -> None:
    data = dumps(*make(BLOCK_FRAMES + 6))
    blocks_at = 45 + len("default") + 4
    for index in range(len(data)):
        for bit in range(8) if index < blocks_at else [index % 8]:
            damaged = bytearray(data)
            damaged[index] ^= 1 << bit
            with pytest.raises(ContainerError):
                loads(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"SV", "not a .codes file"),
        (b"RIFF$\x00\x00\x00WAVEfmt " * 9, "not a .codes file"),
        (b"SVQC\x02" + bytes(100), "version 2.*reads version 1"),
        (b"SVQC\x01" + bytes(10), "truncated in the header"),
        (header_bytes()[:-1], "truncated in the header"),
        (header_bytes(), "1 of 1 blocks are missing"),
        (header_bytes(num_samples=0) + b"\x00", "bytes follow"),
        (dumps(*make(10)) + b"\x00", "bytes follow the last block"),
        (header_bytes(name=b"\xff\xfe"), "not UTF-8"),
        (header_bytes(name=b"\x1b[2J"), "not printable"),
        (header_bytes(stages=0), "num_quantizers must be"),
        (header_bytes(size=0), "codebook_size must be"),
        (header_bytes(hop=0), "hop_length must be"),
        (header_bytes(size=3, stages=1) + with_checksum(b"\xc0"), "beyond the codebook"),
        (header_bytes(size=4, stages=1) + with_checksum(b"\xc1"), "bits beyond the codes"),
        (header_bytes(size=4, stages=1) + with_checksum(b"\xe0"), "bits beyond the codes"),
        (header_bytes(size=32, stages=3) + with_checksum(b"\x00\x01"), "bits beyond the codes"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ContainerError, match=message):
        loads(data)


@pytest.mark.parametrize("num_samples", [2**60, 2**64 - 1])
def test_absurd_length_costs_no_memory(num_samples: int) -> None:
    data = header_bytes(num_samples, stages=255, size=2**32 - 1, hop=1) + bytes(5000)
    tracemalloc.start()
    with pytest.raises(ContainerError, match="blocks are missing"):
        loads(data)
    damage = list(container.read_blocks(io.BytesIO(data[50:]), container.read_header(io.BytesIO(data))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(damage) == 1 and peak < 10e6


@pytest.mark.parametrize(("size", "most"), [(2, 75), (256, 12), (1024, 10)])
def test_memory_is_little_more_than_that_of_the_codes(size: int, most: int) -> None:
    """Codes of int64 take 64 bytes per byte of file for V = 2."""
    data = dumps(*make(200 * BLOCK_FRAMES, 2, size))
    tracemalloc.start()
    loads(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * len(data) + 2e6


def test_intact_blocks_of_a_damaged_file() -> None:
    header, codes = make(3 * BLOCK_FRAMES + 10)
    data = bytearray(dumps(header, codes))
    stream = io.BytesIO(data)
    container.read_header(stream)
    data[stream.tell() + header.bytes_in_block(0) + 4 + 77] ^= 4
    stream = io.BytesIO(data[:-1])
    blocks = list(container.read_blocks(stream, container.read_header(stream)))
    assert isinstance(blocks[1], Damage) and not blocks[1].truncated
    assert (blocks[1].index, blocks[1].num_frames) == (1, BLOCK_FRAMES) and "block 2 of 4" in blocks[1].reason
    np.testing.assert_array_equal(blocks[0], codes[:, :BLOCK_FRAMES])  # type: ignore[arg-type]
    np.testing.assert_array_equal(blocks[2], codes[:, 2 * BLOCK_FRAMES : 3 * BLOCK_FRAMES])  # type: ignore[arg-type]
    assert blocks[3] == Damage(3, 10, "truncated: 1 of 4 blocks are missing", truncated=True)
    assert len(blocks) == 4


# ---- whatever the bytes ---------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from([b"", b"SVQC", b"SVQC\x01", dumps(*make(3))[:-3]]), tail=st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(head: bytes, tail: bytes) -> None:
    try:
        header, codes = loads(head + tail)
    except ContainerError:
        return
    assert dumps(header, codes) == head + tail


@settings(max_examples=300, deadline=None)
@given(
    fields=st.tuples(*[st.integers(0, 2**bits - 1) for bits in (32, 32, 64, 16, 8, 32)]),
    small=st.booleans(),
    name=st.binary(max_size=255),
    blocks=st.binary(max_size=100),
)
def test_random_headers_raise_nothing_else(fields: tuple[int, ...], small: bool, name: bytes, blocks: bytes) -> None:
    if small:  # so that some are plausible
        fields = (24000, 16000, fields[2] % 4000, fields[3] % 400, fields[4] % 3, fields[5] % 9)
    head = b"SVQC\x01" + bytes(16) + struct.pack("<IIQHBIB", *fields, len(name)) + name
    try:
        header, codes = loads(with_checksum(head) + with_checksum(blocks))
    except ContainerError:
        return
    assert codes.shape == (header.num_quantizers, header.num_frames)
