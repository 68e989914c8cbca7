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
from codec.quantizers.lookup import LookupQuantizer
from codec.quantizers.table import random_table


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.t()


class SimVQ(LookupQuantizer):
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

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        basis = random_table(config)  # drawn first, so that a seed gives the same one whatever the projections
        super().__init__(dim, config)
        d = config.codebook_dim
        self.diagonal = config.map == "diagonal"
        if config.basis == "learnable":
            self.basis = nn.Parameter(basis)
        else:
            self.register_buffer("basis", basis)
        self.weight = nn.Parameter(torch.ones(d) if self.diagonal else torch.eye(d))
        self.bias = nn.Parameter(torch.zeros(d)) if config.map_bias else None
        self._merged: tuple[tuple[object, ...], Tensor] | None = None

    def map_basis(self, rows: Tensor) -> Tensor:
        """``C W + b`` for rows of the basis, ``[..., d] -> [..., d]``."""
        mapped = rows * self.weight if self.diagonal else rows @ self.weight
        return mapped if self.bias is None else mapped + self.bias

    def table(self) -> Tensor:
        return self.map_basis(self.basis)

    def rows(self, codes: Tensor) -> Tensor:
        """Where the map learns, only the chosen rows pass through it; else they are those of ``decode``, to the bit."""
        if torch.is_grad_enabled():
            return self.map_basis(F.embedding(codes, self.basis))
        return F.embedding(codes, self.codebook)

    @property
    def codebook(self) -> Tensor:
        """The effective table ``[V, d]`` in float32; kept in eval mode, so that W costs nothing at inference."""
        parameters = [t for t in (self.basis, self.weight, self.bias) if t is not None]
        # tensors of inference mode do not count their changes
        lasting = not self.training and not any(t.is_inference() for t in parameters)
        key = tuple((id(t), t._version, t.device) for t in parameters) if lasting else None
        if key is not None and self._merged is not None and self._merged[0] == key:
            return self._merged[1]
        with torch.no_grad(), torch.autocast(self.basis.device.type, enabled=False):
            table = self.table().float()
        self._merged = None if key is None else (key, table)
        return table

    def start(self, points: Tensor) -> None:
        """The codes take the mean and covariance of the points: ``W = sqrt(d) * Sigma^(1/2)``, ``b = mean``.

        (C has covariance I/d.)
        """
        points = points.double()
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
