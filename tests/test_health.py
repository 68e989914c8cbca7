"""Codebook health against values worked out by hand."""

import pytest
import torch

from codec.health import CodebookCounter, Moments, coverage_curve, effective_dimension, stage_health


def test_health_of_known_counts() -> None:
    health = stage_health(torch.tensor([2, 2, 2, 2, 0, 0, 0, 0]))
    assert (health.frames, health.usage, health.unseen_mass) == (8, 0.5, 0.0)
    assert health.perplexity == pytest.approx(4)
    assert health.normalised_entropy == pytest.approx(2 / 3)  # 2 of 3 bits
    assert stage_health(torch.tensor([3, 1, 1, 0])).unseen_mass == pytest.approx(0.4)
    assert stage_health(torch.zeros(4, dtype=torch.int64)).usage == 0


def test_counter_adds_up_over_batches_and_stages() -> None:
    counter = CodebookCounter(2, 4)
    counter.add(torch.tensor([[[0, 0, 1], [3, 3, 3]]]))
    counter.add(torch.tensor([[[2]], [[2]]]))  # fewer stages used
    assert counter.counts.tolist() == [[2, 1, 2, 0], [0, 0, 0, 3]]
    assert [stage.frames for stage in counter.stages()] == [5, 3]


def test_moments_are_those_of_all_batches_together_and_count_directions() -> None:
    points = 3 + torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments(4)
    for batch in points.split(1300):
        moments.add(batch)
    assert torch.allclose(moments.covariance, torch.cov(points.t().double(), correction=0))
    assert moments.energy == pytest.approx(float(points.double().var(dim=0, correction=0).sum()))
    assert moments.effective_dimension == pytest.approx(4, rel=0.02)
    points[:, 2:] = 0
    assert effective_dimension(points) == pytest.approx(2, rel=0.02)


def test_coverage_grows_with_the_frames_seen() -> None:
    codes = torch.stack([torch.arange(1000) % 100, torch.zeros(1000, dtype=torch.int64)])
    first, second = coverage_curve(codes.split(70, dim=1), 200)
    assert first[-1] == (1000, 0.5) and second[-1] == (1000, 1 / 200)
    assert [frames for frames, _ in first] == sorted({frames for frames, _ in first})
    assert first[0] == (64, 64 / 200)
    assert coverage_curve([], 200) == []
