"""How the gradient passes a lookup, which has none of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GRADIENTS = ("straight_through", "rotation")


def pass_gradient(z: Tensor, chosen: Tensor, how: str) -> Tensor:
    """``chosen`` in value, to the bit, with a gradient to ``z``; both ``[..., d]``, none to ``chosen``.

    ``straight_through``: the identity (Bengio et al., arXiv 1308.3432). ``rotation``: the rotation and scaling that take
    z to its code, held fixed, so that gradients keep their angle to the vector they belong to (Fifty et al.,
    arXiv 2410.06424). With ``u = z / |z|``, ``v = e / |e|`` and ``r = (u + v) / |u + v|`` it is
    ``|e| / |z| * (I - 2 r r^T + 2 v u^T)``. Opposite vectors have no ``r``: there the map is the identity less
    ``2 u u^T``, which also takes u to v.
    """
    assert how in GRADIENTS, how
    value = chosen.detach()
    if how == "straight_through":
        return value + (z - z.detach())
    with torch.no_grad():
        scale = value.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        u, v = F.normalize(z, dim=-1), F.normalize(value, dim=-1)
        r = F.normalize(u + v, dim=-1)
    carried = scale * (z - 2 * r * (r * z).sum(dim=-1, keepdim=True) + 2 * v * (u * z).sum(dim=-1, keepdim=True))
    return value + (carried - carried.detach())
