"""The report's players, and their spectrograms as small PNG files, all of one utterance on the same axes and colours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from codec.audio import read_samples
from codec.evaluation.results import Example, Results, Row
from codec.spectral import hz_to_mel, mel_decibels

WIDTH, HEIGHT = 480, 160  # pixels: time steps and mel bands
MARKED = (500, 1000, 4000)  # Hz, named at the edge of a spectrogram
RANGE_DB = 80.0  # below the loudest point of the reference
FAINT_DB = -40.0  # taken for it where all is fainter, or silence would shine
LEVELS = 64  # colours; more would only make the files larger
# anchors of a map whose lightness rises evenly, black over purple and orange to pale yellow
ANCHORS = (
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122),
    (229, 80, 100), (251, 135, 97), (254, 194, 135), (252, 253, 191),
)  # fmt: skip


# name and path, beside which its spectrogram lies as PNG, and values where measured
Sound = tuple[str, PurePosixPath, Row | None]
# an example; its sounds, the original first; frequencies to name by their height in percent; the headline system's values
Listening = tuple[Example, list[Sound], list[tuple[str, float]], Row | None]


def draw_examples(results: Results, rows: Sequence[Row], folder: Path) -> list[Listening]:
    """Write the spectrograms of all examples beside their audio, and list the players that show them."""
    measured = {(row.id, row.system): row for row in rows}
    listed = []
    for example in results.examples or ():
        sounds: list[Sound] = [("Original", PurePosixPath(example.reference), None)]
        systems = [system for system in results.systems if system.id in example.systems]
        sounds += [(s.name, PurePosixPath(example.systems[s.id]), measured.get((example.id, s.id))) for s in systems]
        paths = [folder / path for _, path, _ in sounds]
        images, rate = spectrograms(paths)
        for path, image in zip(paths, images, strict=True):
            path.with_suffix(".png").write_bytes(image)
        marks = [(f"{f / 1000:g}k", 100 * height_of(f, rate)) for f in MARKED if f < 0.45 * rate]
        listed.append((example, sounds, marks, measured.get((example.id, results.headline.id))))
    return listed


def spectrograms(paths: Sequence[Path]) -> tuple[list[bytes], int]:
    """PNG images (480 x 160) of mono files of one length and sample rate, which is also returned, in Hz.

    Half of it is the images' upper edge; the first file has the top of their colour scale.
    """
    sounds, (rate, *_) = zip(*map(read_samples, paths), strict=True)
    loudness = [mel_decibels(torch.from_numpy(sound), rate, WIDTH, HEIGHT).numpy() for sound in sounds]
    top = max(loudness[0].max(), FAINT_DB)
    return [_png(np.clip((image - top) / RANGE_DB + 1, 0, 1)) for image in loudness], rate


def height_of(frequency: float, sample_rate: int) -> float:
    """Where ``frequency`` (Hz) lies in such an image: 0 at its lower edge, 1 at its upper."""
    mel, top = hz_to_mel(torch.tensor([frequency, sample_rate / 2])).tolist()
    return float(mel / top)


def _png(image: NDArray[np.float64]) -> bytes:
    """A PNG file with a palette, of values 0 to 1, ``[height, width]``."""
    at = np.linspace(0, 1, len(ANCHORS))
    palette = np.stack([np.interp(np.linspace(0, 1, LEVELS), at, channel) for channel in zip(*ANCHORS, strict=True)], 1)
    pixels = np.round(image * (LEVELS - 1)).astype(np.uint8)
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # every row begins with its filter, 0: none

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 3, 0, 0, 0))
        + chunk(b"PLTE", np.round(palette).astype(np.uint8).tobytes())
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
