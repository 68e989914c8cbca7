"""Other ways to keep a learned table alive: online clustering, index backpropagation, a shared affine map."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.search import SEARCH_ELEMENTS, nearest
from codec.quantizers.simvq import SimVQ
from codec.quantizers.vq import VQ

DECAY = 0.99  # of the running share of hits, a step


class ClusteredVQ(VQ):
    """Online clustered codebook, CVQ-VAE (Zheng and Vedaldi, arXiv 2307.15139).

    Beside the gradient, each step pulls every code towards the point of the batch nearest to it, the more the less it is
    used: ``e_k <- (1 - a_k) e_k + a_k z_near(k)`` with ``a_k = exp(-10 V p_k / (1 - DECAY) - 0.001)`` and p_k the running
    share of hits. The paper also offers random anchors and a contrastive loss; they are left out.
    """

    share: Tensor

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, config)
        self.register_buffer("share", torch.zeros(config.codebook_size))

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        hits = torch.bincount(codes, minlength=self.codebook_size).to(z.dtype) / len(codes)
        self.share.mul_(DECAY).add_(hits, alpha=1 - DECAY)
        pull = torch.exp(-10 * self.codebook_size * self.share / (1 - DECAY) - 1e-3)[:, None]
        anchors = z[nearest(self.codebook, z)]
        self.embedding.lerp_(anchors, pull)


class IndexVQ(VQ):
    """Index backpropagation quantization, IBQ (Shi et al., arXiv 2412.02692).

    The code is the row of largest dot product with z. In the backward pass the choice is a softmax over all codes, so
    that every row of the table, and z, get gradient from the reconstruction. The paper's entropy term and double
    quantization loss are left out. A training step holds softmax rows of all codes, ``[M, V]``.
    """

    def search(self, z: Tensor) -> Tensor:
        rows = max(1, SEARCH_ELEMENTS // self.codebook_size)
        table = self.codebook.t()
        return torch.cat([(part.float() @ table).argmax(dim=1) for part in z.split(rows)])

    def carry(self, z: Tensor, chosen: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return chosen
        soft = F.softmax(z @ self.embedding.t(), dim=-1)
        return chosen + (soft - soft.detach()) @ self.embedding.detach()  # the second part is zero in value


class AffineVQ(SimVQ):
    """Affine re-parameterisation, ``e_k = s * c_k + b`` with c, s and b learned (Huh et al., arXiv 2305.08842).

    It is SimVQ with a learnable basis and a diagonal map with bias, and is built as that.
    """

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, dataclasses.replace(config, basis="learnable", map="diagonal", map_bias=True))
