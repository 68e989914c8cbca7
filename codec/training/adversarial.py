"""Adversarial losses over the outputs of ``codec.training.discriminators``.

Notation: D_k(x) are the logits of discriminator k of K, x is recorded and x' decoded speech. Every loss is a mean over
logits and then over discriminators, so its size depends neither on their number nor on the segments' length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.training.discriminators import DiscriminatorOutput

AdversarialKind = Literal["hinge", "least_squares"]

FEATURE_FLOOR = 1e-3  # a layer silent on recorded speech must not make the relative distance explode


def discriminator_loss(
    real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput], kind: AdversarialKind
) -> Tensor:
    """What the discriminators minimise; ``fake`` are their outputs on detached decoded speech.

    - hinge: ``1/K sum_k mean max(0, 1 - D_k(x)) + mean max(0, 1 + D_k(x'))`` (Lim and Ye, arXiv 1705.02894; for codecs
      SoundStream, arXiv 2107.03312).
    - least_squares: ``1/K sum_k mean (1 - D_k(x))^2 + mean D_k(x')^2`` (Mao et al., arXiv 1611.04076; HiFi-GAN,
      arXiv 2010.05646).
    """
    terms = [
        _distance_from_real(r.logits, kind) + _distance_from_fake(f.logits, kind)
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def generator_loss(fake: list[DiscriminatorOutput], kind: AdversarialKind) -> Tensor:
    """What the codec minimises so that its speech passes for recorded.

    - hinge: ``1/K sum_k mean max(0, 1 - D_k(x'))``, SoundStream's form: unlike ``-D_k(x')`` it stops pulling where a
      discriminator is already convinced.
    - least_squares: ``1/K sum_k mean (1 - D_k(x'))^2`` (HiFi-GAN).
    """
    return torch.stack([_distance_from_real(f.logits, kind) for f in fake]).mean()


def feature_matching_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
    """Distance of the hidden activations, relative to their mean size on recorded speech.

    ``1/K sum_k 1/L_k sum_l mean |F_kl(x) - F_kl(x')| / mean |F_kl(x)|`` for each item, both means over its activations;
    then the mean over items. It averages over a discriminator's L_k layers, then over discriminators (EnCodec, arXiv
    2210.13438, eq. 2). The logits do not count, and the recorded speech's activations are a target without gradient.
    """
    terms = []
    for r, f in zip(real, fake, strict=True):
        layers = [_relative_distance(fr.detach(), ff) for fr, ff in zip(r.features, f.features, strict=True)]
        terms.append(torch.stack(layers).mean())
    return torch.stack(terms).mean()


def _distance_from_real(logits: Tensor, kind: AdversarialKind) -> Tensor:
    logits = logits.float()
    if kind == "hinge":
        return F.relu(1 - logits).mean()
    if kind == "least_squares":
        return (1 - logits).square().mean()
    raise ValueError(f"kind must be 'hinge' or 'least_squares', not {kind!r}")


def _distance_from_fake(logits: Tensor, kind: AdversarialKind) -> Tensor:
    logits = logits.float()
    if kind == "hinge":
        return F.relu(1 + logits).mean()
    if kind == "least_squares":
        return logits.square().mean()
    raise ValueError(f"kind must be 'hinge' or 'least_squares', not {kind!r}")


def _relative_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Item by item, so that a batch shared by several processes gives the gradient of the whole."""
    size = real.float().abs().mean(dim=(1, 2, 3)).clamp(min=FEATURE_FLOOR)
    return ((real.float() - fake.float()).abs().mean(dim=(1, 2, 3)) / size).mean()
