"""Do codes stay when the speech stays? The share of codes that change under changes that a listener would not call one."""

from __future__ import annotations

from torch import Tensor

from codec.errors import CodecError
from codec.evaluation.metrics import MetricError
from codec.model import Codec

CHANGES = {
    "shift_quarter": "input starts a quarter of a hop later",
    "shift_half": "input starts half a hop later",
    "scale": "input 6 dB quieter",
    "slice": "middle half of the input encoded by itself",
    "again": "decoded and encoded again",
}
SHIFTS = {"shift_quarter": 4, "shift_half": 2}  # by this part of a hop


def changed_codes(codec: Codec, waveform: Tensor, codes: Tensor) -> dict[str, list[float] | str]:
    """For each of :data:`CHANGES`, the share of codes that differ per stage, ``[K]``, or why there is none.

    Of a ``waveform [T]`` at the model's rate and its ``codes [K, N]``. Frames are compared at the same index; of a slice, cut
    at whole frames, its edges count too.
    """
    shares: dict[str, list[float] | str] = {}
    for name in CHANGES:
        try:
            changed, before = _changed(name, codec, waveform, codes)
            after = codec.encode(changed, codec.sample_rate, len(codes))[0].cpu()
        except CodecError as error:  # too short, or a decoded level that no encoder takes
            shares[name] = str(error)
            continue
        frames = min(before.shape[-1], after.shape[-1])
        shares[name] = (before[:, :frames] != after[:, :frames]).double().mean(dim=1).tolist()
    return shares


def _changed(name: str, codec: Codec, waveform: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The changed input, and the codes of the original to compare its codes with."""
    hop, frames = codec.hop_length, codes.shape[-1]
    if name in SHIFTS:
        if len(waveform) <= hop // SHIFTS[name]:
            raise MetricError("shorter than the shift")
        return waveform[hop // SHIFTS[name] :], codes
    if name == "slice":
        if frames < 4:
            raise MetricError("shorter than four frames")
        start, stop = frames // 4, frames - frames // 4
        return waveform[start * hop : stop * hop], codes[:, start:stop]
    return (waveform * 10 ** (-6 / 20) if name == "scale" else codec.decode(codes[None])), codes
