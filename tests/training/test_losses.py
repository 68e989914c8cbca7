"""Losses are zero on identical input, finite in value and gradient, and see what they should; so do discriminators."""

import math
from typing import Any

import pytest
import soxr
import torch
from torch import Tensor

from codec.spectral import hz_to_mel, low_pass
from codec.training.config import DiscriminatorConfig, LossConfig
from codec.training.discriminators import DiscriminatorOutput, Discriminators, ResolutionDiscriminator
from codec.training.losses import SpectralLoss, discriminator_loss, feature_matching_loss, generator_loss

RATE = 24000
NOISE = 0.3 * torch.randn((2, 1, 24000), generator=torch.Generator().manual_seed(0))  # far above the floors
SPEECHLIKE = 0.01 * NOISE[..., :12000].cumsum(dim=-1)
FULL = torch.tensor([RATE / 2, RATE / 2])


def spectral(windows: tuple[int, ...] = (1024,), mels: tuple[int, ...] = (80,), **settings: Any) -> SpectralLoss:
    """With the mel term, and the others where they have windows, each of weight 1."""
    settings = {"phase_windows": (1024,), "envelope_windows": ()} | settings
    weights = {"stft": float(bool(settings["phase_windows"])), "envelope": float(bool(settings["envelope_windows"]))}
    return SpectralLoss(RATE, LossConfig(weights=weights, windows=windows, mels=mels, **settings))


def test_zero_on_identical_input_and_finite_gradients() -> None:
    loss = SpectralLoss(RATE, LossConfig())
    x = SPEECHLIKE
    same = loss(x, x, FULL)
    assert set(same) == {"mel", "stft"} and all(value == 0 for value in same.values())
    for estimate in (torch.zeros_like(x), torch.randn_like(x), x * 1.1):
        estimate = estimate.requires_grad_()
        terms = loss(estimate, torch.zeros_like(x), FULL)
        (terms["mel"] + terms["stft"]).backward()
        assert estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_mel_measures_gain_and_forgives_phase_where_stft_does_not() -> None:
    loss, x = spectral(), SPEECHLIKE
    for mel in (loss, spectral((1024,), (1,))):  # of one band alone: the uppermost counts at full bandwidth
        assert mel(2 * x, x, FULL)["mel"].item() == pytest.approx(math.log(2), rel=0.02)
    assert loss(-x, x, FULL)["mel"].item() == pytest.approx(0, abs=1e-6)
    assert loss(2 * NOISE, NOISE, FULL)["stft"].item() == pytest.approx(1.0, rel=0.01)
    assert loss(-NOISE, NOISE, FULL)["stft"].item() == pytest.approx(2, rel=0.01)


def test_an_exponent_makes_weak_components_count() -> None:
    plain, rooted = (spectral(phase_exponent=exponent) for exponent in (1.0, 0.5))
    assert rooted(4 * NOISE, NOISE, FULL)["stft"].item() == pytest.approx(1.0, rel=0.12)  # sqrt(4) - 1, less the floor
    t = torch.arange(12000) / RATE
    strong, weak = torch.sin(2 * torch.pi * 300 * t), 0.01 * torch.sin(2 * torch.pi * 3000 * t)
    both, without = (w.expand(2, 1, -1) for w in (strong + weak, strong))
    assert rooted(without, both, FULL)["stft"] > 2 * plain(without, both, FULL)["stft"] > 0
    silence = torch.zeros(2, 1, 12000, requires_grad=True)
    rooted(silence, both, FULL)["stft"].backward()
    assert silence.grad is not None and torch.isfinite(silence.grad).all()


def test_on_the_mel_scale_the_upper_bins_count_less() -> None:
    linear, mel = (spectral(phase_scale=scale) for scale in ("linear", "mel"))
    lower = low_pass(NOISE, torch.tensor([6000 / 0.92] * 2), RATE)  # only the upper half of the bins is wrong
    assert linear(lower, NOISE, FULL)["stft"].item() == pytest.approx(0.5, abs=0.03)
    share = 1 - float(hz_to_mel(torch.tensor(6000.0)) / hz_to_mel(torch.tensor(12000.0)))
    assert mel(lower, NOISE, FULL)["stft"].item() == pytest.approx(share, abs=0.03)
    wrong = low_pass(NOISE, torch.tensor([7360.0] * 2), RATE)
    for loss in (linear, mel):  # and the bandwidth still rules
        assert loss(wrong, NOISE, torch.tensor([6000.0, 6000.0]))["stft"] < 1e-3


def test_envelope_is_ruled_by_the_loud_moments_of_each_band() -> None:
    loss = spectral((512, 1024), (64, 80), phase_windows=(), envelope_windows=(512,))
    speech = torch.cat([NOISE[..., :12000], 0.003 * NOISE[..., 12000:]], dim=-1)
    assert loss(speech, speech, FULL).keys() == {"mel", "envelope"} and loss(speech, speech, FULL)["envelope"] == 0
    assert loss(1.5 * speech, speech, FULL)["envelope"].item() == pytest.approx(0.5, abs=0.02)
    assert loss(-speech, speech, FULL)["envelope"] == 0  # it forgives phase
    first = torch.arange(24000) < 12000
    terms = [loss(torch.where(part, 1.5 * speech, speech), speech, FULL) for part in (first, ~first)]
    assert terms[0]["envelope"] > 50 * terms[1]["envelope"]  # to the log-mel term both are alike
    assert terms[0]["mel"].item() == pytest.approx(terms[1]["mel"].item(), rel=0.1)
    hiss = speech + 0.3 * torch.sin(2 * torch.pi * 10500 * torch.arange(24000) / RATE)
    assert loss(hiss, speech, FULL)["envelope"] > 50 * loss(hiss, speech, torch.tensor([8000.0, 8000.0]))["envelope"]
    estimate = speech.clone().requires_grad_()  # right already: the root in the norm must not give NaN
    loss(estimate, speech, FULL)["envelope"].backward()
    assert estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_nothing_above_the_bandwidth_counts() -> None:
    """Nor where a recording fades out: 16 kHz speech brought to 24 kHz lacks what it had just below 8 kHz."""
    loss, x = spectral((1024, 2048), (80, 128)), SPEECHLIKE
    hiss = x + 0.05 * torch.sin(2 * torch.pi * 10500 * torch.arange(12000) / RATE)
    narrow, wide = loss(hiss, x, torch.tensor([8000.0, 8000.0])), loss(hiss, x, FULL)
    assert wide["mel"] > 20 * narrow["mel"] and wide["stft"] > 20 * narrow["stft"]
    narrow = soxr.resample(soxr.resample(NOISE[:, 0].T.numpy(), RATE, 16000), 16000, RATE)
    faded = torch.from_numpy(narrow.T)[:, None]
    counted, all_of_it = loss(faded, NOISE, torch.tensor([8000.0, 8000.0])), loss(faded, NOISE, FULL)
    assert counted["mel"] < 1e-3 and all_of_it["mel"] > 0.5


def test_hinge_losses() -> None:
    """Of two discriminators, on two recorded items and two decoded ones; beyond the margin nothing more is gained."""
    logits = [[0.5, 3.0, 0.25, -2.0], [-1.0, 1.0, -3.0, 0.5]]
    outputs = [DiscriminatorOutput(torch.tensor(each), []) for each in logits]
    expected = ((0.5 + 0 + 1.25 + 0) / 2 + (2 + 0 + 0 + 1.5) / 2) / 2
    assert discriminator_loss(outputs, recorded=2).item() == pytest.approx(expected)
    assert generator_loss(outputs, recorded=2).item() == pytest.approx(((0.75 + 3) / 2 + (4 + 0.5) / 2) / 2)


def test_feature_matching_averages_items_layers_and_discriminators() -> None:
    """Of two decoders: what the second decodes is as recorded."""

    def output(*layers: list[list[float]]) -> DiscriminatorOutput:
        """One layer per argument: activations of two recorded items, then of what the first decoder makes of them."""
        activations = [torch.tensor([*layer, *layer[:2]])[:, None, None] for layer in layers]
        return DiscriminatorOutput(torch.randn(6, 1, 1, 1), activations)

    both = [
        output([[2.0, -2.0], [8.0, 8.0], [1.0, -2.0], [8.0, 8.0]], [[4.0, 4.0], [4.0, 4.0], [4.0, 0.0], [4.0, 4.0]]),
        output([[0.5] * 3, [0.5] * 3, [0.5, 0.5, -0.25], [0.5] * 3]),
    ]
    # the second items agree; of the first ones the layers differ by 0.5 / 2 and 2 / 4, and by 0.25 / 0.5
    expected = ((0.25 / 2 + 0.5 / 2) / 2 + 0.5 / 2) / 2
    assert feature_matching_loss(both, 2).item() == pytest.approx(expected / 2)


# ---- gradients through discriminators of both families ---------------------------------------------------------------

PERIODS = DiscriminatorConfig(periods=(2, 7), period_channels=2, period_max_channels=8, resolutions=())
RESOLUTIONS = DiscriminatorConfig(periods=(), resolutions=(256, 512), resolution_channels=4, band_edges=(0.25,))


@pytest.mark.parametrize("n_fft", [256, 1024])
def test_spectrograms_of_noise_have_one_size_and_stay_float32_under_autocast(n_fft: int) -> None:
    discriminator = ResolutionDiscriminator(n_fft, channels=2, stride=1, band_edges=())
    seen: list[Tensor] = []
    discriminator.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        output = discriminator(torch.randn(1, 1, 24000).bfloat16())
    assert seen[0].square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.05)
    assert seen[0].dtype == generator_loss([output], 0).dtype == torch.float32 != output.logits.dtype


@pytest.mark.parametrize("config", [PERIODS, RESOLUTIONS], ids=["periods", "resolutions"])
def test_losses_reach_the_waveform_and_every_parameter(config: DiscriminatorConfig) -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(config)
    noise = 0.1 * torch.randn(4, 2, 1, 4800)
    for real, fake in (noise[:2], torch.zeros(2, 2, 1, 4800)):
        outputs = discriminators(torch.cat([real, fake.requires_grad_()]))
        for loss in (generator_loss(outputs, 2), feature_matching_loss(outputs, 2)):
            (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
            assert torch.isfinite(gradient).all()  # also on silence
            assert (gradient != 0).float().mean() > 0.9 or not real.any(), "every part of the waveform is seen"
    both = noise[2:].flatten(0, 1)
    discriminator_loss(discriminators(both), len(both) // 2).backward()
    for name, parameter in discriminators.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # the two hinges pull the last bias up and down alike while every logit lies inside the margin
        assert parameter.grad.abs().max() > 0 or name.endswith("output.bias"), name
