"""Vector quantization by running averages, with revival of dead codes."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.config import QuantizerConfig
from codec.quantizers.lookup import LookupQuantizer, over_processes, sampled_points
from codec.quantizers.table import random_table

DECAY = 0.99  # of the running averages, a step
DEAD_BELOW = 0.1  # a code is dead when its running count is below this share of the fair one, M / V


class EMAVQ(LookupQuantizer):
    """Codes are the running means of the points they were nearest to (arXiv 1711.00937, appendix A.1).

    Only two running averages are stored, of the hits ``n_k`` and of the sums ``s_k`` of the points, and the table is
    ``s_k / n_k``. Dead codes are moved onto points of the batch by setting both averages. There is no third copy: where
    the table is stored beside the averages, a revived row is easily overwritten by its old average in the same step.

    A code is dead when its count has fallen below a tenth of the fair share M / V, M points a step: after some 230 steps
    without a hit. A step revives at most M codes, those with the lowest counts, each on a point of its own. Which point
    depends on the number of updates alone, so that a resumed run revives alike. With several processes the averages are
    those over all of them, and the points are those of the first.
    """

    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        table = random_table(config)
        super().__init__(dim, config)  # after the table: SimVQ draws in this order too
        self.register_buffer("counts", torch.ones(config.codebook_size))
        self.register_buffer("sums", table)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def table(self) -> Tensor:
        return self.sums / self.counts[:, None]

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        """One step of both running averages, then revival; training's forward calls it after the lookup."""
        hits = torch.bincount(codes, minlength=self.codebook_size).to(z.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, z)
        z, (hits, sums) = over_processes(z, [hits, sums])
        fair = float(hits.sum()) / self.codebook_size
        if int(self.updates) == 0:  # every code starts with the fair share: none is dead, none weighs more
            self.sums.mul_(fair / self.counts[:, None])
            self.counts.fill_(fair)
        self.counts.mul_(DECAY).add_(hits, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        self._revive(z, fair)
        self.updates += 1

    def _revive(self, z: Tensor, fair: float) -> None:
        dead = (self.counts < DEAD_BELOW * fair).nonzero().flatten()
        if len(dead) == 0:
            return
        dead = dead[self.counts[dead].argsort(stable=True)][: len(z)]
        generator = torch.Generator().manual_seed(int(self.updates))
        points = z[torch.randperm(len(z), generator=generator)[: len(dead)].to(z.device)]
        self.counts[dead] = fair
        self.sums[dead] = fair * points

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """Rows are drawn from the points."""
        self.counts.fill_(1.0)
        self.sums.copy_(sampled_points(points, self.codebook_size))
        self.updates.zero_()

    def codebook_state(self) -> list[Tensor]:
        return [self.sums, self.counts, *self.project_out.parameters()]
