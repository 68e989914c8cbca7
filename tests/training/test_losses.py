"""Losses are zero on identical input, finite in value and gradient, and see what they should."""

from __future__ import annotations

import math

import pytest
import soxr
import torch

from codec.spectral import bin_frequencies, hz_to_mel, low_pass, mel_edges, mel_filterbank, mel_to_hz, stft
from codec.training.losses import SpectralLoss

RATE = 24000
WINDOWS, MELS, PHASE = (128, 256, 512, 1024, 2048), (16, 32, 64, 80, 128), (256, 512, 1024)
FULL = torch.tensor([RATE / 2, RATE / 2])


def speechlike(batch: int = 2, samples: int = 12000) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0)).cumsum(dim=-1) * 0.003


def test_stft_is_the_definition() -> None:
    x = torch.randn(1, 4096, dtype=torch.float64)
    n, hop = 256, 64
    made = stft(x.float(), n, hop)
    padded = torch.nn.functional.pad(x, (n // 2, n // 2))
    window = torch.hann_window(n, dtype=torch.float64)
    for frame in (0, 7, made.shape[1] - 1):
        expected = torch.fft.rfft(padded[0, frame * hop : frame * hop + n] * window)
        torch.testing.assert_close(made[0, frame].to(torch.complex128), expected, atol=1e-4, rtol=1e-4)


def test_mel_scale_and_filterbank() -> None:
    f = torch.tensor([0.0, 500.0, 1000.0, 6400.0])
    torch.testing.assert_close(hz_to_mel(f), torch.tensor([0.0, 7.5, 15.0, 42.0]))
    torch.testing.assert_close(mel_to_hz(hz_to_mel(f)), f)
    for n_fft, n_mels in zip(WINDOWS, MELS, strict=True):
        filters = mel_filterbank(RATE, n_fft, n_mels)
        torch.testing.assert_close(filters.sum(dim=0), torch.ones(n_mels))
        centre = (filters * bin_frequencies(RATE, n_fft)[:, None]).sum(dim=0)
        assert (centre[1:] > centre[:-1]).all()
    for rate in (16000, 22050, 24000, 44100, 48000):
        assert rate / 2 * (1 - 1e-4) < mel_edges(rate, 80)[-1].item() <= rate / 2


def test_the_uppermost_band_counts_at_full_bandwidth() -> None:
    x = speechlike()
    only_band = SpectralLoss(RATE, (512,), (1,), ())
    assert only_band(2 * x, x, FULL)["mel"].item() == pytest.approx(math.log(2), rel=0.02)


def test_zero_on_identical_input_and_finite_gradients() -> None:
    loss = SpectralLoss(RATE, WINDOWS, MELS, PHASE)
    x = speechlike()
    same = loss(x, x, FULL)
    assert set(same) == {"mel", "stft"} and all(value == 0 for value in same.values())
    for estimate in (torch.zeros_like(x), torch.randn_like(x), x * 1.1):
        estimate = estimate.requires_grad_()
        terms = loss(estimate, torch.zeros_like(x), FULL) | {}
        (terms["mel"] + terms["stft"]).backward()
        assert estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_mel_measures_gain_and_forgives_phase_where_stft_does_not() -> None:
    loss = SpectralLoss(RATE, (1024,), (80,), (1024,))
    x = speechlike()
    louder = loss(2 * x, x, FULL)
    assert louder["mel"].item() == pytest.approx(math.log(2), rel=0.02)
    flipped = loss(-x, x, FULL)
    assert flipped["mel"].item() == pytest.approx(0, abs=1e-6)
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # far above the complex term's floor
    assert loss(2 * noise, noise, FULL)["stft"].item() == pytest.approx(1.0, rel=0.01)
    assert loss(-noise, noise, FULL)["stft"].item() == pytest.approx(2, rel=0.01)


def test_an_exponent_makes_weak_components_count() -> None:
    plain, rooted = (SpectralLoss(RATE, (1024,), (80,), (1024,), exponent) for exponent in (1.0, 0.5))
    noise = 0.3 * torch.randn((2, 1, 12000), generator=torch.Generator().manual_seed(0))
    assert rooted(4 * noise, noise, FULL)["stft"].item() == pytest.approx(1.0, rel=0.12)  # sqrt(4) - 1, less the floor
    t = torch.arange(12000) / RATE
    strong, weak = torch.sin(2 * torch.pi * 300 * t), 0.01 * torch.sin(2 * torch.pi * 3000 * t)
    both, without = (w.expand(2, 1, -1) for w in (strong + weak, strong))
    assert rooted(without, both, FULL)["stft"] > 2 * plain(without, both, FULL)["stft"] > 0
    silence = torch.zeros(2, 1, 12000, requires_grad=True)
    rooted(silence, both, FULL)["stft"].backward()
    assert silence.grad is not None and torch.isfinite(silence.grad).all()


def test_on_the_mel_scale_the_upper_bins_count_less() -> None:
    linear, mel = (SpectralLoss(RATE, (1024,), (80,), (1024,), scale=scale) for scale in ("linear", "mel"))
    noise = 0.3 * torch.randn((2, 1, 12000), generator=torch.Generator().manual_seed(0))
    lower = low_pass(
        noise, torch.tensor([6000 / 0.92] * 2), RATE
    )  # the upper half of the bins is wrong, the lower right
    assert linear(lower, noise, FULL)["stft"].item() == pytest.approx(0.5, abs=0.03)
    share = 1 - float(hz_to_mel(torch.tensor(6000.0)) / hz_to_mel(torch.tensor(12000.0)))
    assert mel(lower, noise, FULL)["stft"].item() == pytest.approx(share, abs=0.03)
    wrong = low_pass(noise, torch.tensor([7360.0] * 2), RATE)
    for loss in (linear, mel):  # and the bandwidth still rules
        assert loss(wrong, noise, torch.tensor([6000.0, 6000.0]))["stft"] < 1e-3


def test_envelope_is_ruled_by_the_loud_moments_of_each_band() -> None:
    loss = SpectralLoss(RATE, (512, 1024), (64, 80), (), envelope_windows=(512,), envelope_bands=24)
    assert loss.terms == ("mel", "envelope")
    noise = 0.3 * torch.randn((2, 1, 24000), generator=torch.Generator().manual_seed(0))
    speech = torch.cat([noise[..., :12000], 0.003 * noise[..., 12000:]], dim=-1)
    assert loss(speech, speech, FULL)["envelope"] == 0
    assert loss(1.5 * speech, speech, FULL)["envelope"].item() == pytest.approx(0.5, abs=0.02)
    assert loss(-speech, speech, FULL)["envelope"] == 0  # it forgives phase
    loud, quiet = (
        torch.cat([a * speech[..., :12000], b * speech[..., 12000:]], dim=-1) for a, b in ((1.5, 1), (1, 1.5))
    )
    terms = [loss(changed, speech, FULL) for changed in (loud, quiet)]
    assert terms[0]["envelope"] > 50 * terms[1]["envelope"]  # to the log-mel term both are alike
    assert terms[0]["mel"].item() == pytest.approx(terms[1]["mel"].item(), rel=0.1)
    hiss = speech + 0.3 * torch.sin(2 * torch.pi * 10500 * torch.arange(24000) / RATE)
    assert loss(hiss, speech, FULL)["envelope"] > 50 * loss(hiss, speech, torch.tensor([8000.0, 8000.0]))["envelope"]
    estimate = speech.clone().requires_grad_()  # right already: the root in the norm must not give NaN
    loss(estimate, speech, FULL)["envelope"].backward()
    assert estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_nothing_above_the_bandwidth_counts() -> None:
    loss = SpectralLoss(RATE, (1024, 2048), (80, 128), (1024,))
    t = torch.arange(12000) / RATE
    x = speechlike()
    hiss = x + 0.05 * torch.sin(2 * torch.pi * 10500 * t)
    narrow = loss(hiss, x, torch.tensor([8000.0, 8000.0]))
    wide = loss(hiss, x, FULL)
    assert wide["mel"] > 20 * narrow["mel"] and wide["stft"] > 20 * narrow["stft"]


def test_where_a_recording_fades_out_does_not_count_either() -> None:
    """16 kHz speech brought to 24 kHz lacks what it had just below 8 kHz: no decoder should learn that."""
    loss = SpectralLoss(RATE, (1024, 2048), (80, 128), (1024,))
    noise = 0.1 * torch.randn((2, 1, 24000), generator=torch.Generator().manual_seed(0))
    narrow = soxr.resample(soxr.resample(noise[:, 0].T.numpy(), RATE, 16000), 16000, RATE)
    faded = torch.from_numpy(narrow.T)[:, None]
    assert faded.shape == noise.shape
    counted, all_of_it = loss(faded, noise, torch.tensor([8000.0, 8000.0])), loss(faded, noise, FULL)
    assert counted["mel"] < 1e-3 and all_of_it["mel"] > 0.5


def test_low_pass_keeps_what_lies_below_and_nothing_above() -> None:
    t = torch.arange(24000, dtype=torch.float64) / RATE
    low, high = (torch.sin(2 * torch.pi * f * t).float().expand(2, 1, -1) for f in (5000, 7800))
    bandwidth = torch.tensor([8000.0, 12000.0])
    passed = low_pass(low + high, bandwidth, RATE)
    torch.testing.assert_close(passed[:1], low[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(passed[1:], (low + high)[1:], atol=1e-4, rtol=0)
    odd = torch.randn(1, 1, 4801, requires_grad=True)
    low_pass(odd, bandwidth[:1], RATE).square().sum().backward()
    assert odd.grad is not None and odd.grad.shape == odd.shape and torch.isfinite(odd.grad).all()


def test_wrong_windows_are_named() -> None:
    with pytest.raises(ValueError, match="one entry a window"):
        SpectralLoss(RATE, (256, 512), (10,), ())
    with pytest.raises(ValueError, match="among windows"):
        SpectralLoss(RATE, (256,), (10,), (512,))
    with pytest.raises(ValueError, match="among windows"):
        SpectralLoss(RATE, (256,), (10,), (256,), envelope_windows=(512,))
