"""Spectrograms as small PNG files, all of one utterance on the same axes and colour scale."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from codec.evaluation.systems import fit, read_at
from codec.spectral import hz_to_mel, mel_filterbank, stft

WIDTH, HEIGHT = 480, 160  # pixels: time steps and mel bands
RANGE_DB = 80.0  # below the loudest point of the reference
LEVELS = 64  # colours; more would only make the files larger
# anchors of a map whose lightness rises evenly, black over purple and orange to pale yellow
ANCHORS = (
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122),
    (229, 80, 100), (251, 135, 97), (254, 194, 135), (252, 253, 191),
)  # fmt: skip


def spectrograms(paths: Sequence[Path]) -> tuple[list[bytes], int]:
    """PNG images (480 x 160) of audio files, and the sample rate in Hz whose half is their upper edge.

    The first path is the reference: length, sample rate and the top of the colour scale are its own. Raises AudioError or
    OSError where a file cannot be read.
    """
    rate = soundfile.info(paths[0]).samplerate
    waveforms = [read_at(path, rate) for path in paths]
    loudness = [_mel_decibels(fit(waveform, len(waveforms[0])), rate) for waveform in waveforms]
    top = loudness[0].max()
    return [_png(np.clip((image - top) / RANGE_DB + 1, 0, 1)) for image in loudness], rate


def height_of(frequency: float, sample_rate: int) -> float:
    """Where ``frequency`` (Hz) lies in such an image: 0 at its lower edge, 1 at its upper."""
    mel, top = hz_to_mel(torch.tensor([frequency, sample_rate / 2])).tolist()
    return float(mel / top)


def _mel_decibels(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """Mel power in dB, ``[HEIGHT, WIDTH]``, low bands last."""
    n_fft = 2 ** round(np.log2(rate * 0.04))  # 40 ms show the harmonics of a voice
    hop = max(1, min(n_fft // 4, len(samples) // WIDTH))
    with torch.no_grad():
        power = stft(torch.from_numpy(samples)[None], n_fft, hop)[0].abs().square()
        mel = power @ mel_filterbank(rate, n_fft, HEIGHT)
        mel = torch.nn.functional.adaptive_avg_pool1d(mel.t()[None], WIDTH)[0]
        decibels: NDArray[np.float64] = (10 * torch.log10(mel.double() + 1e-12)).flip(0).numpy()
    return decibels


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
