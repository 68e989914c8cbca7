"""Other ways to keep a learned table alive: online clustering, index backpropagation, a shared affine map."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.quantizers.lookup import over_processes
from codec.quantizers.search import SEARCH_ELEMENTS
from codec.quantizers.simvq import SimVQ
from codec.quantizers.vq import VQ

DECAY = 0.99  # of the running share of hits, a step
ENTROPY = 0.05  # weight of the entropy term beside the distance
TEMPERATURE = 0.01  # of the choices whose entropy is taken


class ClusteredVQ(VQ):
    """Online clustered codebook, CVQ-VAE (Zheng and Vedaldi, arXiv 2307.15139).

    Beside the gradient, each step pulls every code towards a random point of the batch, the more the less it is used:
    ``e_k <- (1 - a_k) e_k + a_k z`` with ``a_k = exp(-10 V p_k / (1 - DECAY) - 0.001)`` and p_k the running share of hits.
    The points depend on the number of updates alone, so that a resumed run draws alike; with several processes the shares
    are those over all of them, and the points are those of the first. Of the paper's anchors these are the random ones (the
    nearest point instead makes many unused codes equal); its contrastive loss is left out.
    """

    share: Tensor
    updates: Tensor

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, config)
        self.register_buffer("share", torch.zeros(config.codebook_size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor) -> None:
        hits = torch.bincount(codes, minlength=self.codebook_size).to(z.dtype)
        z, (hits,) = over_processes(z, [hits])
        self.share.mul_(DECAY).add_(hits / hits.sum(), alpha=1 - DECAY)
        pull = torch.exp(-10 * self.codebook_size * self.share / (1 - DECAY) - 1e-3)[:, None]
        generator = torch.Generator().manual_seed(int(self.updates))
        drawn = torch.randint(0, len(z), (self.codebook_size,), generator=generator)
        self.embedding.lerp_(z[drawn.to(z.device)], pull)
        self.updates += 1


class IndexVQ(VQ):
    """Index backpropagation quantization, IBQ (Shi et al., arXiv 2412.02692).

    The code is the row of largest dot product with z. In the backward pass the choice is a softmax over all codes, so
    that every row of the table, and z, get gradient from the reconstruction. ``codebook_loss`` also holds the distance of
    z to what is carried on (the paper's double quantization loss: it reaches z and, by the softmax, every row), and the
    entropy of each choice less that of the mean choice, in nats, times ``ENTROPY``. These entropies are of the logits over
    ``TEMPERATURE``, as in the authors' code: at temperature 1 the softmax over thousands of short rows is flat, and stays
    so while every point chooses one and the same row. A training step holds softmax rows of all codes, ``[M, V]``.
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

    def extra_loss(self, z: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        logits = z @ self.embedding.t()
        chosen = F.embedding(logits.argmax(dim=-1), self.embedding)
        distance = (self.carry(z, chosen) - z).square().mean(dim=(1, 2))
        log = F.log_softmax(logits / TEMPERATURE, dim=-1)
        each = -(log.exp() * log).sum(dim=-1).mean(dim=1)
        mean = log.exp().mean(dim=(0, 1))
        return distance + ENTROPY * (each + (mean * mean.clamp(min=1e-9).log()).sum())


class AffineVQ(SimVQ):
    """Affine re-parameterisation, ``e_k = s * c_k + b`` with c, s and b learned (Huh et al., arXiv 2305.08842).

    It is SimVQ with a learnable basis and a diagonal map with bias, and is built as that. The paper's larger learning rate
    for s and b is left out.
    """

    def __init__(self, dim: int, config: QuantizerConfig) -> None:
        super().__init__(dim, dataclasses.replace(config, basis="learnable", map="diagonal", map_bias=True))
