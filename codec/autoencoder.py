"""Waveform to latents and back: the convolutional encoder, the decoder with its inverse STFT, and the layers of both.

Inside, activations are channels-last, ``[B, N, C]``: pointwise convolutions are matrix products, strided convolutions are
framing and a matrix product, and the depthwise convolution sees a channels-last view. In the usual ``[B, C, N]`` layout the
depthwise convolution alone is several times slower on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig, Reach
from codec.errors import CodecError

HIDDEN_ELEMENTS = 2**20  # activations that a block holds at once at inference: 4 MiB for each item
FEW_ROWS = 16  # below that MKL's product is as fast as oneDNN's, and a convolution not worth its call
ROWS = 128  # rows are filled up to a multiple of this: oneDNN prepares and keeps something for every number of rows
CPU: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
AMD = CPU.get("sse4a")  # only AMD's processors have it
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if AMD else None
TRANSPOSED = range(8, 100) if torch.backends.mkl.is_available() and not AMD else range(0)  # numbers of rows


@contextmanager
def float32_inference(weight: Tensor) -> Iterator[None]:
    """Compute all inside in float32, also within an autocast, and without gradients: half precision gives other codes.

    Raises:
        CodecError: the weights are in another type.
    """
    if weight.dtype != torch.float32:
        raise CodecError(f"the model's weights are {weight.dtype}, which would give other codes; load it anew")
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        yield


def eager_inference() -> bool:
    """Whether a faster way may be taken: no gradients are wanted, nor a graph recorded, which must fit every size."""
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not (torch.is_grad_enabled() or graph)


class Linear(nn.Linear):
    """A linear layer whose product is faster than torch's without gradients in float32 on CPUs.

    On AMD processors oneDNN takes half the time of MKL, which torch calls. Elsewhere MKL computes the transposed
    product in half to four fifths of the time where rows are few, as in streams.
    """

    def forward(self, x: Tensor) -> Tensor:
        count = x.numel() // self.in_features if eager_inference() else 0  # in a graph it is not known
        faster = count in TRANSPOSED if ONEDNN is None else count >= FEW_ROWS
        plain = x.is_cpu and x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (faster and plain):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        if ONEDNN is None:
            y = torch.addmm(self.bias[:, None], self.weight, rows.t()).t()
        else:
            y = ONEDNN(F.pad(rows, (0, 0, 0, -count % ROWS)), self.weight, self.bias, "none", [], "")[:count]
        return y.view(*x.shape[:-1], self.out_features)


class Layer(nn.Module):
    """A block that knows its reach: ``[B, N * stride, C_in] -> [B, N, C_out]``, padded with zeros at both ends.

    Attributes:
        left, right: how many input steps before and after its own steps an output step depends on.
        stride: input steps per output step.
        channels: of the input.
    """

    def __init__(self, channels: int, context: Reach) -> None:
        super().__init__()
        self.channels = channels
        self.left, self.right, self.stride = context

    def forward(self, x: Tensor) -> Tensor:
        return self.unpadded(F.pad(x, (0, 0, self.left, self.right)))

    def unpadded(self, x: Tensor) -> Tensor:
        """The layer on an input that has its context: ``[B, left + N * stride + right, C_in] -> [B, N, C_out]``."""
        raise NotImplementedError

    def push(self, x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The next ``[B, n * stride, C_in]`` of a stream -> ``[B, n, C_out]``, and the inputs to hold for the next call.

        ``held`` are the input steps before these; :func:`codec.config.lag` says how many.
        """
        joined, count = torch.cat([held, x], dim=1), x.shape[1]
        return self.unpadded(joined[:, : self.left + count + self.right]), joined[:, count:].clone()


class DepthwiseConv(Layer):
    """One filter per channel along the frames, length kept."""

    def __init__(self, channels: int, context: Reach) -> None:
        super().__init__(channels, context)
        self.conv = nn.Conv2d(channels, channels, (1, self.left + 1 + self.right), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        padding = max(self.left, self.right)  # the convolution pads both ends alike, without a copy of its input
        y = self._convolved(x, padding)[:, padding - self.left :]
        return y[:, : x.shape[1]]

    def unpadded(self, x: Tensor) -> Tensor:
        if x.is_cpu and eager_inference() and x.shape[:-1].numel() < FEW_ROWS:  # single frames of streams
            weight, bias = self.conv.parameters()
            taps = x.unfold(1, weight.shape[-1], 1)  # [B, N, C, kernel_size]
            return torch.sum(taps * weight[:, 0, 0], dim=-1) + bias
        return self._convolved(x, 0)

    def _convolved(self, x: Tensor, padding: int) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, N], still channels-last in memory
        weight, bias = self.conv.parameters()
        if x.is_cuda and x.dtype == weight.dtype and eager_inference():
            # torch's own kernel: cuDNN prepares itself for every new length, which takes thirty times as long as encoding
            y = torch.ops.aten._conv_depthwise2d(x, weight, weight.shape[2:], bias, (1, 1), (0, padding), (1, 1))
        else:
            y = F.conv2d(x, weight, bias, padding=(0, padding), groups=len(weight))
        return y.squeeze(2).transpose(1, 2)


class ConvNeXtBlock(Layer):
    """Depthwise convolution, layer norm, two-layer perceptron, scaled and added; length kept.

    After Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), in one dimension as in Vocos (arXiv 2306.00814).
    """

    def __init__(self, channels: int, context: Reach, scale: float) -> None:
        super().__init__(channels, context)
        self.depthwise = DepthwiseConv(channels, context)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = Linear(channels, 4 * channels)
        self.project = Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self._add_perceptron(x, self.depthwise(x))

    def unpadded(self, x: Tensor) -> Tensor:
        y = self.depthwise.unpadded(x)
        return self._add_perceptron(x[:, self.left : self.left + y.shape[1]], y)

    def _add_perceptron(self, x: Tensor, y: Tensor) -> Tensor:
        """``x`` plus the perceptron of ``y``, the depthwise convolution of ``x``."""
        if not eager_inference() or torch.is_autocast_enabled(x.device.type):
            return x + self.scale * self.perceptron(y)
        # piece by piece: the hidden activations stay in the cache, which saves a fifth of the encoder's time
        rows = max(1, HIDDEN_ELEMENTS // self.expand.out_features)
        if x.shape[1] <= rows:  # the loop would cost single frames of streams a twentieth of their time
            return torch.addcmul(x, self.scale, self.perceptron(y))
        total = torch.empty_like(x)
        for out, before, piece in zip(*(tensor.split(rows, dim=1) for tensor in (total, x, y)), strict=True):
            torch.addcmul(before, self.scale, self.perceptron(piece), out=out)
        return total

    def perceptron(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.expand(self.norm(x))))


class Downsample(Layer):
    """Strided convolution with kernel ``2 * stride``."""

    def __init__(self, in_channels: int, out_channels: int, context: Reach) -> None:
        super().__init__(in_channels, context)
        self.linear = Linear(2 * self.stride * in_channels, out_channels)

    def unpadded(self, x: Tensor) -> Tensor:
        assert x.shape[1] % self.stride == 0, "the length must be a multiple of the stride"
        x = x.reshape(x.shape[0], -1, self.stride * x.shape[2])
        return self.linear(torch.cat([x[:, :-1], x[:, 1:]], dim=-1))


def blocks(channels: int, contexts: list[Reach]) -> list[Layer]:
    """Blocks with these contexts; before training their outputs together add as much as one block's would alone."""
    return [ConvNeXtBlock(channels, context, 1.0 / len(contexts)) for context in contexts]


def initialize(module: nn.Module) -> None:
    """Zero biases and truncated normal weights of standard deviation ``fan_in ** -0.5``, in every layer below."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """``[B, 1, T] -> [B, D, N]`` with ``N = T / hop_length``; T must be a multiple of the hop length.

    ``layers`` lists the layers of all stages in their order.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        self.layers: list[Layer] = []
        channels = 1
        for width, (first, *others) in zip(config.encoder.widths, config.encoder_layers(), strict=True):
            stage = [Downsample(channels, width, first), *blocks(width, others)]
            self.stages.append(nn.Sequential(*stage))
            self.layers += stage
            channels = width
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.output = Linear(channels, config.latent_dim)
        initialize(self)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.stages(waveform.transpose(1, 2))
        return self.output(self.norm(x)).transpose(1, 2)


class ISTFTHead(nn.Module):
    """Log-magnitude and phase of each frame, then an inverse STFT: ``[B, N, C] -> [B, N * hop]`` (as in Vocos).

    Frame i covers the samples from ``i * hop - offset`` on, with ``offset = (n_fft - hop) / 2``, or 0 if ``causal``.
    """

    def __init__(self, channels: int, n_fft: int, hop_length: int, causal: bool) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.overlap = n_fft, hop_length, n_fft // hop_length
        self.causal, self.offset = causal, 0 if causal else (n_fft - hop_length) // 2
        self.output = Linear(channels, n_fft + 2)

    @property
    def window(self) -> Tensor:
        """``[n_fft]``; made anew each time, as a buffer would lose digits in ``half()``."""
        return torch.hann_window(self.n_fft, dtype=torch.float32, device=self.output.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        sums = self._sums(x, x.new_ones(x.shape[:2]))[..., self.offset :]
        return self._ratio(sums[..., : x.shape[1] * self.hop_length])

    def push_frames(self, x: Tensor, exists: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames ``[B, n, C]`` of a stream -> ``[B, n * hop]``, ``offset`` samples late, and the sums to hold.

        Args:
            exists: ``[B, n]``, which of the frames belong to their row.
            held: ``[B, 2, n_fft - hop]``, the sums of windowed frames and of squared windows that later frames add to.
        """
        count = x.shape[1] * self.hop_length
        sums = F.pad(held, (0, count)) + self._sums(x, exists)
        return self._ratio(sums[..., :count]), sums[..., count:].clone()

    def _ratio(self, sums: Tensor) -> Tensor:
        """Sums of windowed frames over those of squared windows, ``[B, 2, N * hop] -> [B, N * hop]``."""
        audio, envelope = sums.unbind(1)
        if self.causal:  # as if frames had come before the first
            envelope = self.window.square().view(self.overlap, -1).sum(dim=0).repeat(audio.shape[1] // self.hop_length)
        return audio / envelope.clamp(min=1e-11)

    def _sums(self, x: Tensor, exists: Tensor) -> Tensor:
        """Both sums over frames ``[B, N, C]``, of those that exist ``[B, N]``: ``[B, 2, (N - 1) * hop + n_fft]``."""
        log_magnitude, phase = self.output(x).float().chunk(2, dim=-1)
        magnitude = torch.exp(log_magnitude.clamp(max=math.log(100.0)))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        frames = torch.fft.irfft(spectrum, n=self.n_fft, dim=-1) * self.window
        parts = torch.stack([frames, self.window.square().expand_as(frames)], dim=1) * exists[:, None, :, None]
        shifted = [
            F.pad(part, (0, 0, shift, self.overlap - 1 - shift))
            for shift, part in enumerate(parts.unflatten(3, (self.overlap, self.hop_length)).unbind(3))
        ]
        return sum(shifted[1:], shifted[0]).flatten(2)


class Decoder(nn.Module):
    """ConvNeXt blocks at the frame rate and an inverse-STFT head: ``[B, D, N] -> [B, 1, N * hop_length]``."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        decoder = config.decoder
        *contexts, head = config.decoder_layers()
        self.input = Linear(config.latent_dim, decoder.width)
        self.layers = blocks(decoder.width, contexts)
        self.blocks = nn.Sequential(*self.layers)
        self.norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = ISTFTHead(decoder.width, decoder.n_fft, config.hop_length, causal=not head.right)
        initialize(self)

    def forward(self, latents: Tensor) -> Tensor:
        frames = self.norm(self.blocks(self.input(latents.transpose(1, 2))))  # [B, N, width]
        return self.head(frames).unsqueeze(1)
