"""The networks that tell recorded from decoded speech in adversarial training. They are not part of a trained model.

Two families, as in most neural vocoders and codecs: period discriminators look at the waveform folded at a period,
resolution discriminators at complex spectrograms. All activations lie channels-last in memory, which is the natural
layout of a folded waveform and of a spectrogram's real and imaginary parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from codec.spectral import stft
from codec.training.config import DiscriminatorConfig, split_bands

SLOPE = 0.1  # of the leaky ReLUs, as in HiFi-GAN
PERIOD_LAYERS = 5  # HiFi-GAN's: all but the last with stride 3, each four times as wide as the one before
PERIOD_GROWTH = 4


class DiscriminatorOutput(NamedTuple):
    """The output of one discriminator for a batch."""

    logits: Tensor  # [B, 1, H, W], a score for every place of its input; high means recorded
    features: list[Tensor]  # the activations of its hidden layers, each [B, C, H, W]


Outputs = list[DiscriminatorOutput]  # one per discriminator


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
        self.bands = split_bands(n_fft, band_edges)
        shapes = [(2, 9, stride), *[(channels, 9, 2)] * 3, (channels, 3, 1)]  # channels in, kernel, step along the bins
        self.stacks = nn.ModuleList(
            _Layers(_convolution(before, channels, (3, kernel), (1, step)) for before, kernel, step in shapes)
            for _ in self.bands
        )
        self.output = _convolution(channels, 1, (3, 3), (1, 1))

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """``[B, 1, T]`` -> logits ``[B, 1, N, about bins / (8 stride)]`` with ``N = 4 T / n_fft + 1``."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = stft(waveform.squeeze(1).float(), self.n_fft, self.n_fft // 4)
        # the root of the window's energy: white noise of unit variance gives bins of unit variance at any n_fft
        scale = (3 / 8 * self.n_fft) ** -0.5
        image = torch.view_as_real(spectrum * scale).permute(0, 3, 1, 2)
        per_band = [stack(image[..., low:high]) for stack, (low, high) in zip(self.stacks, self.bands, strict=True)]
        logits = self.output(torch.cat([features[-1] for features in per_band], dim=-1))
        return DiscriminatorOutput(logits, [feature for features in per_band for feature in features])


class Discriminators(nn.Module):
    """All discriminators of a configuration, periods first."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = config.period_channels, config.period_max_channels
        periods = [PeriodDiscriminator(period, *widths) for period in config.periods]
        shape = config.resolution_channels, config.resolution_stride, config.band_edges
        resolutions = [ResolutionDiscriminator(n_fft, *shape) for n_fft in config.resolutions]
        self.members = nn.ModuleList([*periods, *resolutions])

    def forward(self, waveform: Tensor) -> Outputs:
        """``[B, 1, T]`` -> one output per discriminator."""
        return [member(waveform) for member in self.members]


def _convolution(before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]) -> nn.Module:
    """A weight-normed convolution that keeps the activations' size through the leaky ReLUs (He et al., 2015).

    PyTorch's default start shrinks them about threefold a layer, until the logits hardly depend on the input.
    """
    layer = nn.Conv2d(before, after, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2))
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.constant_(layer.get_parameter("bias"), 0)
    return weight_norm(layer)
