"""Gradients of the adversarial losses, through discriminators of both families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codec.training.config import DiscriminatorConfig
from codec.training.discriminators import Discriminators, ResolutionDiscriminator
from codec.training.losses import discriminator_loss, feature_matching_loss, generator_loss

PERIODS = DiscriminatorConfig(periods=(2, 7), period_channels=2, period_max_channels=8, resolutions=())
RESOLUTIONS = DiscriminatorConfig(periods=(), resolutions=(256, 512), resolution_channels=4, band_edges=(0.25,))
FAMILIES = pytest.mark.parametrize("config", [PERIODS, RESOLUTIONS], ids=["periods", "resolutions"])


def noise(batch: int = 2, length: int = 4800) -> Tensor:
    return 0.1 * torch.randn(batch, 1, length)


@pytest.mark.parametrize("n_fft", [256, 1024])
def test_spectrograms_of_noise_have_one_size_and_stay_float32_under_autocast(n_fft: int) -> None:
    discriminator = ResolutionDiscriminator(n_fft, channels=2, stride=1, band_edges=())
    seen: list[Tensor] = []
    discriminator.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        output = discriminator(torch.randn(1, 1, 24000).bfloat16())
    assert seen[0].square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.05)
    assert seen[0].dtype == generator_loss([output]).dtype == torch.float32 != output.logits.dtype


@FAMILIES
def test_generator_losses_reach_the_waveform(config: DiscriminatorConfig) -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(config)
    for real, fake in ((noise(), noise()), (torch.zeros(2, 1, 4800), torch.zeros(2, 1, 4800))):
        outputs = discriminators(fake.requires_grad_())
        for loss in (generator_loss(outputs), feature_matching_loss(discriminators(real), outputs)):
            (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
            assert torch.isfinite(gradient).all()  # also on silence
            share = (gradient != 0).float().mean()
            assert share > 0.9 or not real.any(), "every part of the waveform is seen"


@FAMILIES
def test_discriminator_loss_trains_every_parameter(config: DiscriminatorConfig) -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(config)
    discriminator_loss(discriminators(noise()), discriminators(noise())).backward()
    for name, parameter in discriminators.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # the two hinges pull the last bias up and down alike while every logit lies inside the margin
        assert parameter.grad.abs().max() > 0 or name.endswith("output.bias"), name
