"""Discriminators: shapes, gradients through the adversarial losses, refused configurations."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from codec.config import ConfigError, from_dict
from codec.training.config import DiscriminatorConfig
from codec.training.discriminators import Discriminators, PeriodDiscriminator, ResolutionDiscriminator
from codec.training.losses import discriminator_loss, feature_matching_loss, generator_loss

PERIODS = DiscriminatorConfig(periods=(2, 7), period_channels=2, period_max_channels=8, resolutions=())
RESOLUTIONS = DiscriminatorConfig(periods=(), resolutions=(256, 512), resolution_channels=4, band_edges=(0.25,))
FAMILIES = pytest.mark.parametrize("config", [PERIODS, RESOLUTIONS], ids=["periods", "resolutions"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def noise(batch: int = 2, length: int = 4800) -> Tensor:
    return 0.1 * torch.randn(batch, 1, length)


class TestShapes:
    @pytest.mark.parametrize(("period", "length"), [(1, 4800), (2, 4801), (11, 12345)])
    def test_period(self, period: int, length: int) -> None:
        output = PeriodDiscriminator(period, channels=2, max_channels=16)(noise(3, length))
        heights = [math.ceil(length / period / 3**layer) for layer in (1, 2, 3, 4, 4)]
        assert output.logits.shape == (3, 1, heights[-1], period)
        shapes = [(3, width, height, period) for width, height in zip((2, 8, 16, 16, 16), heights, strict=True)]
        assert [f.shape for f in output.features] == shapes

    @pytest.mark.parametrize("stride", [1, 4])
    @pytest.mark.parametrize("edges", [(), (0.1, 0.25, 0.5, 0.75)], ids=["one band", "five bands"])
    def test_resolution(self, edges: tuple[float, ...], stride: int) -> None:
        output = ResolutionDiscriminator(512, channels=4, stride=stride, band_edges=edges)(noise(3, 5000))
        frames = 5000 // 128 + 1
        bands = [high - low for low, high in pairwise([0, *(int(edge * 257) for edge in edges), 257])]
        bins = [math.ceil(band / stride / step) for band in bands for step in (1, 2, 4, 8, 8)]  # of every layer
        assert [f.shape for f in output.features] == [(3, 4, frames, width) for width in bins]
        assert output.logits.shape == (3, 1, frames, sum(bins[4::5]))

    def test_a_column_of_the_folded_waveform_depends_on_its_own_samples_only(self) -> None:
        waveform = noise(1)
        changed = waveform.clone()
        changed[..., 3::5] += 0.1
        discriminator = PeriodDiscriminator(5, channels=2, max_channels=8)
        moved = (discriminator(waveform).logits - discriminator(changed).logits).abs().amax(dim=(0, 1, 2))
        assert (moved > 0).tolist() == [False, False, False, True, False]

    @pytest.mark.parametrize("n_fft", [256, 1024])
    def test_spectrograms_of_noise_have_one_size_and_stay_float32_under_autocast(self, n_fft: int) -> None:
        discriminator = ResolutionDiscriminator(n_fft, channels=2, stride=1, band_edges=())
        seen: list[Tensor] = []
        discriminator.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            output = discriminator(torch.randn(1, 1, 24000).bfloat16())
        assert seen[0].square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.05)
        assert seen[0].dtype == generator_loss([output]).dtype == torch.float32 != output.logits.dtype


class TestGradients:
    @FAMILIES
    def test_generator_losses_reach_the_waveform(self, config: DiscriminatorConfig) -> None:
        discriminators = Discriminators(config)
        for real, fake in ((noise(), noise()), (torch.zeros(2, 1, 4800), torch.zeros(2, 1, 4800))):
            outputs = discriminators(fake.requires_grad_())
            for loss in (generator_loss(outputs), feature_matching_loss(discriminators(real), outputs)):
                (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
                assert torch.isfinite(gradient).all()  # also on silence
                share = (gradient != 0).float().mean()
                assert share > 0.9 or not real.any(), "every part of the waveform is seen"

    @FAMILIES
    def test_discriminator_loss_trains_the_discriminators_alone(self, config: DiscriminatorConfig) -> None:
        discriminators = Discriminators(config)
        gain = torch.ones((), requires_grad=True)  # stands for the generator's weights
        fake = gain * noise()
        discriminator_loss(discriminators(noise()), discriminators(fake.detach())).backward()
        assert gain.grad is None
        for name, parameter in discriminators.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            # the two hinges pull the last bias up and down alike while every logit lies inside the margin
            assert parameter.grad.abs().max() > 0 or name.endswith("output.bias"), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"periods": [], "resolutions": []}, "must not both be empty"),
        ({"periods": [2, 0]}, "periods must be 1 or more, not 0"),
        ({"period_channels": 64, "period_max_channels": 32}, "period_max_channels must be 64 or more, not 32"),
        ({"resolutions": [1024, 510]}, r"resolutions must be multiples of 4, not \[1024, 510\]"),
        ({"resolution_stride": 0}, "resolution_stride must be from 1 to 9, not 0"),
        ({"band_edges": [0.5, 0.25]}, "band_edges must rise and leave each band a bin of 2048"),
        ({"resolutions": [8], "band_edges": [0.1]}, "band_edges must rise and leave each band a bin of 8"),
    ],
)
def test_mistaken_configurations_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(DiscriminatorConfig, values)
