"""The linear layers around a lookup that is narrower than the latents, and their start from real latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def projection(inner: int, outer: int) -> nn.Module:
    """A linear layer from width ``inner`` to ``outer``; the identity where they are equal."""
    return nn.Identity() if inner == outer else nn.Linear(inner, outer)


@torch.no_grad()
def start_projections(project_in: nn.Module, project_out: nn.Module, points: Tensor) -> Tensor:
    """Set both layers, in place, from latents ``[M, D]`` in float64; returns what the lookup then sees, ``[M, d]``.

    They become the latents' leading principal components (in and out transposed), scaled so that the lookup space has
    unit variance: the losses of all residual stages are then of one size. Identities are left alone.
    """
    if not (isinstance(project_in, nn.Linear) and isinstance(project_out, nn.Linear)):
        return points
    mean = points.mean(dim=0)
    vectors = torch.linalg.eigh(torch.cov(points.t(), correction=0)).eigenvectors
    components = vectors[:, -project_in.out_features :].flip(1)  # [D, d], largest first
    project_in.weight.copy_(components.t())
    project_in.bias.copy_(-(mean @ components))
    project_out.weight.copy_(components)
    project_out.bias.copy_(mean)
    points = (points - mean) @ components
    scale = points.square().mean().sqrt()
    project_in.weight.div_(scale)
    project_in.bias.div_(scale)
    project_out.weight.mul_(scale)
    return points / scale
