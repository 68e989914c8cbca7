"""Are the codebooks alive? Usage, perplexity and effective dimension, always with the number of frames they are based on.

Two collapses are told apart (arXiv 2411.16550): of tokens, where few codes are used, and of embeddings, where the latents
themselves merge into few dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.quantizers import Quantizer, QuantizerOutput


@dataclass(frozen=True)
class StageHealth:
    """One stage's codebook over the frames seen."""

    frames: int
    usage: float  # share of the V entries that were hit; it grows with the frames
    perplexity: float  # 2^entropy of the code frequencies, 1 to V
    normalised_entropy: float  # entropy over log2 V, 0 to 1: the share of the bits that carry information
    unseen_mass: float  # Good-Turing estimate of the chance that the next frame hits an entry not hit so far


class CodebookCounter:
    """Counts of every code of every stage, added up over batches (and, by ``counts``, over processes)."""

    def __init__(self, num_quantizers: int, codebook_size: int) -> None:
        self.counts = torch.zeros(num_quantizers, codebook_size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Count codes ``[B, k, N]``, except those of -1."""
        for counts, stage_codes in zip(self.counts, codes.detach().cpu().unbind(1), strict=False):
            counts += torch.bincount(stage_codes[stage_codes >= 0], minlength=len(counts))

    def stages(self) -> list[StageHealth]:
        """The health of every stage, from the codes counted so far."""
        return [stage_health(counts) for counts in self.counts]


def stage_health(counts: Tensor) -> StageHealth:
    """Health of one codebook from how often each entry was hit, ``[V]``."""
    frames = int(counts.sum())
    share = counts[counts > 0].double() / frames
    entropy = float((share * -share.log2()).sum())
    return StageHealth(
        frames=frames,
        usage=float((counts > 0).double().mean()),
        perplexity=2.0**entropy,
        normalised_entropy=entropy / math.log2(max(len(counts), 2)),
        unseen_mass=float((counts == 1).sum()) / frames if frames else 1.0,
    )


def coverage_curve(codes: Tensor, codebook_size: int) -> list[tuple[int, float]]:
    """``(frames seen, share of the V entries hit by then)`` of one stage's codes ``[N]``, at more and more frames."""
    first_hits = np.unique(codes.numpy(), return_index=True)[1]
    counts = {min(int(64 * 2 ** (step / 2)), len(codes)) for step in range(64)}
    return [(count, int((first_hits < count).sum()) / codebook_size) for count in sorted(counts)]


class Moments:
    """Mean and covariance of points ``[M, D]`` added up batch by batch, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, points: Tensor) -> None:
        """Count points ``[M, D]``."""
        points = points.detach().cpu().double()
        self.count += len(points)
        self.total += points.sum(dim=0)
        self.products += points.t() @ points

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``."""
        mean = self.total / max(self.count, 1)
        return self.products / max(self.count, 1) - torch.outer(mean, mean)

    @property
    def energy(self) -> float:
        """Mean squared length of the points about their mean."""
        return float(self.covariance.diagonal().sum())

    @property
    def effective_dimension(self) -> float:
        """Participation ratio ``(sum l)^2 / sum l^2`` of the covariance's eigenvalues l: 1 to D, 0 without any spread."""
        shares = self.covariance / max(self.energy, 1e-300)
        return float(shares.diagonal().sum() / shares.square().sum().clamp(min=1e-30))


class HealthMonitor:
    """Watches a quantizer inside any model: figures of all latents and codes that pass through it, except masked ones.

    ``print(health)`` tells both collapses apart: few codes in use, or latents in few dimensions.

    >>> from codec.quantizers import SimVQ
    >>> quantizer = SimVQ(dim=8, codebook_size=16, codebook_dim=4)
    >>> with HealthMonitor(quantizer) as health:
    ...     _ = quantizer(torch.randn(2, 8, 500, generator=torch.Generator().manual_seed(0)))
    >>> [stage.frames for stage in health.stages], len(health.codebook_dimensions), 1 < health.latents.effective_dimension < 8
    ([1000], 1, True)
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self._counter = CodebookCounter(quantizer.num_quantizers, quantizer.codebook_size)
        self.latents = Moments(quantizer.dim)

    def __enter__(self) -> HealthMonitor:
        self._hook = self.quantizer.register_forward_hook(self._watch, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _watch(self, _: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: QuantizerOutput) -> None:
        codes = self.quantizer.points(output.codes)  # [B, N, K]
        self._counter.add(codes.transpose(1, 2))
        self.latents.add(self.quantizer.points(named.get("latents", *inputs[:1]))[codes[..., 0] >= 0])

    @property
    def stages(self) -> list[StageHealth]:
        """Every stage's codes so far."""
        return self._counter.stages()

    @property
    def codebook_dimensions(self) -> list[float]:
        """Effective dimension of every stage's table as it is now."""
        return [effective_dimension(stage.codebook) for stage in getattr(self.quantizer, "stages", [self.quantizer])]

    def __str__(self) -> str:
        lines = [
            f"stage {index}: {stage.usage:.1%} of {self.quantizer.codebook_size:,} codes used in {stage.frames:,} frames, "
            f"perplexity {stage.perplexity:,.0f}, unseen mass {stage.unseen_mass:.1%}, codebook of {dimension:.1f} dimensions"
            for index, (stage, dimension) in enumerate(zip(self.stages, self.codebook_dimensions, strict=True), start=1)
        ]
        lines.append(f"latents of {self.latents.effective_dimension:.1f} in {self.quantizer.dim} dimensions")
        return "\n".join(lines)


def effective_dimension(points: Tensor) -> float:
    """Effective dimension of points ``[M, D]``; see :class:`Moments`."""
    moments = Moments(points.shape[1])
    moments.add(points)
    return moments.effective_dimension
