"""Where the audio in a file is, by its bytes: libsndfile trusts wrong headers, and reads only the first of several parts.

:func:`find_parts` finds, without decoding, the parts of a file: the links of a chained Ogg file, the streams of a
concatenated MP3 file. It is an error if less is there than an exact header says; sizes unknown to a pipe are mended.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import BinaryIO, Literal, NamedTuple

from codec.errors import CodecError

BLOCK_BYTES = 2**16  # to search at once
PATTERN_BYTES = 64  # the longest that is searched for
MOST_CHUNKS = 10_000  # of RIFF and similar files: a hostile file could have millions of empty chunks
# sizes that programs write to a pipe, where they cannot correct them at the end
UNKNOWN_SIZES = (
    range(0x7EFFF000, 0x7F001000),
    range(0x7FFFE000, 0x80001000),
    range(0xFFFFF000, 2**32),
    range(2**62, 2**64),
)


class AudioError(CodecError):
    """Audio that cannot be read or written; the message names the file."""


def incomplete(name: str, present: float, promised: float, unit: str) -> AudioError:
    """The error of a file that lacks some of what its header promises."""
    return AudioError(f"{name} is damaged: only {present:,} of {promised:,} {unit} can be read")


class Part:
    """Pieces of a file as one file that a decoder can read; a piece is a range of positions, or bytes that replace others.

    ``num_samples`` per channel are those of the header: 0 if it does not tell, None if the decoder's own count is exact.
    ``note`` is what a user should know about the part, "" if there is nothing.
    """

    def __init__(
        self, file: BinaryIO, pieces: Sequence[bytes | range], num_samples: int | None = None, note: str = ""
    ) -> None:
        self.num_samples, self.note = num_samples, note
        self._file, self._pieces, self._position = file, pieces, 0
        self._ends = list(accumulate(map(len, pieces)))

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._ends[-1])[whence])
        return self._position

    def read(self, count: int) -> bytes:
        """``count`` bytes, across pieces: fewer would be the end to libsndfile."""
        data = b""
        while len(data) < count and self._position < self._ends[-1]:
            index = bisect_right(self._ends, self._position)
            piece = self._pieces[index]
            piece = piece[len(piece) + self._position - self._ends[index] :][: count - len(data)]
            if isinstance(piece, range):
                self._file.seek(piece.start)
                piece = self._file.read(len(piece))
            if not piece:  # the file has become shorter
                break
            data += piece
            self._position += len(piece)
        return data


class _Source:
    """A file, where it starts and ends without tags (ID3v2 before; APE and ID3v1 after), and its name in messages."""

    def __init__(self, file: BinaryIO, name: str, start: int, end: int) -> None:
        self.file, self.name, self.start, self.end = file, name, start, end
        while len(head := self.at(self.start, 10)) == 10 and head[:3] == b"ID3":
            self.start += 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:])) + 10 * (head[5] >> 4 & 1)
        if self.at(max(self.end - 128, 0), 3) == b"TAG":
            self.end -= 128
        if len(foot := self.at(max(self.end - 32, 0), 32)) == 32 and foot.startswith(b"APETAGEX"):
            self.end -= int.from_bytes(foot[12:16], "little") + 32 * (foot[23] >> 7)
        self.end = max(self.start, self.end)

    def at(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from a position, also outside of start and end."""
        self.file.seek(position)
        return self.file.read(count)

    def find(self, mark: bytes, position: int) -> int:
        """The first place from ``position`` on where a pattern matches, or the end."""
        while position < self.end:
            block = self.at(position, min(BLOCK_BYTES + PATTERN_BYTES, self.end - position))
            if found := re.search(mark, block, re.DOTALL):
                return position + found.start()
            position += BLOCK_BYTES
        return self.end

    def part(
        self, patches: dict[int, bytes], end: int | None = None, num_samples: int | None = None, note: str = ""
    ) -> Part:
        """A part with all from the start to ``end``, in which ``patches`` replace the bytes at their positions."""
        pieces: list[bytes | range] = []
        start = self.start
        for position in sorted(patches):
            pieces += [range(start, position), patches[position]]
            start = position + len(patches[position])
        return Part(self.file, [*pieces, range(start, self.end if end is None else end)], num_samples, note)

    def damage(self, what: str) -> AudioError:
        return AudioError(f"{self.name} is damaged: {what}")


def find_parts(file: BinaryIO, name: str) -> list[Part]:
    """The parts of an audio file, to be decoded one after another; a file of an unknown kind is one part.

    Raises:
        AudioError: it is empty, or lacks some of what its header promises.
    """
    source = _Source(file, name, 0, file.seek(0, io.SEEK_END))
    if not source.end:
        raise AudioError(f"{name} is empty")
    head = source.at(source.start, 1024)
    if head[:4] == b"fLaC":
        packed = int.from_bytes(head[18:26], "big")  # 36 bits of it are the length, where libsndfile would stop
        unknown = (packed >> 36 << 36).to_bytes(8, "big")
        return [source.part({source.start + 18: unknown}, num_samples=packed % 2**36)]
    if head[:4] == b"OggS":
        return _ogg_parts(source)
    if head[:4] in LAYOUTS:
        return _chunked_parts(source)
    if head[4:8] == b"ftyp":
        return _mp4_parts(source)
    if head[:4] == EBML:
        return _matroska_parts(source)
    if head[:4] in AU:
        layout = AU[head[:4]]
        start = source.start + int.from_bytes(head[4:8], layout.order)
        return [_sized_part(source, start, source.start + 8, layout, {})]
    if (nist := re.match(rb"NIST_1A\s+(\d+)\s", head)) and b"shorten" not in head:
        number = {key: int(value) for key, value in re.findall(rb"(\w+) -\w+ (\d+)", head)}
        size = number.get(b"sample_count", 0) * number.get(b"channel_count", 1) * number.get(b"sample_n_bytes", 2)
        return [_sized_part(source, source.start + int(nist[1]), source.start, NIST, {}, size)]
    return _mp3_parts(source) or [source.part({})]


# ---- formats that say how many bytes the samples have: RIFF and similar, AU, NIST --------------------------------------


class _Layout(NamedTuple):
    """A file of chunks: where the first is; each has an id, a size, and data padded to a multiple of ``align``."""

    first: int
    id_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    align: int
    counted: int  # bytes of a chunk's head that its size includes


RIFF = _Layout(12, 4, 4, "little", 2, 0)
LAYOUTS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), RIFF),
    **dict.fromkeys((b"RIFX", b"FORM"), RIFF._replace(order="big")),
    b"caff": _Layout(8, 4, 8, "big", 1, 0),
    b"riff": _Layout(40, 16, 8, "little", 8, 24),
}
SAMPLES = (b"data", b"SSND", b"BODY")  # chunks with samples
AU = {b".snd": _Layout(0, 0, 4, "big", 1, 0), b"dns.": _Layout(0, 0, 4, "little", 1, 0)}
NIST = _Layout(0, 0, 0, "big", 1, 0)  # the size is text, and not mended
# a killed writer leaves a size of 8 (AIFF) or 4 (CAF), that of what precedes the samples in their chunk; up to 8 bytes after
# the samples are padding
HEAD_BYTES = 8


def _chunks(source: _Source, position: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Id, start of the data and start of the next chunk, of each chunk until no chunk, or another file, begins."""
    head_bytes = layout.id_bytes + layout.size_bytes
    for _ in range(MOST_CHUNKS):
        head = source.at(position, head_bytes) if position + head_bytes <= source.end else b""
        if not re.match(b"[ -~]{4}", head) or head[:4] in LAYOUTS:
            return
        size = max(int.from_bytes(head[layout.id_bytes :], layout.order) - layout.counted, 0)
        data = position + head_bytes
        position = data + size + -size % layout.align
        yield head[:4], data, position


def _chunked_parts(source: _Source) -> list[Part]:
    magic = source.at(source.start, 4)
    patches = {source.start: b"RF64"} if magic == b"BW64" else {}  # the same format, known to libsndfile
    layout, long_size = LAYOUTS[magic], 0
    for chunk, data, _ in _chunks(source, source.start + layout.first, layout):
        if chunk == b"ds64":
            long_size = data + 8
        elif chunk in SAMPLES:
            size_at = data - layout.size_bytes
            if long_size and source.at(size_at, 4) == b"\xff" * 4:
                size_at, layout = long_size, layout._replace(size_bytes=8)
            return [_sized_part(source, data, size_at, layout, patches)]
    return [source.part(patches)]


def _sized_part(
    source: _Source, data: int, size_at: int, layout: _Layout, patches: dict[int, bytes], told: int = 0
) -> Part:
    """A file whose samples begin at ``data``; their bytes are the number at ``size_at``, or ``told`` if a text gave it."""
    told = told or int.from_bytes(source.at(size_at, layout.size_bytes), layout.order)
    size, there = max(told - layout.counted, 0), max(source.end - data, 0)
    end, note = data + size + -size % layout.align, ""
    for chunk, _, following in _chunks(source, end, layout) if layout.id_bytes else ():
        if following > source.end + layout.align:  # cut short, or bytes that only look like a chunk's head
            break
        end = following
        if chunk in SAMPLES and size > HEAD_BYTES:
            note = "samples in a second chunk are left out"
    stray = source.end - end
    unknown = (size <= HEAD_BYTES < stray) or (size > there and any(told in sizes for sizes in UNKNOWN_SIZES))
    if unknown and layout.size_bytes:
        true_size = min(there + layout.counted, 256**layout.size_bytes - 1)
        patches = {**patches, size_at: true_size.to_bytes(layout.size_bytes, layout.order)}
    elif size > there:
        raise incomplete(source.name, there, size, "bytes of samples")
    elif stray > HEAD_BYTES and size:
        note = f"its {size:,} bytes of samples are followed by {stray:,} that belong to no chunk and are left out"
    return source.part(patches, end if note else source.end, note=note)


def _mp4_parts(source: _Source) -> list[Part]:
    """MP4 files one after another: each begins with a box "ftyp", and a decoder reads only the first file."""
    starts, position = [source.start], source.start
    for _ in range(MOST_CHUNKS):
        head = source.at(position, 16)
        if head[4:8] == b"ftyp" and position > source.start:
            starts.append(position)
        size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if size < 8 or (position := position + size) >= source.end:
            break
    return [Part(source.file, [range(*ends)]) for ends in pairwise([*starts, source.end])]


EBML, SEGMENT, CLUSTER = bytes.fromhex("1A45DFA3"), bytes.fromhex("18538067"), bytes.fromhex("1F43B675")
# of a segment: SeekHead, Info, Tracks, Cues, Tags, Attachments, Chapters, Void, CRC-32, signature
WITHIN = "114D9B74 1549A966 1654AE6B 1C53BB6B 1254C367 1941A469 1043A770 EC BF 1B538667 "
WITHIN += "E7 A3 A0 A7 AB 5854 AF"  # of a cluster: its time, blocks and place
ELEMENTS = {EBML, SEGMENT, CLUSTER} | {bytes.fromhex(element) for element in re.findall(r"\w+", WITHIN)}


def _matroska_parts(source: _Source) -> list[Part]:
    """Matroska files (also WebM) one after another, as MP4; their decoder ignores damage without a message.

    A recorder does not know how long a segment or a cluster becomes, so the elements inside are read by their ids and sizes.
    """
    starts, position, told = [], source.start, 0  # told: the end of the last segment of known size
    while position < source.end:
        head = source.at(position, 12)
        id_bytes = 9 - head[0].bit_length()  # the first bit that is set tells how many, here and in sizes
        size_bytes = 9 - max(head[id_bytes:][:1], default=0).bit_length()
        element, size = head[:id_bytes], head[id_bytes:][:size_bytes]
        if element not in ELEMENTS or size_bytes > 8:
            if position == told:
                break
            raise source.damage(f"at byte {position:,} begins what is no element of Matroska")
        if element == EBML:
            starts.append(position)
        position += id_bytes + size_bytes
        length = int.from_bytes(size, "big") % 2 ** (7 * size_bytes)
        if element == SEGMENT and length < 2 ** (7 * size_bytes) - 1:  # that value means: not known
            told = position + length
        position += length * (element not in (SEGMENT, CLUSTER))
    if max(position, told) > source.end:
        raise source.damage("its end is missing")
    parts = [Part(source.file, [range(*ends)]) for ends in pairwise([*starts, position])]
    parts[-1].note = f"{source.end - position:,} bytes behind its end are left out" * (position < source.end)
    return parts


# ---- Ogg --------------------------------------------------------------------------------------------------------------

FIRST_PAGE = rb"OggS\0[\2\3]\0{8}"
PAGE_BYTES = 2**16  # no page is longer


def _ogg_parts(source: _Source) -> list[Part]:
    """One part per link, as libsndfile reads only the first, and does not notice that its last page is missing.

    What is missing further in, libsndfile's number of samples tells; behind the head of a recorded broadcast it is none.
    """
    starts = [source.start]
    while (start := source.find(FIRST_PAGE, starts[-1] + 1)) < source.end:
        starts.append(start)
    parts = []
    for start, stop in pairwise([*starts, source.end]):
        tail = source.at(max(start, stop - PAGE_BYTES), min(PAGE_BYTES, stop - start))
        page = tail[tail.rfind(b"OggS\0") :]
        missing = 27 + sum(page[26:27]) + sum(page[27 : 27 + sum(page[26:27])]) - len(page)
        last = page[5:6] >= b"\4"  # the bit of the last page is the highest one of three
        if missing > 0 or (missing and not last):
            raise source.damage("its end is missing")
        note = "" if last else "an Ogg stream in it has no last page and may be cut short"
        parts.append(Part(source.file, [range(start, stop)], note=note))
    return parts


# ---- MP3 --------------------------------------------------------------------------------------------------------------

FRAME = rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]"  # how a frame begins
# the first frame of most encoders has no audio, but flags and, if both lowest ones are set, the numbers of frames and bytes
INFO = FRAME + rb".(?:.{9}|.{17}|.{32})(?:..)?(?:Xing|Info)\0\0\0(.).{4}(.{4})"
LEAST_BYTES = 2048  # more than a frame: what is shorter is no stream


def _mp3_parts(source: _Source) -> list[Part]:
    """One part per stream that an encoder wrote, with or without tags between them; nothing if the file has no frames there.

    A stream without an Info frame, as of a broadcast, ends where the next Info frame is.
    """
    parts: list[Part] = []
    start = source.start
    while source.end - start > LEAST_BYTES:
        head = source.at(start, PATTERN_BYTES)
        info = re.match(INFO, head, re.DOTALL)
        size = int.from_bytes(info[2], "big") if info and info[1][0] & 3 == 3 else 0
        if head[:3] == b"TAG":
            start += 128
        elif head[:3] == b"ID3":
            start += 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        elif size > source.end - start:
            raise incomplete(source.name, source.end - start, size, "bytes of MP3")
        elif size:
            parts.append(Part(source.file, [range(start, start + size)]))
            start += size
        elif re.match(FRAME, head):
            stop = source.find(INFO, start + 1)
            parts.append(Part(source.file, [_endless(head), range(start, stop)], 0))
            start = stop
        else:
            break
    return parts


def _endless(frame: bytes) -> bytes:
    """An Info frame that announces very many frames like this one; else libsndfile guesses how many, and stops there."""
    bits = int.from_bytes(frame[:4], "big")
    first_version, mono = bits >> 19 & 3 == 3, bits >> 6 & 3 == 3
    hertz = (44100, 48000, 32000, 32000)[bits >> 10 & 3] >> (2, 0, 1, 0)[bits >> 19 & 3]
    num_bytes = (144 * 128_000 if first_version else 72 * 80_000) // hertz
    head = (bits & ~0xF200 | 0x19000).to_bytes(4, "big")  # without a checksum, of 128 or 80 kbit/s
    info = head.ljust(((21, 13), (36, 21))[first_version][mono], b"\0") + b"Info\0\0\0\1\x7f\xff\xff\xff"
    return info.ljust(num_bytes, b"\0")
