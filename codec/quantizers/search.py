"""Finding the nearest code: the same for every quantizer that has a table."""

from __future__ import annotations

import torch
from torch import Tensor

SEARCH_ELEMENTS = 2**24  # distances held at once, as rows x codes: 64 MiB, so that V = 262,144 needs no gigabytes


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of ``codebook`` ``[V, d]`` for each of ``points`` ``[M, d]``; ties to the lowest index.

    Always float32, outside autocast: in half precision near codes change places.
    """
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points, codebook = points.float(), codebook.float()
        squared = codebook.square().sum(dim=1)
        rows = max(1, SEARCH_ELEMENTS // len(codebook))
        found = [torch.addmm(squared, part, codebook.t(), alpha=-2).argmin(dim=1) for part in points.split(rows)]
        return torch.cat(found) if found else points.new_zeros(0, dtype=torch.int64)
