"""What every table needs: the nearest code, the gradient past the lookup; and the examples in the docstrings."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch.nn import functional as F

from codec import health
from codec.quantizers import grid, lookup, simvq
from codec.quantizers.lookup import nearest, pass_gradient


@pytest.mark.parametrize("module", [lookup, simvq, grid, health])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("tile", [(256, 2048), (7, 11), (7, 300), (64, 100), (500, 1)])
def test_nearest_equals_the_definition_with_ties_to_the_lowest_index(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(lookup, "CPU_TILE", tile)
    generator = torch.Generator().manual_seed(3)
    points, codebook = torch.randn(500, 6, generator=generator), torch.randn(100, 6, generator=generator)
    expected = torch.cdist(points.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest(points, codebook.repeat(3, 1)), expected)
    assert nearest(points[:0], codebook).shape == (0,)


def test_rotation_takes_the_point_to_its_code_and_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    z, e, gradient = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: pass_gradient(v, e, "rotation"), z)
    torch.testing.assert_close(jacobian @ z, e)
    rotation = jacobian * z.norm() / e.norm()
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(5, dtype=torch.float64))
    assert torch.det(rotation) > 0.99
    pulled = jacobian.t() @ gradient  # what z gets makes with z the angle that the gradient makes with the code
    torch.testing.assert_close(F.cosine_similarity(pulled, z, dim=0), F.cosine_similarity(gradient, e, dim=0))


def test_rotation_is_finite_at_zero_and_between_opposites() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    e = torch.tensor([[1.0, 0.0], [-1.0, -2.0]])
    out = pass_gradient(z, e, "rotation")
    assert torch.equal(out, e)
    out.sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()
