"""The networks that tell recorded from decoded speech in adversarial training. They are no part of a trained model.

Two families, as in most neural vocoders and codecs: period discriminators look at the waveform folded at a period,
resolution discriminators at complex spectrograms. All activations lie channels-last in memory, which is the natural
layout of a folded waveform and of a spectrogram's real and imaginary parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from codec.config import require
from codec.spectral import stft

SLOPE = 0.1  # of the leaky ReLUs, as in HiFi-GAN
PERIOD_LAYERS = 5  # HiFi-GAN's: all but the last with stride 3, each four times as wide as the one before
PERIOD_GROWTH = 4


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The set of discriminators. The defaults suit a CPU: they cost about as much as the default codec's own step.

    Attributes:
        periods: in samples, one period discriminator each; empty for none.
        period_channels: width of a period discriminator's first layer; it grows fourfold per layer.
        period_max_channels: where that growth ends.
        resolutions: n_fft of the resolution discriminators, hop a quarter of it; empty for none.
        resolution_channels: width of all their layers.
        resolution_stride: step of their first layer along the frequencies. The literature has 1; with 4 a discriminator
            costs half as much or less, and learned faster in short trials.
        band_edges: where a resolution discriminator splits the spectrum, in shares of half the sample rate; every band
            has weights of its own. Empty: one band.

    The size used in the literature on GPUs is ``periods=(2, 3, 5, 7, 11), period_channels=32, period_max_channels=1024``
    (HiFi-GAN) with ``resolutions=(2048, 1024, 512), resolution_channels=32, resolution_stride=1`` and these band edges
    (Descript Audio Codec).
    """

    periods: tuple[int, ...] = (2, 5, 11)
    period_channels: int = 4
    period_max_channels: int = 64
    resolutions: tuple[int, ...] = (2048, 512)
    resolution_channels: int = 8
    resolution_stride: int = 4
    band_edges: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        periods, resolutions, edges = self.periods, self.resolutions, (0.0, *self.band_edges, 1.0)
        require(bool(periods or resolutions), "periods and resolutions must not both be empty")
        require(all(period >= 1 for period in periods), f"periods must be 1 or more, not {list(periods)}")
        require(len(set(periods)) == len(periods), "periods must differ from each other")
        require(self.period_channels >= 1, f"period_channels must be 1 or more, not {self.period_channels}")
        grows = self.period_max_channels >= self.period_channels
        require(grows, f"period_max_channels must not be below period_channels {self.period_channels}")
        usable = all(n_fft >= 4 and n_fft % 4 == 0 for n_fft in resolutions)
        require(usable, f"resolutions must be multiples of 4, not {list(resolutions)}")
        require(len(set(resolutions)) == len(resolutions), "resolutions must differ from each other")
        require(self.resolution_channels >= 1, f"resolution_channels must be 1 or more, not {self.resolution_channels}")
        stride = self.resolution_stride
        require(1 <= stride <= 9, f"resolution_stride must be from 1 to 9, the kernel's width, not {stride}")
        rising = all(low < high for low, high in pairwise(edges))
        require(rising, f"band_edges must rise and lie between 0 and 1, not {list(self.band_edges)}")
        for n_fft in resolutions:
            filled = all(low < high for low, high in _bands(n_fft, self.band_edges))
            require(filled, f"resolutions: {n_fft} is too short to give each band of band_edges a bin")


def _bands(n_fft: int, edges: tuple[float, ...]) -> list[tuple[int, int]]:
    """First bin and one past the last of each band; together they hold every bin once."""
    bins = n_fft // 2 + 1
    return list(pairwise([0, *(int(edge * bins) for edge in edges), bins]))


class DiscriminatorOutput(NamedTuple):
    """What one discriminator says of a batch.

    Attributes:
        logits: a score for every place that it looks at, ``[B, 1, H, W]``; high means recorded.
        features: the activations of its hidden layers, each ``[B, C, H, W]``.
    """

    logits: Tensor
    features: list[Tensor]


class _Layers(nn.ModuleList):
    """Convolutions in a row, a leaky ReLU behind each: returns the activations of every one."""

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return features


class PeriodDiscriminator(nn.Module):
    """Sees every ``period``-th sample as one signal: the waveform folded to ``[B, 1, T / period, period]``.

    Convolutions run along the first axis only, so columns share weights and never mix. After HiFi-GAN (Kong et al.,
    arXiv 2010.05646), section 2.3.
    """

    def __init__(self, period: int, channels: int, max_channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [min(channels * PERIOD_GROWTH**i, max_channels) for i in range(PERIOD_LAYERS)]
        strides = [3] * (PERIOD_LAYERS - 1) + [1]
        self.layers = _Layers(
            _convolution(before, after, (5, 1), (stride, 1))
            for before, after, stride in zip([1, *widths[:-1]], widths, strides, strict=True)
        )
        self.output = _convolution(widths[-1], 1, (3, 1), (1, 1))

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """``[B, 1, T]``, T longer than the period -> logits ``[B, 1, about T / (81 period), period]``."""
        padded = F.pad(waveform, (0, -waveform.shape[-1] % self.period), mode="reflect")
        folded = padded.reshape(len(padded), -1, self.period, 1).permute(0, 3, 1, 2)
        features: list[Tensor] = self.layers(folded)
        return DiscriminatorOutput(self.output(features[-1]), features)


class ResolutionDiscriminator(nn.Module):
    """Sees a complex spectrogram as an image of two channels, real and imaginary part, ``[B, 2, N, bins]``.

    The spectrum is split into bands with convolutions of their own, joined for the logits. Complex spectrograms with
    bands after the Descript Audio Codec (Kumar et al., arXiv 2306.06546), section 3.3; several resolutions as in
    UnivNet (Jang et al., arXiv 2106.07889).
    """

    def __init__(self, n_fft: int, channels: int, stride: int, band_edges: tuple[float, ...]) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.bands = _bands(n_fft, band_edges)
        self.stacks = nn.ModuleList(
            _Layers(
                [
                    _convolution(2, channels, (3, 9), (1, stride)),
                    *(_convolution(channels, channels, (3, 9), (1, 2)) for _ in range(3)),
                    _convolution(channels, channels, (3, 3), (1, 1)),
                ]
            )
            for _ in self.bands
        )
        self.output = _convolution(channels, 1, (3, 3), (1, 1))

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """``[B, 1, T]`` -> logits ``[B, 1, N, about bins / (8 stride)]`` with ``N = 4 T / n_fft + 1``."""
        image = self._spectrogram(waveform)
        per_band = [stack(image[..., low:high]) for stack, (low, high) in zip(self.stacks, self.bands, strict=True)]
        logits = self.output(torch.cat([features[-1] for features in per_band], dim=-1))
        return DiscriminatorOutput(logits, [feature for features in per_band for feature in features])

    def _spectrogram(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = stft(waveform.squeeze(1).float(), self.n_fft, self.n_fft // 4)
        # the root of the window's energy: white noise of unit variance gives bins of unit variance at any n_fft
        scale = (3 / 8 * self.n_fft) ** -0.5
        return torch.view_as_real(spectrum * scale).permute(0, 3, 1, 2)


class Discriminators(nn.Module):
    """All discriminators of a configuration, periods first."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(p, config.period_channels, config.period_max_channels) for p in config.periods]
            + [
                ResolutionDiscriminator(n, config.resolution_channels, config.resolution_stride, config.band_edges)
                for n in config.resolutions
            ]
        )

    def forward(self, waveform: Tensor) -> list[DiscriminatorOutput]:
        """``[B, 1, T]`` -> one output per discriminator."""
        return [member(waveform) for member in self.members]


def split_outputs(
    outputs: list[DiscriminatorOutput], batch: int
) -> tuple[list[DiscriminatorOutput], list[DiscriminatorOutput]]:
    """Split the outputs on one batch of recorded, then decoded speech, ``batch`` items each, into (recorded, decoded)."""
    recorded, decoded = (
        [DiscriminatorOutput(o.logits[half], [feature[half] for feature in o.features]) for o in outputs]
        for half in (slice(None, batch), slice(batch, None))
    )
    return recorded, decoded


def _convolution(before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]) -> nn.Module:
    """A weight-normed convolution that keeps the activations' size through the leaky ReLUs (He et al., 2015).

    PyTorch's default start shrinks them about threefold a layer, until the logits hardly depend on the input.
    """
    layer = nn.Conv2d(before, after, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2))
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    normed: nn.Module = weight_norm(layer)
    return normed
