"""The nearest code."""

from __future__ import annotations

import pytest
import torch

from codec.quantizers.search import nearest


@pytest.mark.parametrize("tile", [(7, 11), (7, 300), (500, 1)])
def test_nearest_equals_the_definition_and_tiling_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(3)
    points, codebook = torch.randn(500, 6, generator=generator), torch.randn(300, 6, generator=generator)
    expected = torch.cdist(points.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest(points, codebook), expected)
    monkeypatch.setattr("codec.quantizers.search.CPU_TILE", tile)
    assert torch.equal(nearest(points, codebook), expected)


@pytest.mark.parametrize("columns", [1, 50, 70, 2048])
def test_ties_go_to_the_lowest_index(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("codec.quantizers.search.CPU_TILE", (64, columns))
    codebook = torch.randn(50, 4).repeat(20, 1)
    found = nearest(torch.randn(400, 4), codebook)
    assert found.max() < 50
