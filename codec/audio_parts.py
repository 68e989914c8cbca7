"""Where the audio of a file lies, by its own bytes: libsndfile believes headers that are wrong, and reads first parts only.

:func:`find_parts` takes a file to pieces, cheaply and without decoding: the links of a chained Ogg file, the streams of a
concatenated MP3 file. What is missing against an exact header is an error; sizes that a pipe could not know are mended.
"""

from __future__ import annotations

import functools
import io
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import BinaryIO, Literal, NamedTuple

from codec.errors import CodecError

BLOCK_BYTES = 2**16  # read at once
MOST_CHUNKS = 10_000  # of a RIFF file and its kin: a hostile one could hold millions of empty ones
UNKNOWN_SIZES = (  # what programs write to a pipe, where they cannot come back with the true size
    range(0x7EFFF000, 0x7F001000),
    range(0x7FFFE000, 0x80001000),
    range(0xFFFFF000, 2**32),
    range(2**62, 2**64),
)


class AudioError(CodecError):
    """Audio that cannot be read or written; the message names the file."""


def incomplete(name: str, there: int, promised: int, unit: str) -> AudioError:
    """The error of a file that lacks some of what its header promises."""
    return AudioError(f"{name} is damaged: only {there:,} of {promised:,} {unit} can be read")


class Part(io.RawIOBase):
    """Pieces of a file, bytes in place of others or ranges of positions, as one file that a decoder can read.

    Args:
        file: the whole.
        pieces: in their order.
        num_samples: per channel, by the header; 0 where it does not tell, None where the decoder's own count is exact.
        note: what a user should know of it, "" if nothing.
    """

    def __init__(
        self, file: BinaryIO, pieces: Sequence[bytes | range], num_samples: int | None = None, note: str = ""
    ) -> None:
        self.num_samples, self.note = num_samples, note
        self._file, self._pieces, self._position = file, pieces, 0
        self._ends = list(accumulate(map(len, pieces)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._ends[-1])[whence])
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer across pieces: libsndfile takes a short read for the end."""
        done = 0
        while done < len(buffer) and self._position < self._ends[-1]:
            index = bisect_right(self._ends, self._position)
            piece = self._pieces[index]
            piece = piece[len(piece) + self._position - self._ends[index] :][: len(buffer) - done]
            if isinstance(piece, range):
                self._file.seek(piece.start)
                piece = self._file.read(len(piece))
            if not piece:  # the file has become shorter
                break
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done


@dataclass
class _Source:
    """A file, the part of it between its tags, and how messages call it."""

    file: BinaryIO
    name: str
    start: int
    end: int
    _block: bytes = b""
    _block_at: int = 0

    def read_at(self, start: int, count: int) -> bytes:
        """Up to so many bytes, also beyond the tags."""
        at = start - self._block_at
        if not 0 <= at <= len(self._block) - count:
            self.file.seek(start)
            self._block, self._block_at, at = self.file.read(max(count, BLOCK_BYTES)), start, 0
        return self._block[at : at + count]

    def find(self, mark: re.Pattern[bytes], start: int) -> int:
        """The first position of a mark of up to four bytes, or the end."""
        while start < self.end:
            self.read_at(start, 4)
            if found := mark.search(self._block, start - self._block_at, self.end - self._block_at):
                return self._block_at + found.start()
            start = max(start + 1, self._block_at + len(self._block) - 3)
        return self.end

    def patched(
        self, patches: dict[int, bytes], end: int | None = None, num_samples: int | None = None, note: str = ""
    ) -> Part:
        """All up to ``end``, with other bytes at some positions."""
        pieces: list[bytes | range] = []
        start = self.start
        for at in sorted(patches):
            pieces += [range(start, at), patches[at]]
            start = at + len(patches[at])
        return Part(self.file, [*pieces, range(start, self.end if end is None else end)], num_samples, note)

    def damage(self, what: str) -> AudioError:
        return AudioError(f"{self.name} is damaged: {what}")


def find_parts(file: BinaryIO, name: str) -> list[Part]:
    """The parts of an audio file, to be decoded one after another; a file of an unknown kind is one part.

    Args:
        file: open, at any position.
        name: how messages call it.

    Raises:
        AudioError: it lacks some of what its header promises.
    """
    source = _without_tags(file, name)
    head = source.read_at(source.start, 1024)
    if head[:4] == b"fLaC":
        packed = int.from_bytes(head[18:26], "big")  # 36 bits of it tell the length; libsndfile would stop there
        unknown = (packed >> 36 << 36).to_bytes(8, "big")
        return [source.patched({source.start + 18: unknown}, num_samples=packed % 2**36)]
    if head[:4] == b"OggS":
        return _ogg_parts(source)
    if head[:4] in LAYOUTS:
        return _chunked_parts(source)
    if head[:4] == b".snd":
        return [_sized_part(source, source.start + int.from_bytes(head[4:8], "big"), source.start + 8, AU, {})]
    if (nist := re.match(rb"NIST_1A\s+(\d+)\s", head)) and b"shorten" not in head:
        number = {key: int(value) for key, value in re.findall(rb"(\w+) -i (\d+)", head)}
        size = number.get(b"sample_count", 0) * number.get(b"channel_count", 1) * number.get(b"sample_n_bytes", 2)
        if size > (there := source.end - source.start - int(nist[1])):
            raise incomplete(name, there, size, "bytes of samples")
    return _mp3_parts(source) or [source.patched({})]


def _without_tags(file: BinaryIO, name: str) -> _Source:
    """What lies between ID3v2 tags in front, and APE and ID3v1 tags behind."""
    source = _Source(file, name, 0, file.seek(0, io.SEEK_END))
    while len(head := source.read_at(source.start, 10)) == 10 and head[:3] == b"ID3":
        source.start += 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:])) + 10 * (head[5] >> 4 & 1)
    if source.end >= 128 and source.read_at(source.end - 128, 3) == b"TAG":
        source.end -= 128
    if source.end >= 32 and (foot := source.read_at(source.end - 32, 32))[:8] == b"APETAGEX":
        source.end -= int.from_bytes(foot[12:16], "little") + 32 * (foot[23] >> 7)
    source.end = max(source.start, source.end)
    return source


# ---- formats that say how many bytes the samples have: RIFF and its kin, AU --------------------------------------------


class _Layout(NamedTuple):
    """How a file of chunks is built: where the first is, and then id, size, and data padded to whole ``align``."""

    first: int
    id_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    align: int
    counted: int  # bytes of a chunk's head that its size includes


RIFF = _Layout(12, 4, 4, "little", 2, 0)
LAYOUTS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": RIFF._replace(order="big"),
    b"FORM": RIFF._replace(order="big"),
    b"caff": _Layout(8, 4, 8, "big", 1, 0),
    b"riff": _Layout(40, 16, 8, "little", 8, 24),
}
AU = _Layout(0, 0, 4, "big", 1, 0)
MP3_IN_WAV = b"\x55\0"


def _chunks(source: _Source, position: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Id, start of the data and start of the next chunk, for each up to one that is none, or begins another file."""
    head_bytes = layout.id_bytes + layout.size_bytes
    for _ in range(MOST_CHUNKS):
        head = source.read_at(position, head_bytes) if position + head_bytes <= source.end else b""
        if not head[:4].isascii() or not head[:4].decode().isprintable() or head[:4] in (b"", *LAYOUTS):
            return
        size = max(int.from_bytes(head[layout.id_bytes :], layout.order) - layout.counted, 0)
        data = position + head_bytes
        position = data + size + -size % layout.align
        yield head[:4], data, position


def _chunked_parts(source: _Source) -> list[Part]:
    magic = source.read_at(source.start, 4)
    patches = {source.start: b"RF64"} if magic == b"BW64" else {}  # the same by the name that libsndfile knows
    layout, long_size, coding = LAYOUTS[magic], 0, b""
    for chunk, data, following in _chunks(source, source.start + layout.first, layout):
        if chunk == b"ds64":
            long_size = data + 8
        elif chunk == b"fmt ":
            coding = source.read_at(data, 2)
        elif chunk in (b"data", b"SSND", b"BODY"):
            size_at = data - layout.size_bytes
            if long_size and source.read_at(size_at, 4) == b"\xff" * 4:
                size_at, layout = long_size, layout._replace(size_bytes=8)
            part = _sized_part(source, data, size_at, layout, patches)
            if coding == MP3_IN_WAV and magic == b"RIFF":
                inner = _Source(source.file, source.name, data, min(following, source.end))
                return _mp3_parts(inner) or [part]
            return [part]
    return [source.patched(patches)]


def _sized_part(source: _Source, data: int, size_at: int, layout: _Layout, patches: dict[int, bytes]) -> Part:
    """A file whose samples begin at ``data`` and have as many bytes as the number at ``size_at`` says.

    Raises:
        AudioError: it ends before.
    """
    told = int.from_bytes(source.read_at(size_at, layout.size_bytes), layout.order)
    size, there = max(told - layout.counted, 0), max(source.end - data, 0)
    end = data + size + -size % layout.align
    for *_, end in _chunks(source, end, layout) if layout.id_bytes else ():  # noqa: B007, B020
        pass
    stray = source.end - end
    if (size == 0 and stray > 8) or (size > there and any(told in sizes for sizes in UNKNOWN_SIZES)):
        true_size = min(there + layout.counted, 256**layout.size_bytes - 1)
        return source.patched({**patches, size_at: true_size.to_bytes(layout.size_bytes, layout.order)})
    if size > there:
        raise incomplete(source.name, there, size, "bytes of samples")
    if stray > 8:
        note = f"its {size:,} bytes of samples are followed by {stray:,} that belong to no chunk and are left out"
        return source.patched(patches, end, note=note)
    return source.patched(patches)


# ---- Ogg --------------------------------------------------------------------------------------------------------------

OGG_PAGE = re.compile(b"OggS")
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
JOINED_PAGES = 100  # a recording of a broadcast may have its head and then pages from so far behind it, or farther


@dataclass
class _Link:
    """One of the files that follow each other in a chained Ogg file."""

    start: int
    counted: bool  # whether libsndfile will decode it, which tells if a page behind the first one of audio is missing
    in_head: bool = True  # its streams begin all together, before any goes on
    has_audio: bool = False
    numbers: dict[bytes, int] = field(default_factory=dict)  # of the last page, by stream
    ended: set[bytes] = field(default_factory=set)
    last_page: range = range(0)


def _ogg_parts(source: _Source) -> list[Part]:
    """One part per link: libsndfile reads the first alone, and takes a first page of audio for one that it may skip."""
    links: list[_Link] = []
    for page, head in _ogg_pages(source):
        begins, ends, serial, number = head[5] & 2, head[5] & 4, head[14:18], int.from_bytes(head[18:22], "little")
        if begins and not (links and links[-1].in_head):
            links.append(_Link(page.start, bool(re.search(b"vorbis|OpusHead", source.read_at(page.start, 64)))))
        link = links[-1] if links else _Link(0, False)
        if not begins and serial not in link.numbers:
            raise source.damage("the first page of an Ogg stream is missing")
        missing = number - link.numbers.get(serial, number) - 1
        if missing > 0 and (link.has_audio or missing < JOINED_PAGES):
            raise source.damage(f"an Ogg stream lacks {missing:,} of its pages")
        if not (link.has_audio and link.counted):
            _check_page(source, page)
        link.in_head, link.last_page, link.numbers[serial] = bool(begins), page, number
        link.has_audio |= head[6:14] not in (bytes(8), b"\xff" * 8)  # where a page's last sample lies
        if ends:
            link.ended.add(serial)
    parts = []
    for link, stop in zip(links, [*(link.start for link in links[1:]), source.end], strict=True):
        _check_page(source, link.last_page)
        cut = link.ended != set(link.numbers)
        if cut and link.last_page.stop < stop:
            raise source.damage("an Ogg stream ends in bytes that are no Ogg page")
        note = "an Ogg stream in it has no last page and may be cut short" if cut else ""
        parts.append(Part(source.file, [range(link.start, stop)], note=note))
    return parts


def _ogg_pages(source: _Source) -> Iterator[tuple[range, bytes]]:
    """Where each page lies, and its head."""
    position = source.start
    while (position := source.find(OGG_PAGE, position)) < source.end:
        head = source.read_at(position, 27 + 255)
        page = range(position, position + 27 + sum(head[26:27]) + sum(head[27 : 27 + sum(head[26:27])]))
        if page.stop > source.end:
            raise source.damage("it is cut inside a page of an Ogg stream")
        yield page, head
        position = page.stop


def _check_page(source: _Source, page: range) -> None:
    """Refuse a page with a wrong CRC-32: zlib's, of bits in the other order, with zeros in its own place, not inverted."""
    data = source.read_at(page.start, len(page))
    crc = zlib.crc32((data[:22] + bytes(4) + data[26:]).translate(REVERSED_BITS), 2**32 - 1) ^ 2**32 - 1
    if crc.to_bytes(4, "big").translate(REVERSED_BITS) != data[22:26]:
        raise source.damage("a page of an Ogg stream has a wrong checksum")


# ---- MP3 --------------------------------------------------------------------------------------------------------------

FRAME_START = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
HEAD_BYTES = 48  # of a frame, up to the count in an Info header
KBPS = (  # of MPEG 2 and 2.5, and of MPEG 1
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
TAGS = (b"ID3", b"TAG", b"APE", b"LYR")


class _Frame(NamedTuple):
    """What the first four bytes of an MP3 frame say."""

    kind: int  # what stays the same in a stream: version, sample rate, one channel or two
    num_bytes: int
    info_at: int  # where a frame without audio says "Xing" or "Info"


@dataclass
class _Stream:
    """What one encoder has written into an MP3 file."""

    head: bytes  # of its first frame
    frame: _Frame
    promised: int | None  # how many frames the first says to follow, 0 if it does not tell; None if it is audio itself
    num_frames: int = 0
    runs: list[range] = field(default_factory=list)


def _mp3_parts(source: _Source) -> list[Part]:
    """One part per stream; nothing if the file does not begin with MP3 frames."""
    streams: list[_Stream] = []
    for position, head, frame in _mp3_frames(source):
        promised = _promised(head, frame)
        if not streams or promised is not None or frame.kind != streams[-1].frame.kind:
            streams.append(_Stream(head, frame, promised))
        runs, end = streams[-1].runs, position + frame.num_bytes
        streams[-1].num_frames += 1
        if runs and runs[-1].stop == position:
            position = runs.pop().start
        runs.append(range(position, end))
    ends = [*(stream.runs[0].start for stream in streams[1:]), source.end]
    return [_mp3_part(source, stream, end) for stream, end in zip(streams, ends, strict=False)]


def _mp3_frames(source: _Source) -> Iterator[tuple[int, bytes, _Frame]]:
    """Position and head of each frame; where none came before, another of its kind must follow it."""
    position, kind = source.start, 0
    search_end = source.start + BLOCK_BYTES * (source.start > 0)  # behind a tag there may be zeros before the first
    while position < source.end:
        head = source.read_at(position, HEAD_BYTES)
        frame = _frame(head[:4])
        stop = position + frame.num_bytes if frame else source.end + 1
        following = _frame(source.read_at(stop, 4)) if frame and frame.kind != kind and stop < source.end else frame
        if frame and following and following.kind == frame.kind and stop <= source.end:
            yield position, head, frame
            position, kind, search_end = stop, frame.kind, source.end
        elif position >= search_end:
            return
        else:
            position, kind = source.find(FRAME_START, position + 1), 0


@functools.lru_cache(4096)
def _frame(head: bytes) -> _Frame | None:
    """The MP3 frame that begins with these four bytes; None if none does, or one of free format."""
    bits = int.from_bytes(head, "big")
    version, layer, bitrate, rate = bits >> 19 & 3, bits >> 17 & 3, bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    first_version, mono = version == 3, bits >> 6 & 3 == 3
    hertz = (44100, 48000, 32000)[rate] >> (2, 0, 1, 0)[version]
    num_bytes = (72, 144)[first_version] * 1000 * KBPS[first_version][bitrate - 1] // hertz + (bits >> 9 & 1)
    info_at = ((21, 13), (36, 21))[first_version][mono] + 2 * (not bits >> 16 & 1)  # behind a checksum, if any
    return _Frame(bits & 0xFFFE0C00 | mono, num_bytes, info_at)


def _promised(head: bytes, frame: _Frame) -> int | None:
    """How many frames a frame without audio says to follow, 0 if it does not tell; None of one with audio."""
    at = frame.info_at
    if head[at : at + 4] in (b"Xing", b"Info"):
        return int.from_bytes(head[at + 8 : at + 12], "big") * (head[at + 7] & 1)
    return 0 if head[36:40] == b"VBRI" else None


def _mp3_part(source: _Source, stream: _Stream, end: int) -> Part:
    """The frames of a stream up to ``end``; where the first does not tell their true number, behind one that does.

    libsndfile guesses it otherwise, and stops there.

    Raises:
        AudioError: there are fewer than promised; one less may be a matter of counting.
    """
    promised, runs = stream.promised, stream.runs
    num_frames = stream.num_frames - (promised is not None)
    gaps = zip(runs, [*(run.start for run in runs[1:]), end], strict=True)
    lost = sum(following - run.stop for run, following in gaps if source.read_at(run.stop, 3) not in TAGS)
    if promised and num_frames < promised - (not lost):
        raise incomplete(source.name, num_frames, promised, "MP3 frames")
    if promised == num_frames:
        return Part(source.file, runs)
    if promised is not None:
        runs[0] = runs[0][stream.frame.num_bytes :]
    head = (int.from_bytes(stream.head[:4], "big") & ~0xF200 | 0x19000).to_bytes(4, "big")  # no checksum, long enough
    info = _frame(head)
    assert info is not None
    head = head.ljust(info.info_at, b"\0") + b"Info\0\0\0\1" + num_frames.to_bytes(4, "big")
    note = f"{lost:,} bytes in it are no MP3 frames, so some audio may be missing" if lost else ""
    return Part(source.file, [head.ljust(info.num_bytes, b"\0"), *runs], note=note)
