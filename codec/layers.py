"""The blocks that encoder and decoder are made of.

Everything here works on channels-last activations ``[B, N, C]``: pointwise convolutions are matrix products, strided
convolutions are framing and a matrix product, and the depthwise convolution sees a channels-last view. In the usual
``[B, C, N]`` layout the depthwise convolution alone is several times slower on CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.errors import CodecError
from codec.windows import spread

HIDDEN_ELEMENTS = 2**20  # activations held at once inside a block at inference: 4 MiB


def exact(weight: Tensor) -> torch.autocast:
    """A context in which all is computed in float32, also inside an autocast: half precision gives other codes.

    Raises:
        CodecError: the weights are in another type.
    """
    if weight.dtype != torch.float32:
        raise CodecError(f"the model's weights are {weight.dtype}, which would give other codes; use codec.float()")
    return torch.autocast(weight.device.type, enabled=False)


class Layer(nn.Module):
    """A block that knows its reach.

    Attributes:
        left, right: how many steps of the input before and after its own ones an output step depends on.
        stride: input steps per output step.
        channels: of the input.
    """

    left: int
    right: int
    channels: int
    stride: int = 1

    @property
    def delay(self) -> int:
        """Output steps by which :meth:`push` lags behind its input: the look-ahead."""
        return -(-self.right // self.stride)

    def push(self, x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The next ``[B, n * stride, C_in]`` of a stream -> ``[B, n, C_out]``, and the input to hold for the next call.

        ``held`` are the ``left + delay * stride`` input steps before these, and more where the first must wait for whole
        strides.
        """
        raise NotImplementedError


class DepthwiseConv(Layer):
    """One filter per channel along the frames, length kept: ``[B, N, C] -> [B, N, C]``.

    ``look_ahead`` of the filter's taps lie after the frame itself: half of them for a centred filter, 0 for a causal one.
    """

    def __init__(self, channels: int, kernel_size: int, look_ahead: int) -> None:
        super().__init__()
        self.left, self.right = kernel_size - 1 - look_ahead, look_ahead
        self.conv = nn.Conv2d(channels, channels, (1, kernel_size), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(F.pad(x, (0, 0, self.left, self.right)))

    def inside(self, x: Tensor) -> Tensor:
        """Without padding: ``[B, left + N + right, C] -> [B, N, C]``."""
        x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, N], still channels-last in memory
        y: Tensor = self.conv(x).squeeze(2).transpose(1, 2)
        return y


class ConvNeXtBlock(Layer):
    """Depthwise convolution, layer norm, two-layer perceptron, scaled and added: ``[B, N, C] -> [B, N, C]``.

    After Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), in one dimension as in Vocos (arXiv 2306.00814).
    """

    def __init__(self, channels: int, kernel_size: int, look_ahead: int, scale: float) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, kernel_size, look_ahead)
        self.left, self.right, self.channels = self.depthwise.left, self.depthwise.right, channels
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            y = self.perceptron(y)
        else:  # piece by piece: the hidden activations stay in the cache, which saves a fifth of the encoder's time
            rows = max(1, HIDDEN_ELEMENTS // self.expand.out_features)
            y = torch.cat([self.perceptron(piece) for piece in y.split(rows, dim=1)], dim=1)
        return x + self.scale * y

    def push(self, x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([held, x], dim=1)
        y = self.perceptron(self.depthwise.inside(joined))
        return joined[:, self.left : self.left + x.shape[1]] + self.scale * y, joined[:, x.shape[1] :]

    def perceptron(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.gelu(self.expand(self.norm(x))))
        return y


class Downsample(Layer):
    """Strided convolution with kernel ``2 * stride``: ``[B, N * stride, C_in] -> [B, N, C_out]``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, causal: bool) -> None:
        super().__init__()
        self.stride, self.channels = stride, in_channels
        self.left = stride if causal else stride // 2
        self.right = stride - self.left
        self.linear = nn.Linear(2 * stride * in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] % self.stride == 0, "the length must be a multiple of the stride"
        return self.inside(F.pad(x, (0, 0, self.left, self.right)))

    def inside(self, x: Tensor) -> Tensor:
        """Without padding: ``[B, (N + 1) * stride, C_in] -> [B, N, C_out]``."""
        x = x.reshape(x.shape[0], -1, self.stride * x.shape[2])
        y: Tensor = self.linear(torch.cat([x[:, :-1], x[:, 1:]], dim=-1))
        return y

    def push(self, x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([held, x], dim=1)
        y = self.inside(joined[:, : x.shape[1] + self.stride])
        return y, joined[:, x.shape[1] :]


def blocks(channels: int, depth: int, kernel_size: int, look_ahead: int) -> list[ConvNeXtBlock]:
    """``depth`` ConvNeXt blocks that together look ``look_ahead`` frames ahead, see :func:`codec.windows.spread`.

    Their initial scale keeps the sum of their outputs at the size of one.
    """
    return [ConvNeXtBlock(channels, kernel_size, share, 1.0 / depth) for share in spread(look_ahead, depth)]


def initialize(module: nn.Module) -> None:
    """Zero biases and truncated normal weights of standard deviation ``fan_in ** -0.5``, in every layer below."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
