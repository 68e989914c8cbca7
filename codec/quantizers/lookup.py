"""What every quantizer with a table of codes needs: search, gradient, projections, and the table to start from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CPU_TILE = (256, 2048)  # points x codes: 2 MiB of distances stay in a core's cache, which more than halves the time
SEARCH_ELEMENTS = 2**24  # distances held at once on other devices: 64 MiB, so that V = 262,144 needs no gigabytes
JITTER = 0.01  # of the latents' spread: keeps apart codes that start at one and the same latent
TABLE_TYPE = torch.float8_e4m3fn  # random numbers need few bits: stored so, a frozen table takes a quarter of the space
Gradient = Literal["ste", "rotation"]


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index ``[M]`` of the row of ``codebook`` ``[V, d]`` nearest to each of ``points`` ``[M, d]``; ties to the lowest.

    ``|p - c|^2 = |p|^2 - 2 p.c + |c|^2``, where the first term is the same for all codes and is left out. Always
    in float32, outside autocast: in half precision near codes change places. No gradient.

    >>> nearest(torch.tensor([[0.9, 0.2]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    tensor([1])
    """
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points, codebook = points.float(), codebook.float()
        rows, columns = CPU_TILE
        if points.device.type != "cpu":
            rows, columns = max(1, SEARCH_ELEMENTS // len(codebook)), len(codebook)
        tiles = list(zip(codebook.split(columns), codebook.square().sum(dim=1).split(columns), strict=True))
        found = []
        for part in points.split(rows):
            least = part.new_full((len(part),), torch.inf)
            index, first = torch.zeros_like(least, dtype=torch.int64), 0
            for codes, squared in tiles:
                distance, local = torch.addmm(squared, part, codes.t(), alpha=-2).min(dim=1)
                closer = distance < least  # strictly: an equal one has a higher index
                least, index = torch.where(closer, distance, least), torch.where(closer, local + first, index)
                first += len(codes)
            found.append(index)
        return torch.cat(found)


def pass_gradient(z: Tensor, chosen: Tensor, how: Gradient) -> Tensor:
    """``chosen`` in value, to the bit, with a gradient to ``z``; both ``[..., d]``, none to ``chosen``.

    The lookup has no gradient of its own. ``ste`` takes the identity (Bengio et al., arXiv 1308.3432).
    ``rotation`` takes the rotation and scaling that turn z into its code, held fixed, so that gradients keep their angle
    to the vector they belong to (Fifty et al., arXiv 2410.06424). With ``u = z / |z|``, ``v = e / |e|`` and
    ``r = (u + v) / |u + v|`` it is ``|e| / |z| * (I - 2 r r^T + 2 v u^T)``. Opposite vectors have no ``r``: there the map
    is the identity less ``2 u u^T``, which also takes u to v.

    >>> z, code = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([0.0, 4.0])
    >>> for how in ("ste", "rotation"):
    ...     passed = pass_gradient(z, code, how)
    ...     print(passed.tolist(), torch.autograd.grad(passed[1], z)[0].round(decimals=4).tolist())
    [0.0, 4.0] [0.0, 1.0]
    [0.0, 4.0] [2.0, 0.0]
    """
    value = chosen.detach()
    if how == "ste":
        return value + (z - z.detach())  # the parentheses are zero, with the gradient of z
    with torch.no_grad():
        scale = value.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        u, v = F.normalize(z, dim=-1), F.normalize(value, dim=-1)
        r = F.normalize(u + v, dim=-1)
    turned = scale * (z - 2 * r * (r * z).sum(dim=-1, keepdim=True) + 2 * v * (u * z).sum(dim=-1, keepdim=True))
    return value + (turned - turned.detach())


def projection(in_dim: int, out_dim: int) -> nn.Module:
    """A linear layer around a lookup that is narrower than the latents; the identity where both widths are equal."""
    return nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim)


def start_projections(project_in: nn.Module, project_out: nn.Module, latents: Tensor) -> Tensor:
    """Set both layers, in place, from ``latents`` ``[B, D, N]``; returns what the lookup then sees, float64 ``[B N, d]``.

    With m the mean and ``U [D, d]`` the leading principal components of the latents, ``z = U^T (x - m) / s`` and
    ``x = s U z + m``: of all linear maps through d dimensions these lose the least. The scale s gives the lookup space
    unit variance, so that the losses of all residual stages are of one size. Identities are left alone.
    """
    points = latents.transpose(1, 2).flatten(0, 1).double()  # [B N, D]
    if not (isinstance(project_in, nn.Linear) and isinstance(project_out, nn.Linear)):
        return points
    mean = points.mean(dim=0)
    vectors = torch.linalg.eigh(torch.cov(points.t(), correction=0)).eigenvectors
    components = vectors[:, -project_in.out_features :].flip(1)  # [D, d], largest first
    project_in.weight.copy_(components.t())
    project_in.bias.copy_(-(mean @ components))
    project_out.weight.copy_(components)
    project_out.bias.copy_(mean)
    z = (points - mean) @ components
    scale = z.square().mean().sqrt()
    project_in.weight.div_(scale)
    project_in.bias.div_(scale)
    project_out.weight.mul_(scale)
    return z / scale


def random_table(codebook_size: int, dim: int) -> Tensor:
    """Codes ``[V, d]`` from N(0, 1/d), rounded to ``TABLE_TYPE``, in float32."""
    return torch.randn(codebook_size, dim).mul_(dim**-0.5).to(TABLE_TYPE).float()


def sampled_points(points: Tensor, count: int) -> Tensor:
    """``count`` of the points ``[M, d]``, each once before any comes again, with a little noise: a table to start from.

    The same for the same points: the draw has its own fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = -(-count // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])[:count]
    noise = torch.randn(count, points.shape[1], generator=generator).to(points)
    return points[order.to(points.device)] + JITTER * points.std(dim=0) * noise
