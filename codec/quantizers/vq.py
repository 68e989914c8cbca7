"""The tables that SimVQ is compared with, each with its own way to keep codes alive. Docstrings say what is left out.

The study (``recipes/collapse``) reads this file; SimVQ itself needs none of it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from codec.quantizers import base
from codec.quantizers.base import Gradient, Quantizer, QuantizerOutput

DECAY = 0.99  # of running averages, per step
DEAD_BELOW = 0.1  # EMAVQ: a code is dead when its running count is below this share of the fair one, M / V
ENTROPY = 0.05  # IndexVQ and LFQ: weight of the entropy term beside the distance
TEMPERATURE = 0.01  # IndexVQ: of the choices whose entropy is taken


class Compared(Quantizer):
    """A lookup of d dimensions between two projections, with squared distances as losses; subclasses define the lookup.

    The arguments are those of SimVQ; ``layout`` are ``channel_first`` and ``init``.
    """

    def __init__(
        self, dim: int, codebook_size: int, codebook_dim: int, gradient: Gradient = "ste", **layout: Any
    ) -> None:
        super().__init__(dim, codebook_size, **layout)
        self.gradient = base.one_of("gradient", gradient, "ste", "rotation")
        self.add_table(codebook_dim)  # drawn before the projections, as the basis of SimVQ is
        self.project_in, self.project_out = base.projections(dim, codebook_dim)

    def add_table(self, codebook_dim: int) -> None:
        """Register the parameters or buffers that store the points."""

    @abstractmethod
    def search(self, z: Tensor) -> Tensor:
        """Codes ``[M]`` of points ``[M, d]``."""

    @abstractmethod
    def rows(self, codes: Tensor) -> Tensor:
        """Points ``[..., d]`` of codes ``[...]``, with whatever gradient they have."""

    def bounded(self, z: Tensor) -> Tensor:
        """The points ``[..., d]`` to look up, made from ``z``."""
        return z

    def carry(self, z: Tensor, chosen: Tensor) -> Tensor:
        """The values of ``chosen`` ``[B, N, d]``, with the gradient of the reconstruction to ``z`` (and to the table)."""
        return base.pass_gradient(z, chosen, self.gradient)

    def losses(self, z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Commitment and codebook loss ``[B]`` of points ``[B, N, d]``."""
        return (z - chosen.detach()).square().mean(dim=(1, 2)), (z.detach() - chosen).square().mean(dim=(1, 2))

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move the table in a training step, not by gradient, given points ``[M, d]`` and their codes ``[M]``; in place."""

    def quantize(self, latents: Tensor, num_quantizers: int, dropout: float) -> QuantizerOutput:
        z = self.bounded(self.project_in(latents.transpose(1, 2)))  # [B, N, d]
        points = z.detach().flatten(0, 1)  # [M, d]
        codes = self.search(points).view(z.shape[:2])  # [B, N]
        chosen = self.rows(codes)  # [B, N, d]
        commitment_loss, codebook_loss = self.losses(z, chosen)  # [B] both
        quantized = self.project_out(self.carry(z, chosen)).transpose(1, 2)  # [B, D, N]
        if self.training and torch.is_grad_enabled():
            self.update(points, codes.flatten())
        return QuantizerOutput(quantized, codes[:, None], commitment_loss[:, None], codebook_loss[:, None])

    def vectors(self, codes: Tensor) -> Tensor:
        return self.project_out(self.rows(codes[:, 0])).transpose(1, 2)


class VQ(Compared):
    """The quantizer of van den Oord et al. (arXiv 1711.00937): a learned table, nearest code, straight-through gradient.

    A step moves only the rows that were nearest to something: a row that is never nearest never moves. The table starts
    with the draw of SimVQ's basis, N(0, 1/d), so that the two differ only in the linear map. Subclasses store, search and
    move tables in other ways.
    """

    embedding: Tensor  # the codes [V, d], with whatever gradient they have

    def add_table(self, codebook_dim: int) -> None:
        self.embedding = nn.Parameter(base.random_table(self.codebook_size, codebook_dim))

    def set_table(self, table: Tensor) -> None:
        """Replace the table ``[V, d]``, in place."""
        self.embedding.copy_(table)

    @property
    def codebook(self) -> Tensor:
        """The codes ``[V, d]`` without gradient, float32."""
        return self.embedding.detach()

    def search(self, z: Tensor) -> Tensor:
        return base.nearest(z, self.codebook)

    def rows(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embedding)

    def match(self, latents: Tensor) -> None:
        """Data-matched start: projections from principal components, the table from points that the lookup then sees."""
        points = base.start_projections(self.project_in, self.project_out, latents).float()  # [M, d]
        self.set_table(base.sampled_points(points, self.codebook_size))

    def codebook_state(self) -> list[Tensor]:
        return [self.embedding, *self.project_out.parameters()]


class FactorisedVQ(VQ):
    """Low-dimensional lookup by direction, as in the Descript Audio Codec (arXiv 2306.06546) after arXiv 2110.04627.

    The nearest code is found between points and rows of unit length; the row itself is passed on. It is meant for a small
    ``codebook_dim`` (8).
    """

    def search(self, z: Tensor) -> Tensor:
        return base.nearest(F.normalize(z, dim=-1), F.normalize(self.codebook, dim=-1))


class Refreshed(VQ):
    """A table whose unused codes are moved onto points of the batch.

    The draw of points depends only on the number of updates, so that a resumed run draws the same. With several processes
    hits and sums are those of all of them, and points are those of the first.
    """

    updates: Tensor

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        hits = torch.bincount(codes, minlength=self.codebook_size).to(z.dtype)
        sums = z.new_zeros(self.codebook_size, z.shape[1]).index_add_(0, codes, z)
        if distributed.is_available() and distributed.is_initialized():
            count = torch.tensor(len(z), device=z.device)  # masks, and so numbers of points, differ between processes
            distributed.broadcast(count, src=0)
            z = z.contiguous() if distributed.get_rank() == 0 else z.new_empty(int(count), z.shape[1])
            distributed.broadcast(z, src=0)
            for tensor in (hits, sums):
                distributed.all_reduce(tensor)
        self.refresh(z, hits, sums, torch.Generator().manual_seed(int(self.updates)))
        self.updates += 1

    @abstractmethod
    def refresh(self, points: Tensor, hits: Tensor, sums: Tensor, generator: torch.Generator) -> None:
        """Move the table, given points ``[M, d]``, and for each code hits ``[V]`` and the sum of its points ``[V, d]``."""


class EMAVQ(Refreshed):
    """Codes are the running means of the points they were nearest to (arXiv 1711.00937, appendix A.1).

    Only two running averages are stored, of the hits ``n_k`` and of the sums ``s_k`` of the points, and the table is
    ``s_k / n_k``. Dead codes are moved by setting both averages. There is no third copy: if the table is stored beside
    the averages, its old average easily overwrites a revived row in the same step.

    A code is dead when its count has fallen below a tenth of the fair share M / V, M points per step: after some 230 steps
    without a hit. A step revives at most M codes, those with the lowest counts, each on a point of its own. A step is a
    forward pass in training mode with gradients on: under ``torch.no_grad`` nothing moves.
    """

    counts: Tensor
    sums: Tensor

    def add_table(self, codebook_dim: int) -> None:
        self.register_buffer("counts", torch.ones(self.codebook_size))
        self.register_buffer("sums", base.random_table(self.codebook_size, codebook_dim))

    @property
    def embedding(self) -> Tensor:  # type: ignore[override]
        return self.sums / self.counts[:, None]

    def set_table(self, table: Tensor) -> None:
        self.counts.fill_(1.0)
        self.sums.copy_(table)
        self.updates.zero_()

    def refresh(self, points: Tensor, hits: Tensor, sums: Tensor, generator: torch.Generator) -> None:
        fair = float(hits.sum()) / self.codebook_size
        if int(self.updates) == 0:  # every code starts with the fair share: none is dead, all weigh alike
            self.sums.mul_(fair / self.counts[:, None])
            self.counts.fill_(fair)
        self.counts.mul_(DECAY).add_(hits, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        dead = (self.counts < DEAD_BELOW * fair).nonzero().flatten()
        dead = dead[self.counts[dead].argsort(stable=True)][: len(points)]
        drawn = torch.randperm(len(points), generator=generator)[: len(dead)]
        self.counts[dead] = fair
        self.sums[dead] = fair * points[drawn.to(points.device)]

    def codebook_state(self) -> list[Tensor]:
        return [self.sums, self.counts, *self.project_out.parameters()]


class ClusteredVQ(Refreshed):
    """Online clustered codebook, CVQ-VAE (Zheng and Vedaldi, arXiv 2307.15139).

    Beside the gradient, each step pulls every code towards a random point of the batch, little-used codes the most:
    ``e_k <- (1 - a_k) e_k + a_k z`` with ``a_k = exp(-10 V p_k / (1 - DECAY) - 0.001)`` and p_k the running share of hits.
    Of the paper's anchors these are the random ones (the nearest point instead makes many unused codes equal); its
    contrastive loss is left out.
    """

    share: Tensor

    def add_table(self, codebook_dim: int) -> None:
        super().add_table(codebook_dim)
        self.register_buffer("share", torch.zeros(self.codebook_size))

    def refresh(self, points: Tensor, hits: Tensor, sums: Tensor, generator: torch.Generator) -> None:
        self.share.mul_(DECAY).add_(hits / hits.sum(), alpha=1 - DECAY)
        pull = torch.exp(-10 * self.codebook_size * self.share / (1 - DECAY) - 1e-3)[:, None]
        drawn = torch.randint(0, len(points), (self.codebook_size,), generator=generator)
        self.embedding.lerp_(points[drawn.to(points.device)], pull)


class IndexVQ(VQ):
    """Index backpropagation quantization, IBQ (Shi et al., arXiv 2412.02692).

    The code is the row of largest dot product with z. In the backward pass the choice is a softmax over all codes, so
    that every row of the table, and z, get gradient from the reconstruction. ``codebook_loss`` also holds the distance of
    z to what is carried on (the paper's double quantization loss: it reaches z and, by the softmax, every row), and the
    entropy of each choice less that of the mean choice, in nats, times ``ENTROPY``. These entropies are of the logits over
    ``TEMPERATURE``, as in the authors' code: at temperature 1 the softmax over thousands of short rows is flat, and stays
    so while every point chooses one and the same row. It holds softmax rows of all codes, ``[M, V]``.
    """

    def search(self, z: Tensor) -> Tensor:
        return (z @ self.codebook.t()).argmax(dim=1)

    def carry(self, z: Tensor, chosen: Tensor) -> Tensor:
        soft = F.softmax(z @ self.embedding.t(), dim=-1)
        return chosen + (soft - soft.detach()) @ self.embedding.detach()  # the second part is zero in value

    def losses(self, z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        commitment, distance = super().losses(z, chosen)
        double = (self.carry(z, chosen) - z).square().mean(dim=(1, 2))
        log = F.log_softmax(z @ self.embedding.t() / TEMPERATURE, dim=-1)  # [B, N, V]
        each = -(log.exp() * log).sum(dim=-1).mean(dim=1)
        return commitment, distance + (double + ENTROPY * (each - mean_entropy(log.exp())))


def mean_entropy(choices: Tensor) -> Tensor:
    """Entropy, in nats, of the mean of choices ``[B, N, V]``."""
    mean = choices.mean(dim=(0, 1))
    return -(mean * mean.clamp(min=1e-9).log()).sum()
