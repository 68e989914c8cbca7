"""Codebook health against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from codec.health import CodebookCounter, effective_dimension, stage_health


def test_health_of_known_counts() -> None:
    health = stage_health(torch.tensor([2, 2, 2, 2, 0, 0, 0, 0]))
    assert (health.frames, health.usage, health.unseen_mass) == (8, 0.5, 0.0)
    assert health.perplexity == pytest.approx(4)
    assert stage_health(torch.tensor([3, 1, 1, 0])).unseen_mass == pytest.approx(0.4)
    assert stage_health(torch.zeros(4, dtype=torch.int64)).usage == 0


def test_counter_adds_up_over_batches_and_stages() -> None:
    counter = CodebookCounter(2, 4)
    counter.add(torch.tensor([[[0, 0, 1], [3, 3, 3]]]))
    counter.add(torch.tensor([[[2]], [[2]]]))  # fewer stages used
    assert counter.counts.tolist() == [[2, 1, 2, 0], [0, 0, 0, 3]]
    assert [stage.frames for stage in counter.stages()] == [5, 3]


def test_effective_dimension_counts_directions() -> None:
    points = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))
    assert effective_dimension(points) == pytest.approx(6, rel=0.02)
    points[:, 2:] = 0
    assert effective_dimension(points) == pytest.approx(2, rel=0.02)
