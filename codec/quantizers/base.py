"""The contract that every quantizer keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class QuantizerOutput:
    """What a quantizer returns; B batch, D latent width, N frames, K stages used.

    Attributes:
        quantized: ``[B, D, N]``, with gradients to the latents and to the codebooks.
        codes: int64 ``[B, K, N]``.
        commitment_loss: ``[B, K]``, mean squared distance that pulls latents to their codes; 0 for dropped stages.
        codebook_loss: ``[B, K]``, the same distance, pulling codes to latents. Quantizers without a table of codes
            return zeros, or what their text says.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


class Quantizer(nn.Module, ABC):
    """A module built by ``Class(dim, config)``, with D = dim the width of the latents.

    Codes are found in float32, outside autocast; where distances are equal the lowest index is taken. In eval mode nothing
    changes and every item of a batch is quantized as if alone. Single quantizers have ``codebook``, their points ``[V, d]``.
    """

    num_quantizers: int
    codebook_size: int

    @abstractmethod
    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        """Quantize ``[B, D, N]`` with the first ``num_quantizers`` stages; ``dropout``: see ResidualQuantizer."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """``[B, D, N]`` of codes ``[B, k, N]``, k at most ``num_quantizers``: what forward gave for them in eval mode."""

    @abstractmethod
    def initialize(self, latents: Tensor) -> None:
        """Match the codebooks to real latents ``[B, D, N]``, in place."""

    @abstractmethod
    def codebook_state(self) -> list[Tensor]:
        """The tensors that decide what a code means, in a fixed order; the model's fingerprint covers them."""
