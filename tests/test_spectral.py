"""Spectrograms and mel scales are what their definitions say; a low-pass leaves no more than it should."""

import torch

from codec.spectral import bin_frequencies, hz_to_mel, low_pass, mel_edges, mel_filterbank, mel_to_hz, stft

RATE = 24000


def test_stft_is_the_definition() -> None:
    x = torch.randn(1, 4096, dtype=torch.float64)
    n, hop = 256, 64
    spectrum = stft(x.float(), n, hop)
    padded = torch.nn.functional.pad(x, (n // 2, n // 2))
    window = torch.hann_window(n, dtype=torch.float64)
    for frame in (0, 7, spectrum.shape[1] - 1):
        expected = torch.fft.rfft(padded[0, frame * hop : frame * hop + n] * window)
        torch.testing.assert_close(spectrum[0, frame].to(torch.complex128), expected, atol=1e-4, rtol=1e-4)


def test_mel_scale_and_filterbank() -> None:
    f = torch.tensor([0.0, 500.0, 1000.0, 6400.0])
    torch.testing.assert_close(hz_to_mel(f), torch.tensor([0.0, 7.5, 15.0, 42.0]))
    torch.testing.assert_close(mel_to_hz(hz_to_mel(f)), f)
    for n_fft, n_mels in zip((128, 256, 512, 1024, 2048), (16, 32, 64, 80, 128), strict=True):
        filters = mel_filterbank(RATE, n_fft, n_mels)
        torch.testing.assert_close(filters.sum(dim=0), torch.ones(n_mels))
        centre = (filters * bin_frequencies(RATE, n_fft)[:, None]).sum(dim=0)
        assert (centre[1:] > centre[:-1]).all()
    for rate in (16000, 22050, 24000, 44100, 48000):
        assert rate / 2 * (1 - 1e-4) < mel_edges(rate, 80)[-1].item() <= rate / 2


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
