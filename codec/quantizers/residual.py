"""Residual quantizers: each stage quantizes what the stages before it left over."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from codec.config import QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.simvq import SimVQ


class ResidualQuantizer(Quantizer):
    """A loop over single quantizers. The residual lives in the full latent space, each lookup in its stage's own space.

    Gradient: nothing is detached between stages. A stage is, to the gradient, the map ``project_out project_in``
    (straight-through), so the residual passes on exactly what a stage did not carry, and an encoder dimension that no
    stage carries gets no gradient from the reconstruction.

    With one stage it is the single quantizer.

    Args:
        dim: width D of the latents.
        config: of every stage, and how many there are.
        stage: builds one stage.
    """

    def __init__(self, dim: int, config: QuantizerConfig, stage: Callable[[int, QuantizerConfig], Quantizer]) -> None:
        super().__init__()
        self.num_quantizers, self.codebook_size = config.num_quantizers, config.codebook_size
        self.stages = nn.ModuleList([stage(dim, config) for _ in range(config.num_quantizers)])

    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        """Quantize with the first ``num_quantizers`` stages (default all).

        ``dropout`` (training): the share of the batch's items that use only a random number of stages, 1 to K. The
        later stages are computed and masked, so that every parameter stays in the graph on every process.
        """
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        used = self._stages_per_item(latents, count, dropout)
        residual, quantized = latents, torch.zeros_like(latents, dtype=torch.float32)
        outputs = []
        for index in range(count):
            output = self.stages[index](residual)
            kept = (index < used).float()
            quantized = quantized + kept[:, None, None] * output.quantized
            residual = residual - output.quantized
            outputs.append((output.codes, kept[:, None] * output.commitment_loss, kept[:, None] * output.codebook_loss))
        codes, commitment, codebook = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
        return QuantizerOutput(quantized, codes, commitment, codebook)

    @staticmethod
    def _stages_per_item(latents: Tensor, count: int, dropout: float) -> Tensor:
        """How many stages each item of the batch uses, ``[B]``."""
        batch, device = len(latents), latents.device
        everything = torch.full((batch,), count, device=device)
        if dropout <= 0:
            return everything
        fewer = torch.randint(1, count + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < dropout, fewer, everything)

    def decode(self, codes: Tensor) -> Tensor:
        parts = [stage.decode(codes[:, i : i + 1]) for i, stage in enumerate(self._singles()[: codes.shape[1]])]
        return reduce(add, parts)  # in the order of forward, so that the sums round alike

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Start the stages one after another, each from what the ones before it leave of these latents."""
        residual = latents
        for stage in self._singles():
            stage.initialize(residual)
            residual = residual - stage(residual).quantized

    def _singles(self) -> list[Quantizer]:
        return [stage for stage in self.stages if isinstance(stage, Quantizer)]

    def codebook_state(self) -> list[Tensor]:
        return [tensor for stage in self._singles() for tensor in stage.codebook_state()]


class ResidualSimVQ(ResidualQuantizer):
    """A residual stack of SimVQ stages: the default."""

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, config, SimVQ)
