"""Waveform to latents and back: the convolutional encoder and two decoders."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig
from codec.layers import Downsample, Upsample, blocks, initialise
from codec.windows import Context


class Encoder(nn.Module):
    """``[B, 1, T] -> [B, D, N]`` with ``N = T / hop_length``; T must be a multiple of the hop length."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        encoder, causal = config.encoder, config.causal
        self.stages = nn.ModuleList()
        channels = 1
        for stride, width, depth in zip(encoder.strides, encoder.widths, encoder.depths, strict=True):
            down = Downsample(channels, width, stride, causal)
            self.stages.append(nn.Sequential(down, *blocks(width, depth, encoder.kernel_size, causal)))
            channels = width
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.output = nn.Linear(channels, config.latent_dim)
        initialise(self)

    def forward(self, waveform: Tensor) -> Tensor:
        x = waveform.transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        latents: Tensor = self.output(self.norm(x)).transpose(1, 2)
        return latents


class ISTFTHead(nn.Module):
    """Log-magnitude and phase of each frame, then an inverse STFT: ``[B, N, C] -> [B, N * hop]`` (as in Vocos).

    Frame i covers the samples from ``i * hop - (n_fft - hop) / 2`` on; from ``i * hop`` on if ``causal``.
    """

    window: Tensor

    def __init__(self, channels: int, n_fft: int, hop_length: int, causal: bool) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.overlap = n_fft, hop_length, n_fft // hop_length
        self.causal = causal
        self.output = nn.Linear(channels, n_fft + 2)
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

    def push(self, x: Tensor, index: Tensor, total: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
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


class FrameDecoder(nn.Module):
    """What both decoders begin with: ConvNeXt blocks at the frame rate, ``[B, D, N] -> [B, N, width]``."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.input = nn.Linear(config.latent_dim, decoder.width)
        self.blocks = blocks(decoder.width, decoder.depth, decoder.kernel_size, config.causal)
        self.norm = nn.LayerNorm(decoder.width, eps=1e-6)

    def frames(self, latents: Tensor) -> Tensor:
        x: Tensor = self.norm(self.blocks(self.input(latents.transpose(1, 2))))
        return x


class ISTFTDecoder(FrameDecoder):
    """An inverse-STFT head on the frames: ``[B, D, N] -> [B, 1, N * hop_length]``."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        self.head = ISTFTHead(config.decoder.width, config.decoder.n_fft, config.hop_length, config.causal)
        initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        waveform: Tensor = self.head(self.frames(latents)).unsqueeze(1)
        return waveform


class UpsamplingDecoder(FrameDecoder):
    """Transposed convolutions from the frames to the sample rate: the same shapes as ISTFTDecoder.

    No Fourier transform and no complex numbers, so it exports to inference engines cleanly.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        decoder = config.decoder
        self.stages = nn.ModuleList()
        channels = decoder.width
        for stride, width, depth in zip(decoder.strides, decoder.widths, decoder.depths, strict=True):
            up = Upsample(channels, width, stride, config.causal)
            self.stages.append(nn.Sequential(up, *blocks(width, depth, decoder.kernel_size, config.causal)))
            channels = width
        self.output = nn.Linear(channels, 1)
        initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.frames(latents)
        for stage in self.stages:
            x = stage(x)
        waveform: Tensor = self.output(x).transpose(1, 2)
        return waveform


def build_decoder(config: CodecConfig) -> nn.Module:
    """The decoder that ``config.decoder.kind`` names."""
    return ISTFTDecoder(config) if config.decoder.kind == "istft" else UpsamplingDecoder(config)


def encoder_context(config: CodecConfig) -> Context:
    """Frames on either side beyond which a change of the waveform cannot reach a latent frame."""
    kernel, left, right, step = config.encoder.kernel_size, 0, 0, 1
    for stride, depth in zip(config.encoder.strides, config.encoder.depths, strict=True):
        left += step * (stride if config.causal else stride // 2)
        right += step * (0 if config.causal else stride - stride // 2)
        step *= stride  # samples between the frames of this stage
        left += step * depth * ((kernel - 1) if config.causal else kernel // 2)
        right += step * depth * (0 if config.causal else kernel // 2)
    return Context(-(-left // config.hop_length), -(-right // config.hop_length))


def decoder_context(config: CodecConfig) -> Context:
    """Frames on either side beyond which a change of the latents cannot reach a frame of the waveform."""
    decoder, hop = config.decoder, config.hop_length
    left_reach, right_reach = (decoder.kernel_size - 1, 0) if config.causal else (decoder.kernel_size // 2,) * 2
    left, right = float(decoder.depth * left_reach), float(decoder.depth * right_reach)
    if decoder.kind == "istft":
        spread = decoder.n_fft / hop - 1  # a frame's window covers this many hops beside its own
        left += spread if config.causal else spread / 2
        right += 0 if config.causal else spread / 2
    else:
        step = 1.0  # frames between the steps of this stage
        for stride, depth in zip(decoder.strides, decoder.depths, strict=True):
            left += step
            right += 0 if config.causal else step
            step /= stride
            left += step * depth * left_reach
            right += step * depth * right_reach
    return Context(math.ceil(left), math.ceil(right))
