"""Reconstruction losses. Each term is one number, zero on identical input; its weight stands in the training config."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from codec.spectral import (
    Planes,
    bin_frequencies,
    hz_to_mel,
    log_mel,
    mel_edges,
    mel_filterbank,
    planes,
    usable_bandwidth,
)

PHASE_FLOOR = 1e-4  # of a full-scale sine, 80 dB below it: of the complex and the envelope term


class SpectralLoss(nn.Module):
    """Multi-scale log-mel, complex-STFT and envelope distances, sharing each window's transform.

    ``mel``: mean absolute difference of natural-log mel magnitudes, averaged over all windows (several windows as in the
    Descript Audio Codec, arXiv 2306.06546). It forgives phase.

    ``stft``: per item ``sum |S - S'| / sum |S|`` over the real and imaginary parts of spectra whose magnitudes are raised
    to ``exponent``, averaged over ``phase_windows``. It is what teaches the decoder phase, and gives the later residual
    stages something to carry. With an exponent below 1 (such as the 0.3 to 0.5 usual in speech enhancement) the weak
    components, which carry consonants, count for more than they do by their energy. On the mel scale a bin counts by its
    width in mels: most of the bins lie where ears tell neither pitch nor phase, and few bits are left for them.

    ``envelope``: per item and mel band ``||E - E'|| / ||E||`` over time, E the root of the band's energy, averaged over bands
    and ``envelope_windows``. Where the log-mel term takes every moment alike, this one is ruled by those in which a band is
    loud; and bands about as wide as the ear's critical bands do not ask for the harmonics. Their envelopes carry
    intelligibility.

    Items whose recording ends below half the sample rate are compared only up to their usable bandwidth, so that the model
    does not learn that nothing lives above.

    Args:
        sample_rate: of the waveforms, in Hz.
        windows: window lengths n_fft; hop is a quarter.
        mels: mel bands for each window.
        phase_windows: those of ``windows`` with the complex term.
        exponent: of the magnitudes in the complex term, above 0 to 1; 1 leaves them as they are.
        scale: whose equal steps count alike in the complex term: ``linear`` (every bin) or ``mel``.
        envelope_windows: those of ``windows`` with the envelope term; none leaves it out.
        envelope_bands: mel bands of that term.
    """

    envelope_edges: Tensor

    def __init__(
        self,
        sample_rate: int,
        windows: tuple[int, ...],
        mels: tuple[int, ...],
        phase_windows: tuple[int, ...],
        exponent: float = 1.0,
        scale: Literal["linear", "mel"] = "linear",
        envelope_windows: tuple[int, ...] = (),
        envelope_bands: int = 24,
    ) -> None:
        super().__init__()
        if len(windows) != len(mels):
            raise ValueError(f"mels must have one entry a window: {len(windows)}, not {len(mels)}")
        if not set(phase_windows) | set(envelope_windows) <= set(windows):
            raise ValueError("phase_windows and envelope_windows must be among windows")
        self.windows, self.phase_windows, self.exponent = windows, phase_windows, exponent
        self.envelope_windows = envelope_windows
        self._windows_of = {"mel": windows, "stft": phase_windows, "envelope": envelope_windows}
        self.sample_rate = sample_rate
        for n_fft, n_mels in zip(windows, mels, strict=True):
            self.register_buffer(f"filters_{n_fft}", mel_filterbank(sample_rate, n_fft, n_mels), persistent=False)
            self.register_buffer(f"edges_{n_fft}", mel_edges(sample_rate, n_mels)[2:], persistent=False)
            self.register_buffer(f"bins_{n_fft}", bin_frequencies(sample_rate, n_fft), persistent=False)
            self.register_buffer(f"widths_{n_fft}", _bin_widths(sample_rate, n_fft, scale), persistent=False)
        for n_fft in envelope_windows:
            filters = mel_filterbank(sample_rate, n_fft, envelope_bands)
            self.register_buffer(f"envelope_filters_{n_fft}", filters, persistent=False)
        self.register_buffer("envelope_edges", mel_edges(sample_rate, envelope_bands)[2:], persistent=False)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that ``forward`` gives."""
        return tuple(name for name, windows in self._windows_of.items() if windows)

    def forward(self, estimate: Tensor, reference: Tensor, bandwidth: Tensor) -> dict[str, Tensor]:
        """``estimate`` and ``reference`` ``[B, 1, T]``, ``bandwidth`` ``[B]`` in Hz -> ``{term: []}`` for ``terms``."""
        estimate, reference = estimate.squeeze(1).float(), reference.squeeze(1).float()
        bandwidth = usable_bandwidth(bandwidth, self.sample_rate)
        mel, phase, envelope = (estimate.new_zeros(()) for _ in range(3))
        for n_fft in self.windows:
            made, wanted = planes(estimate, n_fft), planes(reference, n_fft)
            mel = mel + self._mel_distance(made, wanted, bandwidth, n_fft)
            if n_fft in self.phase_windows:
                inside = getattr(self, f"bins_{n_fft}") <= bandwidth[:, None]
                weights = inside * getattr(self, f"widths_{n_fft}")
                phase = phase + _relative_distance(made, wanted, weights, self.exponent)
            if n_fft in self.envelope_windows:
                envelope = envelope + self._envelope_distance(made, wanted, bandwidth, n_fft)
        sums = {"mel": mel, "stft": phase, "envelope": envelope}
        return {name: sums[name] / len(self._windows_of[name]) for name in self.terms}

    def _mel_distance(self, made: Planes, wanted: Planes, bandwidth: Tensor, n_fft: int) -> Tensor:
        filters = getattr(self, f"filters_{n_fft}")
        inside = (getattr(self, f"edges_{n_fft}") <= bandwidth[:, None]).float()  # [B, M]: bands wholly below it
        difference = log_mel(made, filters) - log_mel(wanted, filters)
        return _mean_over_bands(difference.abs().mean(dim=1), inside)

    def _envelope_distance(self, made: Planes, wanted: Planes, bandwidth: Tensor, n_fft: int) -> Tensor:
        filters = getattr(self, f"envelope_filters_{n_fft}")
        given, target = ((spectrum.power @ filters + 1e-14).sqrt() for spectrum in (made, wanted))
        difference = torch.linalg.vector_norm(given - target, dim=1)  # [B, M]
        floor = PHASE_FLOOR * target.shape[1] ** 0.5
        relative = difference / (torch.linalg.vector_norm(target, dim=1) + floor)
        return _mean_over_bands(relative, (self.envelope_edges <= bandwidth[:, None]).float())


def _mean_over_bands(values: Tensor, inside: Tensor) -> Tensor:
    """Mean of ``values [B, M]`` over each item's bands that ``inside [B, M]`` marks, then over items."""
    return ((values * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)).mean()


def _bin_widths(sample_rate: int, n_fft: int, scale: Literal["linear", "mel"]) -> Tensor:
    """How much each bin counts, ``[n_fft // 2 + 1]``, of sum 1."""
    if scale == "linear":
        return torch.full((n_fft // 2 + 1,), 1 / (n_fft // 2 + 1))
    frequencies = bin_frequencies(sample_rate, n_fft)
    half = sample_rate / n_fft / 2
    widths = hz_to_mel(frequencies + half) - hz_to_mel(frequencies - half)
    return widths / widths.sum()


def _relative_distance(made: Planes, wanted: Planes, weights: Tensor, exponent: float) -> Tensor:
    """Over bins weighted by ``weights [B, F]``."""
    weights = weights[:, None]
    made, wanted = _compressed(made, exponent), _compressed(wanted, exponent)

    def size(real: Tensor, imaginary: Tensor) -> Tensor:
        """Weighted mean of both parts' absolute values, ``[B]``."""
        return ((real.abs() + imaginary.abs()).mean(dim=1, keepdim=True) / 2 * weights).sum(dim=(1, 2))

    difference = size(made.real - wanted.real, made.imaginary - wanted.imaginary)
    # the floor keeps near-silent items, which are noise anyway, from ruling the gradient
    return (difference / (size(wanted.real, wanted.imaginary) + PHASE_FLOOR**exponent)).mean()


def _compressed(spectrum: Planes, exponent: float) -> Planes:
    """The magnitude raised to ``exponent``, the phase kept."""
    if exponent == 1:
        return spectrum
    power = spectrum.power + PHASE_FLOOR**2
    gain = power ** ((exponent - 1) / 2)
    return Planes(spectrum.real * gain, spectrum.imaginary * gain, power)
