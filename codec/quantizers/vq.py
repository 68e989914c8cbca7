"""Plain vector quantization: a table that gradient descent moves, row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.lookup import LookupQuantizer, sampled_points
from codec.quantizers.search import nearest
from codec.quantizers.table import random_table


class VQ(LookupQuantizer):
    """The quantizer of van den Oord et al. (arXiv 1711.00937): a learned table, nearest code, straight-through gradient.

    A step moves only the rows that were nearest to something: what is never nearest never moves again. The table starts
    with the draw that is SimVQ's basis, N(0, 1/d), so that the two differ by the linear map alone.
    """

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        table = random_table(config)
        super().__init__(dim, config)  # after the table: SimVQ draws in this order too
        self.embedding = nn.Parameter(table)

    def table(self) -> Tensor:
        return self.embedding

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """Rows are drawn from the points."""
        self.embedding.copy_(sampled_points(points, self.codebook_size))


class FactorisedVQ(VQ):
    """Low-dimensional lookup by direction, as in the Descript Audio Codec (arXiv 2306.06546) after arXiv 2110.04627.

    The nearest code is found between points and rows of unit length; what is passed on is the row as it is. It is meant
    for a small ``codebook_dim`` (8), which the projections give.
    """

    def search(self, z: Tensor) -> Tensor:
        return nearest(F.normalize(z.float(), dim=-1), F.normalize(self.codebook, dim=-1))
