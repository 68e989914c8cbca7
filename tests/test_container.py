"""The .codes file: bytes as documented, nothing lost, and no damage that goes unnoticed or costs much memory."""

import dataclasses
import io
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import ASSETS, flipped

from codec.container import BLOCK_FRAMES, Codes, ContainerError, Damage, Header, Reader, Writer, dumps, loads

GOLDEN_HEADER = Header("golden-ü", "00112233445566778899aabbccddeeff", 24000, 44100, 3000, 320, 2, 1000)
GOLDEN_CODES = np.array([[0, 1, 2, 3, 4, 999], [999, 512, 511, 256, 255, 0]])


def make(frames: int, stages: int = 2, size: int = 32, seed: int = 0, **fields: object) -> tuple[Header, Codes]:
    """A header for so many frames, and random codes."""
    header = Header("default", "0123456789abcdef" * 2, 24000, 24000, frames * 320, 320, stages, size)
    codes = np.random.default_rng(seed).integers(0, size, (stages, frames))
    return dataclasses.replace(header, **fields), codes  # type: ignore[arg-type]


def with_checksum(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def header_bytes(num_samples: int = 320, name: bytes = b"x", added: bytes = b"", **facts: float) -> bytes:
    """A header written without the module under test; ``facts`` are hop, stages, size and gain."""
    facts = {"hop": 320, "stages": 2, "size": 32, "gain": 0.0} | facts
    numbers = (24000, 24000, num_samples, *facts.values(), len(added))
    fixed = b"SVQC\2" + bytes(16) + struct.pack("<IIQHBIfH", *numbers)
    return with_checksum(fixed + bytes([len(name)]) + name + added)


def stream_bytes(header: Header, codes: Codes, sizes: list[int]) -> bytes:
    """A file whose length is not known before its end, in blocks of these sizes, the last frames behind the end."""
    stream = io.BytesIO()
    writer = Writer(stream, header)
    *blocks, rest = np.split(codes, np.cumsum(sizes, dtype=int), axis=1)
    for block in blocks:
        writer.write(block)
    writer.end(header.num_samples or 0, rest)
    return stream.getvalue()


def read_by_documentation(data: bytes) -> tuple[list[int], str, list[list[int]]]:
    """Numbers, name and frames of a file, following the description of the format with nothing but integers."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(data[start:stop], "little")

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        assert at <= len(data)
        return data[at - count : at]

    def block(count: int) -> None:
        packed = take(math.ceil(Fraction(count * stages * bits, 8)))
        assert int.from_bytes(take(4), "little") == zlib.crc32(packed)
        digits = "".join(f"{byte:08b}" for byte in packed)
        codes = [int(digits[i * bits : (i + 1) * bits], 2) for i in range(count * stages)]
        assert "1" not in digits[count * stages * bits :]
        frames.extend(codes[i : i + stages] for i in range(0, len(codes), stages))

    assert data[:4] == b"SVQC" and data[4] == 2 and data[48:50] == bytes(2)
    fields = [(21, 25), (25, 29), (29, 37), (37, 39), (39, 40), (40, 44)]
    rate, original, samples, hop, stages, size = numbers = [number(*field) for field in fields]
    at = 51 + data[50]
    name = data[51:at].decode()
    assert number(at, at + 4) == zlib.crc32(data[:at])
    at += 4
    bits = math.ceil(math.log2(size))
    frames: list[list[int]] = []
    if samples == 2**64 - 1:
        while head := take(3)[0]:
            assert data[at - 3 : at] == bytes([head] * 3)
            block(head)
        assert data[at - 3 : at] == bytes(3)
        numbers[2] = samples = int.from_bytes(take(8), "little")
        assert int.from_bytes(take(4), "little") == zlib.crc32(data[at - 12 : at - 4])
    left = math.ceil(Fraction(math.ceil(Fraction(samples * rate, original)), hop)) - len(frames)
    while left:
        block(min(256, left))
        left -= min(256, left)
    assert at == len(data)
    return numbers, name, frames


# ---- what is written is read --------------------------------------------------------------------------------------


@given(
    size=st.one_of(st.integers(2, 2**20), st.sampled_from([2, 1023, 1024, 1025, 2**16, 2**16 + 1, 2**18, 2**20])),
    stages=st.integers(1, 9),
    frames=st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 257, 512, 1023, 1024, 1025, 2049])),
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(0, 300), max_size=4),
    gain=st.floats(-200, 200),
)
def test_round_trip(size: int, stages: int, frames: int, seed: int, sizes: list[int], gain: float) -> None:
    header, codes = make(frames, stages, size, seed, gain_db=gain)
    codes[:, : frames // 2] = size - 1
    for data in (dumps(header, codes), stream_bytes(header, codes, sizes)):
        again, read = loads(data)
        assert again == header and read.dtype == np.int64
        np.testing.assert_array_equal(read, codes)
    header, codes = (header, codes) if frames < 300 else make(257, stages, size)  # each bit is a step of Python's
    for data in (dumps(header, codes), stream_bytes(header, codes, sizes)):
        numbers, name, read_slowly = read_by_documentation(data)
        assert numbers == [24000, 24000, header.num_samples, 320, stages, size] and name == "default"
        assert read_slowly == codes.T.tolist() and struct.unpack("<f", data[44:48]) == (header.gain_db,)


RATES = st.integers(1000, 768_000)


@given(samples=st.integers(0, 200_000), original=RATES, rate=RATES, hop=st.integers(1, 65535))
def test_number_of_frames(samples: int, original: int, rate: int, hop: int) -> None:
    header, _ = make(0, num_samples=samples, original_sample_rate=original, sample_rate=rate, hop_length=hop)
    assert header.num_frames == math.ceil(Fraction(math.ceil(Fraction(samples * rate, original)), hop))


def test_golden_files_of_every_version() -> None:
    reader = Reader(io.BytesIO((ASSETS / "golden_v1.codes").read_bytes()))
    (codes,) = reader.intact()
    assert (reader.version, reader.header, reader.num_blocks) == (1, GOLDEN_HEADER, 1)
    np.testing.assert_array_equal(codes, GOLDEN_CODES)
    header, codes = loads((ASSETS / "long_v1.codes").read_bytes())
    assert header == make(1030, fingerprint="0" * 32)[0] and np.array_equal(codes, make(1030)[1])
    header = dataclasses.replace(GOLDEN_HEADER, gain_db=np.array(-1.5))
    known, open_ended = [(ASSETS / name).read_bytes() for name in ("golden_v2.codes", "golden_v2_stream.codes")]
    assert dumps(header, GOLDEN_CODES) == known and stream_bytes(header, GOLDEN_CODES, [2, 3]) == open_ended
    for data in (known, open_ended):
        again, codes = loads(data)
        assert again == header and np.array_equal(codes, GOLDEN_CODES)


def test_what_later_programs_add_is_passed_over() -> None:
    reader = Reader(io.BytesIO(header_bytes(0, gain=3, added=b"more to say")))
    assert (reader.header.model, reader.header.gain_db, list(reader.blocks())) == ("x", 3, [])
    assert reader.header.gain == pytest.approx(10**0.15)


# ---- what cannot be written -----------------------------------------------------------------------------------------

HEADER, CODES = make(10)
BAD_CODES: list[Any] = [
    *[np.zeros((2, 9), int), np.zeros((1, 10), int), np.full((2, 10), -1), np.full((2, 10), 32), np.zeros((2, 10))],
    *[None, "codes", 5, [["0"] * 10] * 2, np.zeros((2, 10), bool), {1: 2}],
]


def test_what_does_not_fit_is_refused() -> None:
    for codes in BAD_CODES:
        with pytest.raises(ContainerError, match="codes must be"):
            dumps(HEADER, codes)
    with pytest.raises(ContainerError, match="the header must have a num_samples"):
        dumps(*make(10, num_samples=None))


def test_a_writer_refuses_what_does_not_fit() -> None:
    writer = Writer(io.BytesIO(), HEADER)
    writer.write(CODES[:, :4])
    for call in (
        lambda: writer.write(CODES + 32),
        lambda: writer.write(CODES[:1]),
        lambda: writer.end(3200, CODES),
        lambda: writer.end(1, CODES[:, :0]),
    ):
        with pytest.raises(ContainerError, match=r"codes must be|written frames"):
            call()
    writer.end(np.int64(3200), CODES[:, 4:])  # type: ignore[arg-type]


class SmallPipe(io.BytesIO):  # as a pipe without a buffer
    def write(self, data: Any) -> int:
        return super().write(data[:7])


def test_a_stream_that_takes_only_a_part_gets_the_rest() -> None:
    pipe = SmallPipe()
    Writer(pipe, HEADER).end(3200, CODES)
    assert pipe.getvalue() == stream_bytes(HEADER, CODES, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("sample_rate", 0), ("original_sample_rate", 999), ("original_sample_rate", 2**31)],
        *[("num_samples", -1), ("num_samples", 2**64), ("hop_length", 0), ("hop_length", 2**16)],
        *[("num_quantizers", 0), ("num_quantizers", 256), ("codebook_size", 1), ("codebook_size", 2**32)],
        *[("gain_db", math.nan), ("gain_db", math.inf), ("gain_db", -201), ("gain_db", None)],
        *[("model", None), ("model", b"x"), ("fingerprint", None), ("fingerprint", 5)],
        *[("model", "ü" * 128), ("model", "a\nb"), ("model", "\x1b[31m"), ("model", "\udcff")],
        *[("fingerprint", "0123"), ("fingerprint", "x" * 32), ("fingerprint", "01 " * 10 + "01")],
    ],
)
def test_headers_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(ContainerError):
        make(10, **{field: value})


# ---- damage ---------------------------------------------------------------------------------------------------------

FILES = {
    "version 1": (ASSETS / "long_v1.codes").read_bytes(),  # of two blocks
    "known length": dumps(*make(BLOCK_FRAMES + 6)),
    "stream": stream_bytes(*make(60), [10, 20, 5]),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_truncation_is_noticed(kind: str) -> None:
    for length in range(len(FILES[kind])):
        with pytest.raises(ContainerError):
            loads(FILES[kind][:length])


@pytest.mark.parametrize("kind", FILES)
def test_every_flip_is_noticed_or_mended_and_costs_a_block(kind: str) -> None:
    data, expected = FILES[kind], loads(FILES[kind])[1]
    blocks_at = {"version 1": 45, "known length": 51, "stream": 51}[kind] + len("default") + 4
    for index in range(len(data)):
        for bit in range(8) if index < blocks_at else [index % 8]:
            damaged = flipped(data, index, bit)
            with suppress(ContainerError):
                assert np.array_equal(loads(damaged)[1], expected) and kind == "stream"
        if index >= blocks_at:
            blocks = Reader(io.BytesIO(damaged)).blocks()
            lost = [np.full((2, each.num_frames), -1) if isinstance(each, Damage) else each for each in blocks]
            read = np.concatenate([*lost, expected[:, :0]], axis=1)
            intact = np.flatnonzero(read[0] >= 0)
            assert np.array_equal(read[:, intact], expected[:, intact]), "the others are as they were"
            longest = {"version 1": 1024, "known length": BLOCK_FRAMES, "stream": 25}[kind]
            assert max(read.shape[1], expected.shape[1]) - len(intact) <= longest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SV", "not a .codes file"),
        (b"SVQC\x03" + bytes(100), "version 3.*reads versions 1 to 2"),
        (header_bytes(2**64 - 1), "truncated: its end is missing"),
        (header_bytes(2**64 - 1) + b"\1\2\3", "the head of block 1 is damaged"),
        (header_bytes(2**64 - 1) + bytes(15), "the end is damaged"),
        (stream_bytes(*make(10), [10])[:-12] + with_checksum(bytes(8)), "the end is damaged.* less than there was"),
        (stream_bytes(*make(10), [10])[:-12] + with_checksum(struct.pack("<Q", 2**60)), "truncated"),
        (header_bytes()[:-1], "the header is cut off or damaged"),
        (header_bytes(hop=0), "hop_length must be"),
        (header_bytes(size=3, stages=1) + with_checksum(b"\xc0"), "checksum or a code is wrong"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ContainerError, match=message):
        loads(data)


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that Python and numpy hold meanwhile."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_header_that_lies_takes_no_memory() -> None:
    for num_samples in (2**60, 2**64 - 2):
        data = header_bytes(num_samples, stages=255, size=2**32 - 1, hop=1) + bytes(5000)
        assert peak_of(lambda: list(Reader(io.BytesIO(data)).blocks())) < 10e6  # noqa: B023
        with pytest.raises(ContainerError, match="truncated"):
            loads(data)
