"""SimVQ: a vector quantizer whose codebook is a frozen random table times one learnable linear map.

Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (arXiv 2411.02038).
Plain vector quantization moves, at each step, only the codes that were nearest to something; the rest die. Here every
step moves every code, because all of them pass through the same map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.gradient import pass_gradient
from codec.quantizers.projection import projection, start_projections
from codec.quantizers.search import nearest
from codec.quantizers.table import random_table


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.t()


class SimVQ(Quantizer):
    """One codebook ``E = C W + b`` with the basis ``C [V, d]`` drawn from N(0, 1/d) and the map ``W`` learned.

    ``z = project_in(latents)``, ``code = argmin_k |z - E_k|``, ``quantized = project_out(E_code)`` with straight-through
    gradient to z. The projections are the identity where ``codebook_dim`` equals the latents' width. Both losses are mean
    squared distances in the lookup space: ``commitment = (z - sg(E))^2`` moves the encoder, ``codebook = (sg(z) - E)^2``
    the map.

    Args:
        dim: width D of the latents.
        config: codebook size and dimension, and the variant: ``basis="learnable"`` trains C too (which can bring
            collapse back), ``map="diagonal"`` learns one factor a dimension, ``map_bias=False`` leaves out b;
            ``gradient="rotation"`` replaces the straight-through gradient.
    """

    num_quantizers = 1

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        d = config.codebook_dim
        self.codebook_size, self.codebook_dim = config.codebook_size, d
        self.diagonal = config.map == "diagonal"
        basis = random_table(config)
        if config.basis == "learnable":
            self.basis = nn.Parameter(basis)
        else:
            self.register_buffer("basis", basis)
        self.weight = nn.Parameter(torch.ones(d) if self.diagonal else torch.eye(d))
        self.bias = nn.Parameter(torch.zeros(d)) if config.map_bias else None
        self.gradient = config.gradient
        self.project_in, self.project_out = projection(dim, d), projection(d, dim)
        self._merged: tuple[tuple[object, ...], Tensor] | None = None

    def map_basis(self, rows: Tensor) -> Tensor:
        """``C W + b`` for rows of the basis, ``[..., d] -> [..., d]``."""
        mapped = rows * self.weight if self.diagonal else rows @ self.weight
        return mapped if self.bias is None else mapped + self.bias

    @property
    def codebook(self) -> Tensor:
        """The effective table ``[V, d]`` in float32; cached in eval mode, so that W costs nothing at inference."""
        parameters = [t for t in (self.basis, self.weight, self.bias) if t is not None]
        key = tuple((id(t), t._version, t.device) for t in parameters)
        if not self.training and self._merged is not None and self._merged[0] == key:
            return self._merged[1]
        with torch.no_grad(), torch.autocast(self.basis.device.type, enabled=False):
            table = self.map_basis(self.basis).float()
        self._merged = None if self.training else (key, table)
        return table

    def forward(self, latents: Tensor, num_quantizers: int | None = None, dropout: float = 0.0) -> QuantizerOutput:
        assert num_quantizers in (None, 1), "SimVQ has one stage"
        with torch.autocast(latents.device.type, enabled=False):
            z = self.project_in(latents.float().transpose(1, 2))  # [B, N, d]
            codes = nearest(z.detach().flatten(0, 1), self.codebook).view(z.shape[:2])
            chosen = self.map_basis(F.embedding(codes, self.basis))
            commitment = (z - chosen.detach()).square().mean(dim=(1, 2))
            codebook_loss = (z.detach() - chosen).square().mean(dim=(1, 2))
            quantized = self.project_out(pass_gradient(z, chosen, self.gradient)).transpose(1, 2)
        return QuantizerOutput(quantized, codes.unsqueeze(1), commitment.unsqueeze(1), codebook_loss.unsqueeze(1))

    def decode(self, codes: Tensor) -> Tensor:
        assert codes.shape[1] == 1, "SimVQ has one stage"
        chosen = F.embedding(codes[:, 0], self.codebook)
        quantized: Tensor = self.project_out(chosen).transpose(1, 2)
        return quantized

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Data-matched start: the codes take the mean and covariance of these latents ``[B, D, N]``.

        Projections, where there are any, start as ``start_projections`` says. Then ``W = sqrt(d) * Sigma^(1/2)`` and
        ``b = mean``, since C has covariance I/d.
        """
        points = latents.transpose(1, 2).flatten(0, 1).double()
        points = start_projections(self.project_in, self.project_out, points)
        offset = points.mean(dim=0) if self.bias is not None else torch.zeros_like(points[0])
        centred = points - offset
        root_d = float(self.codebook_dim) ** 0.5
        if self.diagonal:
            self.weight.copy_(root_d * centred.square().mean(dim=0).sqrt())
        else:
            self.weight.copy_(root_d * symmetric_root(centred.t() @ centred / len(centred)))
        if self.bias is not None:
            self.bias.copy_(offset)

    def codebook_state(self) -> list[Tensor]:
        tensors = [self.basis, self.weight, self.bias, *self.project_out.parameters()]
        return [tensor for tensor in tensors if tensor is not None]
