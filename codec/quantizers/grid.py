"""Quantizers without a table: each dimension of a narrow space is rounded to a few levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.errors import CodecError
from codec.quantizers.base import start_projections
from codec.quantizers.vq import ENTROPY, Compared, mean_entropy

WEAKEST = 0.01  # in bfloat16 latents are rounded by up to half of that
JOINT_BITS = 13  # LFQ: bits of a group with one mean choice: 8,192 probabilities per frame


def grid_levels(codebook_size: int, most_bits: int = 3) -> tuple[int, ...]:
    """Levels of each dimension, powers of two up to ``2 ** most_bits``, as equal as can be, with product V.

    >>> grid_levels(1024), grid_levels(8192), grid_levels(8, most_bits=1)
    ((8, 8, 4, 4), (8, 8, 8, 4, 4), (2, 2, 2))

    Raises:
        CodecError: V is not a power of two.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size != 2**bits:
        raise CodecError(f"codebook_size must be a power of two for this kind, not {codebook_size}")
    dims = -(-bits // most_bits)
    return tuple(2 ** (bits // dims + (i < bits % dims)) for i in range(dims))


class GridQuantizer(Compared):
    """Every dimension is rounded to one of its levels; V counts their combinations, a code is a number in mixed radix."""

    most_bits = 3
    levels: Tensor
    places: Tensor
    step: Tensor | float  # from one level to the next

    def __init__(self, dim: int, codebook_size: int, **layout: Any) -> None:
        levels = torch.tensor(grid_levels(codebook_size, self.most_bits))
        super().__init__(dim, codebook_size, len(levels), **layout)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", levels.cumprod(dim=0) // levels, persistent=False)  # values of the digits

    @property
    def middle(self) -> Tensor:
        """The level of the value 0; it may be half-way between two."""
        return (self.levels - 1) / 2

    def search(self, z: Tensor) -> Tensor:
        digits = torch.round(z / self.step + self.middle).nan_to_num().clamp(min=0).minimum(self.levels - 1)
        return (digits.long() * self.places).sum(dim=-1)

    def rows(self, codes: Tensor) -> Tensor:
        return self.step * (codes.unsqueeze(-1) // self.places % self.levels - self.middle)

    @property
    def codebook(self) -> Tensor:
        """All points ``[V, d]``."""
        return self.rows(torch.arange(self.codebook_size, device=self.levels.device)).detach()

    def match(self, latents: Tensor) -> None:
        """Each dimension takes a principal component at unit variance; the way out is fitted by least squares.

        Components below ``WEAKEST`` of the strongest stay weaker: what there is in them may be rounding alone.
        """
        if not (isinstance(self.project_in, nn.Linear) and isinstance(self.project_out, nn.Linear)):
            return
        points = latents.transpose(1, 2).flatten(0, 1).double()  # [M, D]
        spread = start_projections(self.project_in, self.project_out, latents).std(dim=0).float()
        spread = spread.clamp(min=WEAKEST * spread.max())
        self.project_in.weight.div_(spread[:, None])
        self.project_in.bias.div_(spread)
        values = self.rows(self.search(self.bounded(self.project_in(points.float())))).double()
        known = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
        gram = known.t() @ known
        gram.diagonal().add_(1e-6 * len(known))  # or a level that no point takes would make it singular
        fitted = torch.linalg.solve(gram, known.t() @ points)
        self.project_out.weight.copy_(fitted[:-1].t())
        self.project_out.bias.copy_(fitted[-1])

    def codebook_state(self) -> list[Tensor]:
        return list(self.project_out.parameters()) or [self.levels]


class FSQ(GridQuantizer):
    """Finite scalar quantization (Mentzer et al., arXiv 2309.15505): ``tanh`` bounds each dimension, then rounding.

    No losses and nothing to collapse into: the codes are the corners of a fixed grid in [-1, 1]. Levels are powers of
    two (8 and 4), so that V is exactly that of the other quantizers; the paper's sets (8, 5, 5, 5 for about 1,024) are
    not powers of two.
    """

    @property
    def step(self) -> Tensor:  # type: ignore[override]
        return 2 / self.levels

    @property
    def middle(self) -> Tensor:
        return self.levels / 2

    def bounded(self, z: Tensor) -> Tensor:
        half = (self.levels - 1) * (1 + 1e-3) / 2
        return (torch.tanh(z + torch.atanh(0.5 / half)) * half - 0.5) * self.step

    def losses(self, z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return z.new_zeros(len(z)), z.new_zeros(len(z))


class LFQ(GridQuantizer):
    """Lookup-free quantization (Yu et al., arXiv 2310.05737): the sign of each of log2(V) dimensions.

    ``codebook_loss`` is the paper's entropy term in nats times ``ENTROPY``: the entropy of each choice less that of the mean
    choice, where a bit is +1 with probability ``sigmoid(4 z)``. It may be negative. The mean choice's entropy is that of
    groups of at most ``JOINT_BITS`` bits, summed: bit by bit it would not see that all bits are equal.
    """

    most_bits = 1
    step = 2.0

    def losses(self, z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(4 * z).clamp(1e-6, 1 - 1e-6)  # the entropy is finite at 0 and 1
        each = -(p * p.log() + (1 - p) * (1 - p).log()).sum(dim=2).mean(dim=1)
        together = z.new_zeros(())
        for group in z.tensor_split(-(-z.shape[2] // JOINT_BITS), dim=2):
            bits = group.shape[2]
            corners = self.rows(torch.arange(2**bits, device=z.device))[:, :bits]  # all choices of the group
            together = together + mean_entropy(F.softmax(2 * group @ corners.t(), dim=-1))
        return super().losses(z, chosen)[0], ENTROPY * (each - together)


class LatticeVQ(GridQuantizer):
    """A learnable lattice with a diagonal basis (Khalil, Piechocki and Santos-Rodriguez, arXiv 2310.09382).

    ``e = step * (level - middle)`` with a learned step for each dimension. The paper's lattice is infinite; here the
    codebook size limits the levels, and points beyond take the last one. The paper's term against dense lattices is left
    out.
    """

    step: nn.Parameter

    def __init__(self, dim: int, codebook_size: int, **layout: Any) -> None:
        super().__init__(dim, codebook_size, **layout)
        self.step = nn.Parameter(4.0 / self.levels)  # levels span two standard deviations of unit latents

    def codebook_state(self) -> list[Tensor]:
        return [self.step, *self.project_out.parameters()]
