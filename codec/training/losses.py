"""The losses: distances of decoded from recorded speech, and the adversarial terms over what discriminators say of them.

Each term is one number; a distance is zero on identical input. The weights stand in ``codec.training.config``.

Notation of the adversarial terms: D_k(x) are the logits of discriminator k of K, x is recorded and x' decoded speech. Their
``outputs`` are those of a batch: first the ``recorded`` items, whose number that is, then as many decoded ones per decoder.
Every such loss is a mean over logits, then over discriminators: its size depends on neither their number nor the length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec import spectral
from codec.spectral import Planes
from codec.training.config import LossConfig
from codec.training.discriminators import Outputs

FEATURE_FLOOR = 1e-3  # a layer without activations on recorded speech must not make the relative distance explode


class SpectralLoss(nn.Module):
    """Multi-scale log-mel, complex-STFT and envelope distances, sharing each window's transform.

    ``mel``: mean absolute difference of natural-log mel magnitudes, averaged over all windows (several windows as in the
    Descript Audio Codec, arXiv 2306.06546). It forgives phase.

    ``stft``: per item ``sum |S - S'| / sum |S|`` over the real and imaginary parts of spectra whose magnitudes are raised
    to ``phase_exponent``, averaged over ``phase_windows``. It teaches the decoder phase, and gives the later residual stages
    something to carry. With an exponent below 1 (0.3 to 0.5 are usual in speech enhancement) weak components, which carry
    consonants, count for more than by their energy. On the mel scale a bin counts by its width in mels, since most bins lie
    where ears hear neither pitch nor phase, and few bits are left for them.

    ``envelope``: per item and mel band ``||E - E'|| / ||E||`` over time, E the root of the band's energy, averaged over bands
    and ``envelope_windows``. In the log-mel term all moments count alike; in this one those count most in which a band is
    loud. Bands about as wide as the ear's critical bands do not demand single harmonics, and their envelopes carry
    intelligibility.

    Items whose recording ends below half the sample rate are compared only up to their usable bandwidth, so that the model
    does not learn that there is never anything above.

    Attributes:
        terms: the windows of each term; ``stft`` and ``envelope`` are left out where their weight is 0.
    """

    def __init__(self, sample_rate: int, config: LossConfig) -> None:
        super().__init__()
        self.sample_rate, self.config = sample_rate, config
        self._distances = {"mel": self._mel_distance, "stft": self._stft_distance, "envelope": self._envelope_distance}
        windows = {"mel": config.windows, "stft": config.phase_windows, "envelope": config.envelope_windows}
        self.terms = {name: windows[name] for name in windows if name == "mel" or config.weights[name]}
        tables = {"envelope_edges": spectral.mel_edges(sample_rate, spectral.ENVELOPE_BANDS)[2:]}
        for n_fft, n_mels in zip(config.windows, config.mels, strict=True):
            tables[f"filters_{n_fft}"] = spectral.mel_filterbank(sample_rate, n_fft, n_mels)
            tables[f"edges_{n_fft}"] = spectral.mel_edges(sample_rate, n_mels)[2:]
            tables[f"bins_{n_fft}"] = torch.fft.rfftfreq(n_fft, 1 / sample_rate)
            tables[f"widths_{n_fft}"] = spectral.bin_widths(sample_rate, n_fft, config.phase_scale)
            tables[f"envelope_filters_{n_fft}"] = spectral.mel_filterbank(sample_rate, n_fft, spectral.ENVELOPE_BANDS)
        for name, table in tables.items():  # as buffers they move with the module; they are not part of its state
            self.register_buffer(name, table, persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor, bandwidth: Tensor) -> dict[str, Tensor]:
        """``estimate`` and ``reference`` ``[B, 1, T]``, ``bandwidth`` ``[B]`` in Hz -> ``{term: []}`` for ``terms``."""
        estimate, reference = estimate.squeeze(1).float(), reference.squeeze(1).float()  # [B, T]
        bandwidth = spectral.usable_bandwidth(bandwidth, self.sample_rate)
        sums = {name: estimate.new_zeros(()) for name in self.terms}
        for n_fft in self.config.windows:
            decoded, recorded = (spectral.planes(x, n_fft) for x in (estimate, reference))  # [B, N, n_fft // 2 + 1]
            for name in (name for name, windows in self.terms.items() if n_fft in windows):
                sums[name] = sums[name] + self._distances[name](decoded, recorded, bandwidth, n_fft)
        return {name: total / len(self.terms[name]) for name, total in sums.items()}

    def _mel_distance(self, decoded: Planes, recorded: Planes, bandwidth: Tensor, n_fft: int) -> Tensor:
        distance = spectral.mel_distance(decoded, recorded, getattr(self, f"filters_{n_fft}"))
        return _mean_over_bands(distance, getattr(self, f"edges_{n_fft}"), bandwidth)

    def _stft_distance(self, decoded: Planes, recorded: Planes, bandwidth: Tensor, n_fft: int) -> Tensor:
        inside = getattr(self, f"bins_{n_fft}") <= bandwidth[:, None]
        weights = (inside * getattr(self, f"widths_{n_fft}"))[:, None]  # [B, 1, F]
        return spectral.complex_distance(decoded, recorded, weights, self.config.phase_exponent).mean()

    def _envelope_distance(self, decoded: Planes, recorded: Planes, bandwidth: Tensor, n_fft: int) -> Tensor:
        distance = spectral.envelope_distance(decoded, recorded, getattr(self, f"envelope_filters_{n_fft}"))
        return _mean_over_bands(distance, self.get_buffer("envelope_edges"), bandwidth)


def _mean_over_bands(values: Tensor, edges: Tensor, bandwidth: Tensor) -> Tensor:
    """Mean of ``values [B, M]`` over those of each item's bands that end within its ``bandwidth``, then over items."""
    inside = (edges <= bandwidth[:, None]).float()
    return ((values * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)).mean()


# ---- adversarial ------------------------------------------------------------------------------------------------------


def discriminator_loss(outputs: Outputs, recorded: int) -> Tensor:
    """The loss of the discriminators.

    ``1/K sum_k mean max(0, 1 - D_k(x)) + mean max(0, 1 + D_k(x'))``: the hinge loss (Lim and Ye, arXiv 1705.02894; for
    codecs SoundStream, arXiv 2107.03312).
    """
    logits = [output.logits.float() for output in outputs]
    terms = [F.relu(1 - each[:recorded]).mean() + F.relu(1 + each[recorded:]).mean() for each in logits]
    return torch.stack(terms).mean()


def generator_loss(outputs: Outputs, recorded: int) -> Tensor:
    """The loss by which the codec learns to make its speech pass for recorded.

    ``1/K sum_k mean max(0, 1 - D_k(x'))``, SoundStream's form: unlike ``-D_k(x')`` it has no gradient where a
    discriminator is already convinced.
    """
    return torch.stack([F.relu(1 - output.logits[recorded:].float()).mean() for output in outputs]).mean()


def feature_matching_loss(outputs: Outputs, recorded: int) -> Tensor:
    """Distance of the hidden activations, relative to their mean size on recorded speech.

    ``1/K sum_k 1/L_k sum_l mean |F_kl(x) - F_kl(x')| / mean |F_kl(x)|`` for each item, both means over its activations, so
    that a batch shared by several processes gives the gradient of the whole; then the mean over items. It averages over a
    discriminator's L_k layers, then over discriminators (EnCodec, arXiv 2210.13438, eq. 2). The logits do not count, and the
    activations on recorded speech are a target without gradient.
    """
    terms = []
    for output in outputs:
        layers = []
        for activations in output.features:
            target = activations[:recorded].detach().float()
            size = target.abs().mean(dim=(1, 2, 3)).clamp(min=FEATURE_FLOOR)
            difference = target - activations[recorded:].float().unflatten(0, (-1, recorded))  # [decoders, B, C, H, W]
            layers.append((difference.abs().mean(dim=(2, 3, 4)) / size).mean())
        terms.append(torch.stack(layers).mean())
    return torch.stack(terms).mean()
