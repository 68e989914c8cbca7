"""Short-time Fourier transforms and mel filterbanks, for losses, discriminators and metrics."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=32)
def _window(n_fft: int, device: torch.device) -> Tensor:
    return torch.hann_window(n_fft, device=device)


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Complex spectrogram with a Hann window, centred, zeros beyond the ends: ``[B, T] -> [B, N, n_fft // 2 + 1]``."""
    padded = torch.nn.functional.pad(waveform, (n_fft // 2, n_fft // 2))
    frames = padded.unfold(1, n_fft, hop_length) * _window(n_fft, waveform.device)
    return torch.fft.rfft(frames, dim=-1)


def bin_frequencies(sample_rate: int, n_fft: int) -> Tensor:
    """Centre frequency of each bin in Hz, ``[n_fft // 2 + 1]``."""
    return torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)


def hz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's mel scale: linear (200/3 Hz a mel) to 1 kHz, logarithmic (27 mels a factor of 6.4) above."""
    linear = frequency * 3 / 200
    log = 15 + 27 * torch.log(frequency.clamp(min=1e-3) / 1000) / torch.log(torch.tensor(6.4))
    return torch.where(frequency < 1000, linear, log)


def mel_to_hz(mel: Tensor) -> Tensor:
    """Inverse of :func:`hz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * torch.log(torch.tensor(6.4)) / 27))


def mel_edges(sample_rate: int, n_mels: int) -> Tensor:
    """Corner frequencies in Hz of ``n_mels`` triangular bands from 0 to half the sample rate, ``[n_mels + 2]``."""
    top = hz_to_mel(torch.tensor(sample_rate / 2))
    return mel_to_hz(torch.linspace(0, 1, n_mels + 2) * top)


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular mel filters of unit sum, ``[n_fft // 2 + 1, n_mels]``.

    A band narrower than the bins' spacing takes the bins next to its centre instead of being empty.
    """
    frequencies = bin_frequencies(sample_rate, n_fft)[:, None]
    spacing = sample_rate / n_fft
    edges = mel_edges(sample_rate, n_mels)
    low = torch.minimum(edges[:-2], edges[1:-1] - spacing)
    high = torch.maximum(edges[2:], edges[1:-1] + spacing)
    rising = (frequencies - low) / (edges[1:-1] - low)
    falling = (high - frequencies) / (high - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(dim=0)
