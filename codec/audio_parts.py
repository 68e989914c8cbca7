"""Where the audio in a file is, by its bytes: libsndfile trusts wrong headers, and reads only the first of several parts.

:func:`find_parts` finds the parts of a file without decoding: the links of a chained Ogg file, files that were joined. It is
an error if less is there than the header says, unless a pipe or a killed writer could not know its size.
"""

from __future__ import annotations

import io
import re
import zlib
from itertools import pairwise
from typing import BinaryIO, Literal, cast

from codec.errors import CodecError

BLOCK_BYTES = 2**16  # to search at once
MOST_BEHIND = 2**15  # bytes that may stand behind the audio without a word, as titles do
HEAD_BYTES = 8  # at most of these precede the samples in their chunk, and are the size that a killed writer leaves
PATTERN_BYTES = 64  # the longest that is searched for
# sizes that programs write to a pipe, where they cannot correct them at the end
UNKNOWN_SIZES = (
    range(0x7EFFF000, 0x7F001000),
    range(0x7FFFE000, 0x80001000),
    range(0xFFFFF000, 2**32),
    range(2**64 - 1, 2**64),
)


class AudioError(CodecError):
    """Audio that cannot be read or written; the message names the file."""


def incomplete(name: str, present: float, promised: float, unit: str) -> AudioError:
    """The error of a file that lacks some of what its header promises."""
    return AudioError(f"{name} is damaged: only {present:,} of {promised:,} {unit} can be read")


class Part:
    """A range of a file as a file that a decoder can read, with some bytes before it.

    ``num_samples`` per channel are those of the header: 0 if it does not tell, None if the decoder's own count is exact.
    ``note`` is what a user should know about the part, "" if there is nothing. ``titles`` are the bytes of chunks
    that follow its samples.
    """

    def __init__(
        self, file: BinaryIO, start: int, stop: int, head: bytes = b"", num_samples: int | None = None
    ) -> None:
        self.file, self.start, self.stop, self.head, self.num_samples = file, start, stop, head, num_samples
        self.note, self.titles, self._position = "", 0, 0

    @property
    def size(self) -> int:
        return len(self.head) + self.stop - self.start

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def read(self, count: int) -> bytes:
        count = max(0, min(count, self.size - self._position))
        data = self.head[self._position :][:count]
        if count > len(data):
            self.file.seek(self.start + max(self._position - len(self.head), 0))
            data += self.file.read(count - len(data))
        self._position += len(data)
        return data

    def at(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from a position."""
        self.seek(position)
        return self.read(count)

    def find(self, pattern: bytes, position: int) -> int:
        """The first place from ``position`` on where a pattern matches, or the end."""
        while position < self.size:
            if found := re.search(pattern, self.at(position, BLOCK_BYTES + PATTERN_BYTES), re.DOTALL):
                return position + found.start()
            position += BLOCK_BYTES
        return self.size

    def split(self, pattern: bytes) -> list[Part]:
        """The parts that begin at the start and wherever a pattern matches."""
        starts = [0]
        while (start := self.find(pattern, starts[-1] + 1)) < self.size:
            starts.append(start)
        return [Part(self.file, *ends) for ends in pairwise([*starts, self.size])]


def find_parts(file: BinaryIO, name: str) -> list[Part]:
    """The parts of an audio file, to be decoded one after another; a file of an unknown kind is one part.

    Raises:
        AudioError: it is empty, or lacks some of what its header promises.
    """
    whole = Part(file, 0, file.seek(0, io.SEEK_END))
    if not whole.size:
        raise AudioError(f"{name} is empty")
    head = whole.at(0, 1024)
    if head[:3] == b"ID3":  # some programs put such a tag before any format
        untagged = Part(file, _id3_bytes(head), whole.size)
        if untagged.size > 0 and not re.match(FRAME + rb"|\0{4}", untagged.at(0, 4)):
            return find_parts(cast(BinaryIO, untagged), name)
    if head[:4] in CHUNKED:
        return _chunked_parts(whole, name) or [whole]
    if head[:4] == b"OggS":
        return _ogg_parts(whole, name)
    if head[:4] == b"fLaC":
        return whole.split(FIRST_BLOCK)
    if head[4:8] == b"ftyp":
        return whole.split(FIRST_BOX)
    if head[:4] == EBML:
        return _matroska_parts(whole, name)
    if head[:3] == b"ID3" or re.match(FRAME, head):
        return _mp3_parts(whole, name) or [whole]
    number = int.from_bytes
    total = {b".snd": number(head[4:8], "big") + number(head[8:12], "big"), b"riff": number(head[16:24], "little")}
    if whole.size < total.get(head[:4], 0) < 2**32 - 1:  # AU, W64
        raise incomplete(name, whole.size, total[head[:4]], "bytes")
    if nist := re.match(rb"NIST_1A.*sample_count -\w+ (\d+)", head, re.DOTALL):
        whole.num_samples = int(nist[1])
    return [whole]


CHUNKED = (b"RIFF", b"RF64", b"BW64", b"FORM", b"caff")  # WAV, long WAV by two names, AIFF, CAF


def _chunked_parts(whole: Part, name: str) -> list[Part]:
    """Files of chunks one after another; a chunk is an id, a size, and data, which all but CAF pad to an even size."""
    parts: list[Part] = []
    position, samples_end, magic = 0, 0, whole.at(0, 4)
    is_caf = magic == b"caff"
    order: Literal["big", "little"] = "big" if is_caf or magic == b"FORM" else "little"
    while re.match(rb"[ -~]{4}.{4}", head := whole.at(position, 12 if is_caf else 8), re.DOTALL):
        kind, size, data = head[:4], int.from_bytes(head[4:], order), position + len(head)
        if kind in CHUNKED:
            if parts:
                parts[-1].stop = position
            # libsndfile knows BW64 by the other name
            part = Part(whole.file, position + 4, whole.size, b"RF64" if kind == b"BW64" else kind)
            parts.append(part)
            magic, long_size, size = kind, int.from_bytes(whole.at(position + 28, 8), "little"), -4 if is_caf else 4
        elif kind in (b"data", b"SSND"):
            size, there = long_size if magic in (b"RF64", b"BW64") and size == 2**32 - 1 else size, whole.size - data
            following = whole.at(data + size + size % 2 * (not is_caf), 8)
            is_chunk = re.match(rb"[ -~]{4}", following) and int.from_bytes(following[4:], order) <= there
            killed = size <= HEAD_BYTES < there and not is_chunk
            if killed or (size > there and any(size in sizes for sizes in UNKNOWN_SIZES)):
                size = min(there, 256 ** len(head[4:]) - 1)
                part.head = b"RIFF" if part.head == b"RF64" else part.head  # whose size is elsewhere
                part.head += whole.at(part.start, position + 4 - part.start) + size.to_bytes(len(head[4:]), order)
                part.start = data
            elif size > there:
                raise incomplete(name, there, size, "bytes of samples")
            samples_end = data + size
        position = data + size + size % 2 * (not is_caf)
    if samples_end and position >= whole.size:  # only titles and other chunks follow
        parts[-1].titles = max(whole.size - samples_end, 0)
    return parts


EBML, SEGMENT, CLUSTER = bytes.fromhex("1A45DFA3"), bytes.fromhex("18538067"), bytes.fromhex("1F43B675")
FIRST_BOX, FIRST_BLOCK = rb"\0\0\0.ftyp", rb"fLaC[\0\x80]\0\0\x22"


def _matroska_parts(whole: Part, name: str) -> list[Part]:
    """Matroska files (also WebM) one after another; their decoder does not notice that the end is missing.

    A recorder does not know how long a segment or a cluster becomes, so the elements inside are passed over by their sizes.
    """
    starts, position, end, told = [], 0, 0, 0  # told: the end of the last segment of known size
    while position < whole.size:
        head = whole.at(position, 12)
        if head[:4] == EBML:
            starts.append(position)
        elif position == told:
            break
        id_bytes = 9 - head[0].bit_length()  # the first bit that is set tells how many, here and in sizes
        size_bytes = 9 - max(head[id_bytes:][:1], default=0).bit_length()
        unknown = 2 ** (7 * size_bytes) - 1  # this size means: not known
        size = int.from_bytes(head[id_bytes:][:size_bytes], "big") & unknown
        position += id_bytes + size_bytes
        end = max(end, position + size * (size != unknown))
        if head[:id_bytes] == SEGMENT and size != unknown:
            told = position + size
        position += size * (head[:id_bytes] not in (SEGMENT, CLUSTER))
    if end > whole.size:
        raise AudioError(f"{name} is damaged: its end is missing")
    return [Part(whole.file, *ends) for ends in pairwise([*starts, position])]


# ---- Ogg --------------------------------------------------------------------------------------------------------------

FIRST_PAGE = rb"OggS\0[\2\3]\0{8}"
PAGE_BYTES = 2**16  # no page is longer
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_parts(whole: Part, name: str) -> list[Part]:
    """One part per link, as libsndfile reads only the first, and does not notice that its last page is missing.

    What is missing further in, libsndfile's number of samples tells; behind the head of a recorded broadcast it is none.
    """
    parts: list[Part] = []
    is_page = False  # whether the link before is one page
    for link in whole.split(FIRST_PAGE):
        if is_page:  # all streams of a film have their first pages before all others
            parts[-1].stop = link.stop
        else:
            parts.append(link)
        is_page = link.size == _page_size(link.at(0, 27 + 255))
    for part in parts:
        tail = part.at(max(0, part.size - PAGE_BYTES), PAGE_BYTES)
        page = tail[tail.rfind(b"OggS\0") :]
        missing = _page_size(page) - len(page)
        page = page[: _page_size(page)]
        last = page[5:6] >= b"\4"  # the bit of the last page is the highest one of three
        if missing > 0 or (missing and not last) or not _is_whole(page):
            raise AudioError(f"{name} is damaged: its end is missing")
        if not last:
            part.note = "an Ogg stream in it has no last page and may be cut short"
    return parts


def _page_size(page: bytes) -> int:
    return 27 + sum(page[26:27]) + sum(page[27:][: sum(page[26:27])])


def _is_whole(page: bytes) -> bool:
    """Whether its checksum is right: zlib's CRC-32, but with bits in reverse order, zeros in its place, and no inversion."""
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(REVERSED_BITS), 2**32 - 1) ^ 2**32 - 1
    return crc.to_bytes(4, "big").translate(REVERSED_BITS) == page[22:26]


# ---- MP3 --------------------------------------------------------------------------------------------------------------

FRAME = rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]"  # how a frame begins
# the first frame of most encoders has no audio, but flags and, if both lowest ones are set, the numbers of frames and bytes
INFO = FRAME + rb".(?:.{9}|.{17}|.{32})(?:..)?(?:Xing|Info)\0\0\0(.).{4}(.{4})"
LEAST_BYTES = 512  # more than most frames: what is shorter is no stream


def _mp3_parts(whole: Part, name: str) -> list[Part]:
    """One part per stream that an encoder wrote, with or without tags between them; nothing if the file has no frames there.

    A stream without an Info frame, as of a broadcast, ends where the next Info frame is.
    """
    parts: list[Part] = []
    start = 0
    while whole.size - start > LEAST_BYTES:
        head = whole.at(start, PATTERN_BYTES)
        info = re.match(INFO, head, re.DOTALL)
        size = int.from_bytes(info[2], "big") if info and info[1][0] & 3 == 3 else 0
        behind = re.split(INFO, whole.at(start + size, 4096), maxsplit=1, flags=re.DOTALL)[0]
        if size and behind.count(head[:2]) > 2 and not re.match(FRAME + rb"|TAG|ID3|APE|LYR", behind):
            size = 0  # frames were put in since, as advertisements into a podcast
        if head[:3] == b"TAG":
            start += 128
        elif head[:8] == b"APETAGEX":
            start += 32 + int.from_bytes(head[12:16], "little")
        elif head[:3] == b"ID3":
            start += _id3_bytes(head)
        elif size > whole.size - start:
            raise incomplete(name, whole.size - start, size, "bytes of MP3")
        elif size:
            parts.append(Part(whole.file, start, start + size))
            start += size
        elif re.match(FRAME, head):
            stop = whole.find(INFO, start + 1)
            parts.append(Part(whole.file, start, stop, _endless(head), 0))
            start = stop
        else:  # other tags, or zeros
            following = whole.find(INFO, start)
            if parts and following - start > MOST_BEHIND:
                parts[-1].note = f"{following - start:,} bytes behind its audio are left out"
            start = following
    return parts


def _id3_bytes(head: bytes) -> int:
    return 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:10]))


def _endless(frame: bytes) -> bytes:
    """An Info frame that announces very many frames like this one; else libsndfile guesses how many, and stops there."""
    bits = int.from_bytes(frame[:4], "big")
    first_version, mono = bits >> 19 & 3 == 3, bits >> 6 & 3 == 3
    hertz = (44100, 48000, 32000, 32000)[bits >> 10 & 3] >> (2, 0, 1, 0)[bits >> 19 & 3]
    num_bytes = (144 * 128_000 if first_version else 72 * 80_000) // hertz
    head = (bits & ~0xF200 | 0x19000).to_bytes(4, "big")  # without a checksum, of 128 or 80 kbit/s
    info = head.ljust(((21, 13), (36, 21))[first_version][mono], b"\0") + b"Info\0\0\0\1\x7f\xff\xff\xff"
    return info.ljust(num_bytes, b"\0")
