"""Spectrograms and mel scales are what their definitions say."""

import torch

from codec.spectral import hz_to_mel, mel_edges, mel_filterbank, mel_to_hz, stft

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
        centre = (filters * torch.fft.rfftfreq(n_fft, 1 / RATE)[:, None]).sum(dim=0)
        assert (centre[1:] > centre[:-1]).all()
    for rate in (16000, 22050, 24000, 44100, 48000):
        assert rate / 2 * (1 - 1e-4) < mel_edges(rate, 80)[-1].item() <= rate / 2
