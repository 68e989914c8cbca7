"""Codebook health against values worked out by hand."""

import pytest
import torch

from codec.health import Moments, effective_dimension, stage_health


def test_health_of_known_counts() -> None:
    health = stage_health(torch.tensor([2, 2, 2, 2, 0, 0, 0, 0]))
    assert (health.frames, health.usage, health.unseen_mass) == (8, 0.5, 0.0)
    assert health.perplexity == pytest.approx(4)
    assert health.normalised_entropy == pytest.approx(2 / 3)  # 2 of 3 bits
    assert stage_health(torch.tensor([3, 1, 1, 0])).unseen_mass == pytest.approx(0.4)
    assert stage_health(torch.zeros(4, dtype=torch.int64)).usage == stage_health(torch.ones(1)).perplexity - 1 == 0


def test_moments_are_those_of_all_batches_together_and_count_directions() -> None:
    points = 3 + torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments(4)
    for batch in points.split(1300):
        moments.add(batch)
    assert torch.allclose(moments.covariance, torch.cov(points.t().double(), correction=0))
    assert moments.energy == pytest.approx(float(points.double().var(dim=0, correction=0).sum()))
    assert moments.effective_dimension == pytest.approx(4, rel=0.02)
    points[:, 2:] = 0
    for scale in (1, 1e-9):
        assert effective_dimension(scale * points) == pytest.approx(2, rel=0.02)
