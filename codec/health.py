"""Are the codebooks alive? Usage, perplexity and effective dimension, always with the number of frames they rest on.

Two collapses are told apart (arXiv 2411.16550): of tokens, where few codes are used, and of embeddings, where the latents
themselves merge into few dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageHealth:
    """One stage's codebook over ``frames`` frames.

    Attributes:
        frames: seen.
        usage: share of the V entries that were hit; it grows with ``frames``.
        perplexity: ``2^entropy`` of the code frequencies, 1 to V.
        unseen_mass: Good-Turing estimate of the chance that the next frame hits an entry not hit so far.
    """

    frames: int
    usage: float
    perplexity: float
    unseen_mass: float


class CodebookCounter:
    """Counts of every code of every stage, added up over batches (and, by ``counts``, over processes)."""

    def __init__(self, num_quantizers: int, codebook_size: int) -> None:
        self.counts = torch.zeros(num_quantizers, codebook_size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Count codes ``[B, k, N]``."""
        for stage, found in enumerate(codes.detach().cpu().unbind(1)):
            self.counts[stage] += torch.bincount(found.flatten(), minlength=self.counts.shape[1])

    def stages(self) -> list[StageHealth]:
        """What was counted, stage by stage."""
        return [stage_health(counts) for counts in self.counts]


def stage_health(counts: Tensor) -> StageHealth:
    """Health of one codebook from how often each entry was hit, ``[V]``."""
    frames = int(counts.sum())
    if frames == 0:
        return StageHealth(0, 0.0, 1.0, 1.0)
    share = counts[counts > 0].double() / frames
    return StageHealth(
        frames=frames,
        usage=float((counts > 0).double().mean()),
        perplexity=float(torch.exp2(-(share * share.log2()).sum())),
        unseen_mass=float((counts == 1).sum()) / frames,
    )


def effective_dimension(points: Tensor) -> float:
    """Participation ratio ``(sum l)^2 / sum l^2`` of the covariance's eigenvalues l, of points ``[M, D]``: 1 to D."""
    centred = points.detach().double() - points.detach().double().mean(dim=0)
    covariance = centred.t() @ centred / max(len(points), 1)
    total = covariance.diagonal().sum()
    return float(total.square() / covariance.square().sum().clamp(min=1e-30))
