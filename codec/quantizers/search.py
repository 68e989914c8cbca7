"""Finding the nearest code: the same for every quantizer that has a table."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_TILE = (256, 2048)  # points x codes: 2 MiB of distances stay in a core's cache, which more than halves the time
SEARCH_ELEMENTS = 2**24  # distances held at once on other devices: 64 MiB, so that V = 262,144 needs no gigabytes


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of ``codebook`` ``[V, d]`` for each of ``points`` ``[M, d]``; ties to the lowest index.

    Always float32, outside autocast: in half precision near codes change places.
    """
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points, codebook = points.float(), codebook.float()
        squared = codebook.square().sum(dim=1)
        rows, columns = CPU_TILE
        if points.device.type != "cpu":
            rows, columns = max(1, SEARCH_ELEMENTS // len(codebook)), len(codebook)
        tiles = list(zip(codebook.split(columns), squared.split(columns), strict=True))
        found = [_nearest_of_tiles(part, tiles) for part in points.split(rows)]
        return torch.cat(found) if found else points.new_zeros(0, dtype=torch.int64)


def _nearest_of_tiles(points: Tensor, tiles: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same, of a codebook cut into pieces, each with the squared norms of its rows."""
    least, found, first = points.new_full((len(points),), torch.inf), None, 0
    for codes, squared in tiles:
        value, index = torch.addmm(squared, points, codes.t(), alpha=-2).min(dim=1)
        closer = value < least  # strictly: an equal one has a higher index
        least = torch.where(closer, value, least)
        found = index if found is None else torch.where(closer, index + first, found)
        first += len(codes)
    assert found is not None, "a codebook has at least one code"
    return found
