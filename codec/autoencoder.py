"""Waveform to latents and back: the convolutional encoder, and the decoder with its inverse STFT."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig
from codec.layers import Downsample, Layer, blocks, initialize
from codec.windows import reach


class Encoder(nn.Module):
    """``[B, 1, T] -> [B, D, N]`` with ``N = T / hop_length``; T must be a multiple of the hop length.

    ``context`` holds the frames on either side beyond which a change of the waveform cannot reach a latent frame.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        encoder, causal = config.encoder, config.causal
        self.stages = nn.ModuleList()
        layers: list[Layer] = []
        channels = 1
        for stride, width, depth in zip(encoder.strides, encoder.widths, encoder.depths, strict=True):
            look_ahead = 0 if causal else depth * (encoder.kernel_size // 2)
            down = Downsample(channels, width, stride, causal)
            stage = [down, *blocks(width, depth, encoder.kernel_size, look_ahead)]
            self.stages.append(nn.Sequential(*stage))
            layers += stage
            channels = width
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.output = nn.Linear(channels, config.latent_dim)
        self.context = reach((layer.left, layer.right, layer.stride) for layer in layers)
        initialize(self)

    def forward(self, waveform: Tensor) -> Tensor:
        x = waveform.transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        latents: Tensor = self.output(self.norm(x)).transpose(1, 2)
        return latents


class ISTFTHead(Layer):
    """Log-magnitude and phase of each frame, then an inverse STFT: ``[B, N, C] -> [B, N * hop]`` (as in Vocos).

    Frame i covers the samples from ``i * hop - (n_fft - hop) / 2`` on; from ``i * hop`` on if ``causal``.
    """

    window: Tensor

    def __init__(self, channels: int, n_fft: int, hop_length: int, causal: bool) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.overlap = n_fft, hop_length, n_fft // hop_length
        self.causal = causal
        others = self.overlap - 1  # further hops that a frame's window covers beside its own
        self.left, self.right = (others, 0) if causal else (-(-others // 2), -(-others // 2))
        self.channels, self.output = channels, nn.Linear(channels, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        audio = self._overlap_add(self._frames(x))
        envelope = self._overlap_add(self.window.square().expand(1, x.shape[1], -1), before=self.causal)
        start = 0 if self.causal else (self.n_fft - self.hop_length) // 2
        stop = start + x.shape[1] * self.hop_length
        return audio[:, start:stop] / envelope[:, start:stop]

    @property
    def offset(self) -> int:
        """Samples by which a frame's window begins before the frame."""
        return 0 if self.causal else (self.n_fft - self.hop_length) // 2

    def push_frames(self, x: Tensor, index: Tensor, total: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames ``[B, n, C]`` of a stream -> ``[B, n * hop]``, ``offset`` samples behind them, and what to hold.

        Args:
            x: frames whose numbers in their rows are ``index [B, n]``; those before 0 and from ``total [B, 1]`` on are none.
            held: ``[2, B, n_fft - hop]``, the sums of windowed frames and of squared windows that later frames add to.
        """
        exists = ((index >= 0) & (index < total))[..., None]
        frames, windows = self._frames(x) * exists, exists * self.window.square()
        count, rest = x.shape[1], self.n_fft - self.hop_length
        sums = F.pad(held, (0, count * self.hop_length))  # [2, B, n_fft - hop + n * hop]
        sums = sums + self._overlap_add(torch.cat([frames, windows])).unflatten(0, (2, -1))
        audio, envelope = sums[..., : count * self.hop_length]
        if self.causal:  # as if frames had come before the first
            envelope = self.window.square().view(self.overlap, self.hop_length).sum(dim=0).repeat(count)
        return audio / envelope.clamp(min=1e-11), sums[..., sums.shape[-1] - rest :]

    def _frames(self, x: Tensor) -> Tensor:
        """Windowed frames of the waveform, ``[B, N, C] -> [B, N, n_fft]``."""
        log_magnitude, phase = self.output(x).float().chunk(2, dim=-1)
        magnitude = torch.exp(log_magnitude.clamp(max=math.log(100.0)))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        return torch.fft.irfft(spectrum, n=self.n_fft, dim=-1) * self.window

    def _overlap_add(self, frames: Tensor, before: bool = False) -> Tensor:
        """Sum ``[B, N, n_fft]`` at steps of the hop; ``before`` counts in the frames that would precede the first."""
        batch, count, _ = frames.shape
        extra = self.overlap - 1
        if before:
            frames = torch.cat([frames[:, :1].expand(-1, extra, -1), frames], dim=1)
            count += extra
        parts = frames.reshape(batch, count, self.overlap, self.hop_length).unbind(2)
        total = F.pad(parts[0], (0, 0, 0, extra))
        for shift, part in enumerate(parts[1:], start=1):
            total = total + F.pad(part, (0, 0, shift, extra - shift))
        total = total[:, extra:] if before else total
        return total.reshape(batch, -1)


class Decoder(nn.Module):
    """ConvNeXt blocks at the frame rate and an inverse-STFT head: ``[B, D, N] -> [B, 1, N * hop_length]``.

    ``context`` holds the frames on either side beyond which a change of the latents cannot reach a frame of the waveform.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        decoder = config.decoder
        look_ahead, causal_head = config.decoder_look_ahead
        self.input = nn.Linear(config.latent_dim, decoder.width)
        layers = blocks(decoder.width, decoder.depth, decoder.kernel_size, look_ahead)
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = ISTFTHead(decoder.width, decoder.n_fft, config.hop_length, causal_head)
        self.context = reach((layer.left, layer.right, layer.stride) for layer in [*layers, self.head])
        initialize(self)

    def forward(self, latents: Tensor) -> Tensor:
        frames = self.norm(self.blocks(self.input(latents.transpose(1, 2))))  # [B, N, width]
        waveform: Tensor = self.head(frames).unsqueeze(1)
        return waveform
