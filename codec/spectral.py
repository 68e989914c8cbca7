"""Short-time Fourier transforms, mel filterbanks and distances: for losses, discriminators, metrics and refinement."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

BAND_MARGIN = 0.92  # share of a limited bandwidth to use: recordings and resamplers fade out over the rest
MEL_FLOOR = 1e-5  # of a full-scale sine, 100 dB below it: the lowest value of log-mel spectrograms
PHASE_FLOOR = 1e-4  # of a full-scale sine, 80 dB below it: for complex and envelope distances
ENVELOPE_BANDS = 24  # mel bands of envelope distances
BAND_FADE = 400.0  # Hz over which low_pass falls from 1 to 0
PLAIN: Any = {"dtype": torch.float32, "device": "cpu"}  # for tables, whatever torch's defaults are


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Complex spectrogram with a Hann window, centered, zeros beyond the ends: ``[B, T] -> [B, N, n_fft // 2 + 1]``."""
    padded = torch.nn.functional.pad(waveform, (n_fft // 2, n_fft // 2))
    frames = padded.unfold(1, n_fft, hop_length) * torch.hann_window(n_fft, dtype=torch.float32, device=waveform.device)
    return torch.fft.rfft(frames, dim=-1)


class Planes(NamedTuple):
    """A spectrogram ``[B, N, F]`` in planes: much faster on a CPU than pairs or complex numbers."""

    real: Tensor
    imaginary: Tensor
    power: Tensor


def planes(waveform: Tensor, n_fft: int) -> Planes:
    """Spectrogram of ``[B, T]`` with a hop of a quarter, relative to a full-scale sine: half the window's sum."""
    spectrum = stft(waveform, n_fft, n_fft // 4)
    full_scale = (spectrum.shape[-1] - 1) / 2
    real, imaginary = (part / full_scale for part in torch.view_as_real(spectrum).unbind(dim=-1))
    return Planes(real, imaginary, real.square() + imaginary.square())


def log_mel(spectrum: Planes, filters: Tensor) -> Tensor:
    """Natural logarithm of mel magnitudes ``[B, N, M]``, given ``filters [F, M]``; no lower than ``MEL_FLOOR``."""
    magnitude = (spectrum.power + 1e-14).sqrt()  # the root's gradient is infinite at zero: silence would give NaN
    return (magnitude @ filters).clamp(min=MEL_FLOOR).log()


def mel_distance(decoded: Planes, recorded: Planes, filters: Tensor) -> Tensor:
    """Mean absolute difference of log-mel magnitudes ``[B, M]``, given ``filters [F, M]``. It forgives phase."""
    return (log_mel(decoded, filters) - log_mel(recorded, filters)).abs().mean(dim=1)


def complex_distance(decoded: Planes, recorded: Planes, weights: Tensor, exponent: float) -> Tensor:
    """``sum |S - S'| / (sum |S| + floor)`` per item, ``[B]``, over both parts of spectra with magnitudes to the ``exponent``.

    ``weights`` are those of the bins, ``[B, 1, F]`` or ``[F]``, of sum 1; see :func:`bin_widths`.
    """
    decoded, recorded = _compressed(decoded, exponent), _compressed(recorded, exponent)

    def size(real: Tensor, imaginary: Tensor) -> Tensor:
        """Weighted mean of both parts' absolute values, ``[B]``."""
        return ((real.abs() + imaginary.abs()).mean(dim=1, keepdim=True) / 2 * weights).sum(dim=(1, 2))

    difference = size(decoded.real - recorded.real, decoded.imaginary - recorded.imaginary)
    # without the floor near-silent items, which are noise anyway, would dominate the gradient
    return difference / (size(recorded.real, recorded.imaginary) + PHASE_FLOOR**exponent)


def _compressed(spectrum: Planes, exponent: float) -> Planes:
    """The magnitude raised to ``exponent``, the phase kept."""
    power = spectrum.power + PHASE_FLOOR**2
    gain = power ** ((exponent - 1) / 2)
    return Planes(spectrum.real * gain, spectrum.imaginary * gain, power)


def envelope_distance(decoded: Planes, recorded: Planes, filters: Tensor) -> Tensor:
    """``||E - E'|| / (||E|| + floor)`` over time, ``[B, M]``, E the root of the energy of a band of ``filters [F, M]``."""
    estimate, target = ((spectrum.power @ filters + 1e-14).sqrt() for spectrum in (decoded, recorded))
    difference = torch.linalg.vector_norm(estimate - target, dim=1)
    floor = PHASE_FLOOR * target.shape[1] ** 0.5
    return difference / (torch.linalg.vector_norm(target, dim=1) + floor)


def mel_decibels(samples: Tensor, sample_rate: int, width: int, height: int) -> Tensor:
    """A spectrogram to look at: mel power of ``[T]`` in dB, ``[height, width]``, the lowest band last."""
    n_fft = 2 ** round(math.log2(sample_rate * 0.04))  # 40 ms show the harmonics of a voice
    power = stft(samples[None], n_fft, max(1, min(n_fft // 4, len(samples) // width)))[0].abs().square()
    mel = power @ mel_filterbank(sample_rate, n_fft, height)
    mel = torch.nn.functional.adaptive_avg_pool1d(mel.t()[None], width)[0]
    return (10 * torch.log10(mel.double() + 1e-12)).flip(0)


def bin_widths(sample_rate: int, n_fft: int, scale: Literal["linear", "mel"]) -> Tensor:
    """The weight of each bin on that scale, ``[n_fft // 2 + 1]``, with sum 1."""
    frequencies, half = torch.fft.rfftfreq(n_fft, 1 / sample_rate, **PLAIN), sample_rate / n_fft / 2
    widths = torch.ones_like(frequencies)
    if scale == "mel":
        widths = hz_to_mel(frequencies + half) - hz_to_mel(frequencies - half)
    return widths / widths.sum()


def hz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's mel scale: linear (200/3 Hz per mel) to 1 kHz, logarithmic (27 mels per factor of 6.4) above."""
    linear = frequency * 3 / 200
    log = 15 + 27 * torch.log(frequency.clamp(min=1e-3) / 1000) / math.log(6.4)
    return torch.where(frequency < 1000, linear, log)


def mel_to_hz(mel: Tensor) -> Tensor:
    """Inverse of :func:`hz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


def mel_edges(sample_rate: int, n_mels: int) -> Tensor:
    """Corner frequencies in Hz of ``n_mels`` triangular bands from 0 to half the sample rate, ``[n_mels + 2]``."""
    top = hz_to_mel(torch.tensor(sample_rate / 2, **PLAIN))
    edges = mel_to_hz(torch.linspace(0, 1, n_mels + 2, **PLAIN) * top)
    return edges.clamp(max=sample_rate / 2)  # rounding can put the last one above it: its band would never be used


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular mel filters of unit sum, ``[n_fft // 2 + 1, n_mels]``.

    A band narrower than the bins' spacing takes the bins next to its center instead of being empty.
    """
    frequencies = torch.fft.rfftfreq(n_fft, 1 / sample_rate, **PLAIN)[:, None]
    spacing = sample_rate / n_fft
    edges = mel_edges(sample_rate, n_mels)
    low = torch.minimum(edges[:-2], edges[1:-1] - spacing)
    high = torch.maximum(edges[2:], edges[1:-1] + spacing)
    rising = (frequencies - low) / (edges[1:-1] - low)
    falling = (high - frequencies) / (high - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(dim=0)


def usable_bandwidth(bandwidth: Tensor, sample_rate: int) -> Tensor:
    """The frequency up to which recordings of these bandwidths are compared, ``[B]`` in Hz: a limited band minus a margin.

    Without the margin a model learns the place where its training recordings fade out, as a notch in all speech.
    """
    return torch.where(bandwidth < sample_rate / 2, BAND_MARGIN * bandwidth, bandwidth)


def low_pass(waveform: Tensor, bandwidth: Tensor, sample_rate: int) -> Tensor:
    """Waveforms ``[B, 1, T]`` without all above their usable bandwidth, given ``bandwidth [B]`` in Hz; no delay.

    A bandwidth of half the sample rate changes nothing. The gain falls linearly over the ``BAND_FADE`` Hz below the end.
    """
    frequencies = torch.fft.rfftfreq(waveform.shape[-1], 1 / sample_rate, device=waveform.device)
    end = usable_bandwidth(bandwidth, sample_rate)[:, None, None]
    gain = ((end - frequencies) / BAND_FADE).clamp(0, 1)
    gain = torch.where(bandwidth[:, None, None] < sample_rate / 2, gain, torch.ones_like(gain))
    return torch.fft.irfft(torch.fft.rfft(waveform.float()) * gain, n=waveform.shape[-1])
