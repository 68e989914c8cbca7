"""Damaged and hostile files for the readers of ``.codes`` and of audio, which read them or refuse them by a CodecError.

    python tests/fuzz/run.py                          some thousand mutations of good files for each
    python tests/fuzz/run.py --long 100               a hundred times as many

Mutation N of a target is always the same; one that fails is named by its number: ``--first N`` begins there.
"""

import argparse
import io
import logging
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import soundfile

from codec import audio, container
from codec.audio import MP3_FRAME
from codec.container import Header
from codec.errors import CodecError

NUMBER = {"container": 5000, "audio": 1000}  # of mutations; those of audio take longer
CHECKSUMS_LEFT_OUT = patch.object(container, "zlib", SimpleNamespace(crc32=lambda data: 0))
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def read_container(data: bytes) -> bool:
    """Whether it is read; then what is written of it holds the same. Checksums are left out: with them, little is read."""
    with CHECKSUMS_LEFT_OUT:
        try:
            header, codes = container.loads(data)
        except CodecError:
            return False
        assert codes.shape == (header.num_quantizers, header.num_frames)
        again, same = container.loads(container.dumps(header, codes))
        assert again == header and np.array_equal(same, codes)
    return True


def read_audio(data: bytes) -> bool:
    """Whether it is read: then samples are finite, and as many as are counted without decoding them, but for an MP3 frame."""
    try:
        with audio.AudioReader(io.BytesIO(data), "a file") as reader:
            blocks = list(reader.blocks())
            assert reader.num_samples == sum(map(len, blocks)) and all(np.isfinite(block).all() for block in blocks)
            length, rate = reader.num_samples, reader.sample_rate
    except CodecError:
        return False
    measured = audio.measure(io.BytesIO(data))
    assert 0 < measured[0] <= length + MP3_FRAME and measured[1] == rate
    return True


TARGETS: dict[str, Callable[[bytes], bool]] = {"container": read_container, "audio": read_audio}


def seeds(target: str) -> list[bytes]:
    """Good files."""
    rng, files = np.random.default_rng(0), []
    if target == "container":
        with CHECKSUMS_LEFT_OUT:
            for frames, stages, size in ((0, 1, 2), (3, 1, 65536), (10, 8, 1024), (1030, 2, 3)):
                header = Header("name", "01" * 16, 24000, 48000, 640 * frames, 320, stages, size)
                files.append(container.dumps(header, rng.integers(0, size, (stages, frames))))
        return files
    noise = (0.1 * rng.standard_normal((9000, 2))).astype(np.float32)
    kinds = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16")]
    kinds += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
    kinds += [("AIFF", "PCM_24"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("CAF", "ALAC_16")]
    for index, (kind, subtype) in enumerate(kinds):
        file = io.BytesIO()
        soundfile.write(file, noise[:, : 1 + index % 2], 24000, format=kind, subtype=subtype)
        files.append(file.getvalue())
    return files


def mutated(files: Sequence[bytes], number: int) -> bytes:
    """One of the files with some bytes changed, taken away, doubled, or replaced by a number that is often wrong."""
    rng = random.Random(number)
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        reach = min(len(data), 80) if rng.random() < 0.5 else len(data)  # half of them in the headers
        start = rng.randrange(reach + 1)
        stop = start + rng.choice((1, 1, 2, 4, 8, rng.randrange(1000)))
        size = rng.choice((1, 2, 4, 8))
        edge = (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
        kind = rng.randrange(7)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            data[start : start + size] = edge
        elif kind == 3:
            del data[start:stop]
        elif kind == 4:
            data[start:start] = data[start:stop]
        elif kind == 5:
            del data[rng.randrange(len(data) + 1) :]
        else:
            other = rng.choice(files)
            data[start:stop] = other[start:] if rng.random() < 0.5 else other[start:stop]
    return bytes(data)


def fuzz(target: str, first: int, number: int) -> int:
    """Try mutations; returns how many of them were read. One that fails is named by its number."""
    files, read = seeds(target), 0
    assert all(map(TARGETS[target], files)), "the seeds are good"
    for index in range(first, first + number):
        data = mutated(files, index)
        try:
            read += TARGETS[target](data)
        except BaseException:  # or ctrl-C, for one that hangs
            print(f"{target} {index} fails", file=sys.stderr)
            raise
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--long", type=int, default=1, metavar="N", help="N times as many mutations")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first mutation")
    args = parser.parse_args()
    warnings.simplefilter("error")
    logging.disable()
    for target in args.targets or TARGETS:
        number = NUMBER[target] * args.long
        print(f"{target}: {number} mutations, {fuzz(target, args.first, number)} of them read, all others refused")


if __name__ == "__main__":
    main()
