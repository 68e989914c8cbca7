"""Do codes stay when the speech stays? Share of codes that change under changes that a listener would not call one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codec.errors import CodecError
from codec.evaluation.metrics import MetricError
from codec.model import Codec

GAIN_DB = -6.0


def shifted(codec: Codec, waveform: Tensor, codes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The input without its first ``share`` of a hop: frames are compared at the same index."""
    later = waveform[int(share * codec.hop_length) :]
    if len(later) == 0:
        raise MetricError("shorter than the shift")
    return codes, codec.encode(later, codec.sample_rate, len(codes))[0]


def scaled(codec: Codec, waveform: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The input 6 dB quieter."""
    return codes, codec.encode(waveform * 10 ** (GAIN_DB / 20), codec.sample_rate, len(codes))[0]


def sliced(codec: Codec, waveform: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The middle half of the input, cut at whole frames, encoded by itself; its edges count."""
    quarter = codes.shape[-1] // 4
    if quarter == 0:
        raise MetricError("shorter than four frames")
    start, stop = quarter, codes.shape[-1] - quarter
    part = waveform[start * codec.hop_length : stop * codec.hop_length]
    return codes[:, start:stop], codec.encode(part, codec.sample_rate, len(codes))[0]


def encoded_again(codec: Codec, waveform: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The codec's own output as its input."""
    return codes, codec.encode(codec.decode(codes[None]), codec.sample_rate, len(codes))[0]


Change = Callable[[Codec, Tensor, Tensor], tuple[Tensor, Tensor]]

CHANGES: dict[str, tuple[str, Change]] = {
    "shift_quarter": ("input starts a quarter of a hop later", lambda c, w, k: shifted(c, w, k, 0.25)),
    "shift_half": ("input starts half a hop later", lambda c, w, k: shifted(c, w, k, 0.5)),
    "scale": ("input 6 dB quieter", scaled),
    "slice": ("middle half of the input encoded by itself", sliced),
    "again": ("decoded and encoded again", encoded_again),
}


@torch.no_grad()
def changed_codes(codec: Codec, waveform: Tensor, codes: Tensor) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Share of codes that differ, stage by stage ``[K]``, for each of :data:`CHANGES`; and why some have no value.

    Args:
        codec: the model.
        waveform: ``[T]`` at the model's rate.
        codes: its codes ``[K, N]``.
    """
    values, failures = {}, {}
    for name, (_, change) in CHANGES.items():
        try:
            before, after = (part.cpu() for part in change(codec, waveform, codes))
        except CodecError as error:  # too short, or a decoded level that no encoder takes
            failures[name] = str(error)
            continue
        frames = min(before.shape[-1], after.shape[-1])
        different = before[:, :frames] != after[:, :frames]
        values[name] = different.double().mean(dim=1).tolist()
    return values, failures
