"""Discriminators and adversarial losses: shapes, gradients, known values, refused configurations, learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from codec.config import ConfigError, from_dict, to_dict
from codec.training.adversarial import AdversarialKind, discriminator_loss, feature_matching_loss, generator_loss
from codec.training.discriminators import (
    DiscriminatorConfig,
    DiscriminatorOutput,
    Discriminators,
    PeriodDiscriminator,
    ResolutionDiscriminator,
)

SAMPLE_RATE = 24000
PERIODS = DiscriminatorConfig(periods=(2, 7), period_channels=2, period_max_channels=8, resolutions=())
RESOLUTIONS = DiscriminatorConfig(periods=(), resolutions=(256, 512), resolution_channels=4, band_edges=(0.25,))
FAMILIES = pytest.mark.parametrize("config", [PERIODS, RESOLUTIONS], ids=["periods", "resolutions"])
KINDS = pytest.mark.parametrize("kind", ["hinge", "least_squares"])


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and on a busy machine those wait for each other for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def noise(batch: int = 2, length: int = 4800) -> Tensor:
    return 0.1 * torch.randn(batch, 1, length)


def scores(*values: float) -> list[DiscriminatorOutput]:
    """One discriminator a value, all of whose logits are that value; hidden activations of ones."""
    return [DiscriminatorOutput(torch.full((2, 1, 3, 5), value), [torch.ones(2, 4, 3, 5)]) for value in values]


class TestShapes:
    @pytest.mark.parametrize("length", [4800, 4801, 12345])
    @pytest.mark.parametrize("period", [1, 2, 11])
    def test_period(self, period: int, length: int) -> None:
        output = PeriodDiscriminator(period, channels=2, max_channels=16)(noise(3, length))
        heights = [math.ceil(length / period)]
        for stride in (3, 3, 3, 3, 1):
            heights.append(math.ceil(heights[-1] / stride))
        assert output.logits.shape == (3, 1, heights[-1], period)
        assert [f.shape for f in output.features] == [
            (3, width, height, period) for width, height in zip((2, 8, 16, 16, 16), heights[1:], strict=True)
        ]

    @pytest.mark.parametrize("stride", [1, 4])
    @pytest.mark.parametrize("edges", [(), (0.1, 0.25, 0.5, 0.75)], ids=["one band", "five bands"])
    def test_resolution(self, edges: tuple[float, ...], stride: int) -> None:
        output = ResolutionDiscriminator(512, channels=4, stride=stride, band_edges=edges)(noise(3, 5000))
        frames = 5000 // 128 + 1
        limits = [0, *(int(edge * 257) for edge in edges), 257]
        bins = []  # of every layer of every band
        for low, high in pairwise(limits):
            bins.append(math.ceil((high - low) / stride))
            for step in (2, 2, 2, 1):
                bins.append(math.ceil(bins[-1] / step))
        assert [f.shape for f in output.features] == [(3, 4, frames, width) for width in bins]
        assert output.logits.shape == (3, 1, frames, sum(bins[4::5]))

    def test_all_together(self) -> None:
        config = DiscriminatorConfig(
            periods=(2, 3, 5), period_channels=2, period_max_channels=4, resolutions=(256, 512), resolution_channels=2
        )
        outputs = Discriminators(config)(noise())
        assert [len(output.features) for output in outputs] == [5, 5, 5, 25, 25]

    def test_a_column_of_the_folded_waveform_depends_on_its_own_samples_only(self) -> None:
        waveform = noise(1)
        changed = waveform.clone()
        changed[..., 3::5] += 0.1
        discriminator = PeriodDiscriminator(5, channels=2, max_channels=8)
        moved = (discriminator(waveform).logits - discriminator(changed).logits).abs().amax(dim=(0, 1, 2))
        assert (moved > 0).tolist() == [False, False, False, True, False]

    def test_spectrogram_is_float32_under_autocast(self) -> None:
        discriminator = ResolutionDiscriminator(256, channels=2, stride=1, band_edges=())
        seen: list[Tensor] = []
        discriminator.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            output = discriminator(noise().bfloat16())
        assert seen[0].dtype == torch.float32
        assert output.logits.dtype == torch.bfloat16
        assert generator_loss([output], "hinge").dtype == torch.float32

    @pytest.mark.parametrize("n_fft", [256, 1024])
    def test_noise_has_the_same_spectral_size_at_every_resolution(self, n_fft: int) -> None:
        discriminator = ResolutionDiscriminator(n_fft, channels=2, stride=1, band_edges=())
        seen: list[Tensor] = []
        discriminator.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        discriminator(torch.randn(1, 1, 24000))
        assert seen[0].square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.05)


class TestGradients:
    @FAMILIES
    @KINDS
    def test_generator_losses_reach_the_waveform(self, config: DiscriminatorConfig, kind: AdversarialKind) -> None:
        discriminators = Discriminators(config)
        real, fake = noise(), noise().requires_grad_()
        for loss in (
            generator_loss(discriminators(fake), kind),
            feature_matching_loss(discriminators(real), discriminators(fake)),
        ):
            (gradient,) = torch.autograd.grad(loss, fake)
            assert torch.isfinite(gradient).all()
            assert (gradient != 0).float().mean() > 0.9, "every part of the waveform is judged"

    @FAMILIES
    @KINDS
    def test_discriminator_loss_trains_every_weight_and_leaves_the_generator_alone(
        self, config: DiscriminatorConfig, kind: AdversarialKind
    ) -> None:
        discriminators = Discriminators(config)
        gain = torch.ones((), requires_grad=True)  # stands for the generator's weights
        fake = gain * noise()
        discriminator_loss(discriminators(noise()), discriminators(fake.detach()), kind).backward()
        assert gain.grad is None
        for name, parameter in discriminators.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            # the two hinges pull the last bias up and down alike while every logit lies inside the margin
            assert parameter.grad.abs().max() > 0 or name.endswith("output.bias"), name

    @FAMILIES
    def test_frozen_discriminators_still_pass_the_gradient_on(self, config: DiscriminatorConfig) -> None:
        discriminators = Discriminators(config).requires_grad_(False)
        fake = noise().requires_grad_()
        generator_loss(discriminators(fake), "hinge").backward()
        assert fake.grad is not None and fake.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in discriminators.parameters())

    @FAMILIES
    def test_silence_gives_finite_gradients(self, config: DiscriminatorConfig) -> None:
        discriminators = Discriminators(config)
        fake = torch.zeros(2, 1, 4800, requires_grad=True)
        real = discriminators(torch.zeros(2, 1, 4800))
        loss = generator_loss(discriminators(fake), "hinge") + feature_matching_loss(real, discriminators(fake))
        loss.backward()
        assert fake.grad is not None and torch.isfinite(fake.grad).all()


class TestKnownValues:
    """Logits made by hand; the means over two discriminators are worked out beside them."""

    @pytest.mark.parametrize(
        ("kind", "real", "fake", "expected"),
        [
            ("hinge", (1.0,), (-1.0,), 0.0),
            ("hinge", (3.0,), (-2.0,), 0.0),  # beyond the margin nothing more is gained
            ("hinge", (0.0,), (0.0,), 2.0),
            ("hinge", (0.5, -1.0), (0.25, -3.0), ((0.5 + 1.25) + (2.0 + 0.0)) / 2),
            ("least_squares", (1.0,), (0.0,), 0.0),
            ("least_squares", (3.0,), (-2.0,), 8.0),
            ("least_squares", (0.5, -1.0), (0.25, -3.0), ((0.25 + 0.0625) + (4.0 + 9.0)) / 2),
        ],
    )
    def test_discriminator_loss(
        self, kind: AdversarialKind, real: tuple[float, ...], fake: tuple[float, ...], expected: float
    ) -> None:
        assert discriminator_loss(scores(*real), scores(*fake), kind).item() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("kind", "fake", "expected"),
        [
            ("hinge", (1.0,), 0.0),
            ("hinge", (4.0,), 0.0),
            ("hinge", (-0.5, 0.5), (1.5 + 0.5) / 2),
            ("least_squares", (1.0,), 0.0),
            ("least_squares", (4.0,), 9.0),
            ("least_squares", (-0.5, 0.5), (2.25 + 0.25) / 2),
        ],
    )
    def test_generator_loss(self, kind: AdversarialKind, fake: tuple[float, ...], expected: float) -> None:
        assert generator_loss(scores(*fake), kind).item() == pytest.approx(expected)

    def test_feature_matching_averages_items_layers_and_discriminators(self) -> None:
        def output(*layers: list[list[float]]) -> DiscriminatorOutput:
            """One layer an argument, one list of activations an item."""
            return DiscriminatorOutput(torch.randn(2, 1, 1, 1), [torch.tensor(v)[:, None, None] for v in layers])

        real = [output([[2.0, -2.0], [8.0, 8.0]], [[4.0, 4.0], [4.0, 4.0]]), output([[0.5] * 3, [0.5] * 3])]
        fake = [output([[1.0, -2.0], [8.0, 8.0]], [[4.0, 0.0], [4.0, 4.0]]), output([[0.5, 0.5, -0.25], [0.5] * 3])]
        # the second items agree; of the first ones the layers differ by 0.5 / 2 and 2 / 4, and by 0.25 / 0.5
        expected = ((0.25 / 2 + 0.5 / 2) / 2 + 0.5 / 2) / 2
        assert feature_matching_loss(real, fake).item() == pytest.approx(expected)

    @FAMILIES
    def test_feature_matching_is_zero_on_identical_input_only(self, config: DiscriminatorConfig) -> None:
        discriminators = Discriminators(config)
        real = noise()
        assert feature_matching_loss(discriminators(real), discriminators(real.clone())).item() == 0.0
        assert feature_matching_loss(discriminators(real), discriminators(real + noise())).item() > 0.1

    def test_feature_matching_holds_the_recorded_side_fixed(self) -> None:
        real, fake = torch.ones(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 2, 3, 4, requires_grad=True)
        logits = torch.zeros(1)
        feature_matching_loss([DiscriminatorOutput(logits, [real])], [DiscriminatorOutput(logits, [fake])]).backward()
        assert real.grad is None
        assert fake.grad is not None

    def test_an_unknown_kind_is_refused(self) -> None:
        unknown: Any = "wasserstein"
        with pytest.raises(ValueError, match=r"hinge.*wasserstein"):
            generator_loss(scores(0.0), unknown)
        with pytest.raises(ValueError, match=r"hinge.*wasserstein"):
            discriminator_loss(scores(0.0), scores(0.0), unknown)

    def test_lists_of_different_discriminators_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            discriminator_loss(scores(0.0, 0.0), scores(0.0), "hinge")
        with pytest.raises(ValueError, match="zip"):
            feature_matching_loss(scores(0.0, 0.0), scores(0.0))


class TestConfig:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"periods": [], "resolutions": []}, "must not both be empty"),
            ({"periods": [2, 0]}, "periods must be 1 or more, not 0"),
            ({"periods": [2, 2]}, "periods must differ"),
            ({"period_channels": 0}, "period_channels must be 1 or more"),
            ({"period_channels": 64, "period_max_channels": 32}, "period_max_channels must not be below"),
            ({"resolutions": [1024, 510]}, "resolutions must be multiples of 4, not 510"),
            ({"resolutions": [1024, 1024]}, "resolutions must differ"),
            ({"resolution_channels": -1}, "resolution_channels must be 1 or more, not -1"),
            ({"resolution_stride": 0}, "resolution_stride must be from 1 to 9, the kernel's width, not 0"),
            ({"resolution_stride": 10}, "not 10"),
            ({"band_edges": [0.5, 0.25]}, "band_edges must rise"),
            ({"band_edges": [0.0, 0.5]}, "band_edges must rise"),
            ({"band_edges": [0.5, 1.0]}, "band_edges must rise"),
            ({"resolutions": [8], "band_edges": [0.1]}, "8 is too short to give each band"),
            ({"periods": 2}, "periods must be a list"),
            ({"periods": [2.0]}, r"periods\[0\] must be of type int"),
            ({"hops": [256]}, "unknown key hops"),
        ],
    )
    def test_errors_say_what_is_wrong(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            from_dict(DiscriminatorConfig, values)

    def test_round_trip_through_plain_values(self) -> None:
        config = DiscriminatorConfig(periods=(2, 3), resolutions=(), band_edges=(0.5,))
        assert from_dict(DiscriminatorConfig, to_dict(config)) == config

    def test_the_literature_size_has_the_widths_of_hifi_gan(self) -> None:
        config = DiscriminatorConfig(periods=(2,), period_channels=32, period_max_channels=1024, resolutions=())
        (member,) = Discriminators(config).members
        assert [layer.weight.shape[0] for layer in member.layers] == [32, 128, 512, 1024, 1024]


@FAMILIES
@KINDS
def test_learns_to_tell_a_sine_from_noise(config: DiscriminatorConfig, kind: AdversarialKind) -> None:
    discriminators = Discriminators(config)
    optimizer = torch.optim.Adam(discriminators.parameters(), 3e-3, betas=(0.8, 0.99))
    time = torch.arange(4800) / SAMPLE_RATE
    losses = []
    for _ in range(40):
        frequency, phase = 100 + 400 * torch.rand(4, 1, 1), 2 * math.pi * torch.rand(4, 1, 1)
        real = 0.14 * torch.sin(2 * math.pi * frequency * time + phase)  # the power of the noise
        loss = discriminator_loss(discriminators(real), discriminators(noise(4)), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]


@FAMILIES
def test_state_dict_round_trip(config: DiscriminatorConfig) -> None:
    first, second = Discriminators(config), Discriminators(config)
    waveform = noise()
    before = [output.logits for output in first(waveform)]
    assert not torch.equal(before[0], second(waveform)[0].logits)
    second.load_state_dict(first.state_dict())
    after = [output.logits for output in second(waveform)]
    assert len(before) == len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
