"""Analysis by synthesis: codes chosen by what the decoder makes of them, not by the latents alone.

The encoder gives latents in one pass, and their nearest codes are not those that sound nearest. Here the latents of one
waveform are trained, as weights are, while the model stays as it is: each step decodes the nearest codes, measures how far
that is from the waveform, and moves the latents down the gradient, which passes the quantizer as in training (straight
through). The codes that sounded nearest are kept, so none are worse by this measure than the encoder's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codec import spectral
from codec.autoencoder import Decoder
from codec.quantizers import Quantizer

SCALES = ((256, 32), (1024, 80))  # n_fft and mel bands of the spectrograms that are compared
ENVELOPE_BANDS = 24
EXPONENT = 0.5  # of magnitudes where phase is compared
STEP = 0.1  # of the latents' spread: the first step's size, and the more steps the smaller; the last one's is a tenth
BETAS = (0.8, 0.95)  # of Adam


def refine(
    latents: Tensor,
    waveform: Tensor,
    sample_rate: int,
    quantizer: Quantizer,
    decoder: Decoder,
    num_quantizers: int,
    steps: int,
) -> Tensor:
    """Codes int64 ``[1, K, N]`` for a waveform ``[1, 1, N * hop_length]``, from its latents ``[1, D, N]`` on."""
    with torch.inference_mode(False), torch.enable_grad():
        moved, distance = latents.clone().requires_grad_(), Distance(waveform[0].clone(), sample_rate)
        optimizer = torch.optim.Adam([moved], betas=BETAS)
        size, least, best = STEP * latents.std().item() / steps**0.5, math.inf, None
        for step in range(steps + 1):
            output = quantizer(moved, num_quantizers)
            loss = distance(decoder(output.quantized)[0])
            if best is None or loss < least:
                least, best = loss.item(), output.codes
            if step < steps:
                optimizer.param_groups[0]["lr"] = size * (1 - 0.9 * step / steps)
                (moved.grad,) = torch.autograd.grad(loss, moved)  # and no weight's
                optimizer.step()
    assert best is not None
    return best


class Distance:
    """How far waveforms ``[1, T]`` are from a recording: log-mel, complex and envelope distances, see ``codec.spectral``."""

    def __init__(self, recording: Tensor, sample_rate: int) -> None:
        self._scales = []
        for n_fft, n_mels in SCALES:
            bands = [spectral.mel_filterbank(sample_rate, n_fft, count) for count in (n_mels, ENVELOPE_BANDS)]
            mels, envelopes = (filters.to(recording.device) for filters in bands)
            self._scales.append((n_fft, spectral.planes(recording, n_fft), mels, envelopes))

    def __call__(self, waveform: Tensor) -> Tensor:
        total = waveform.new_zeros(())
        for n_fft, recorded, mels, envelopes in self._scales:
            decoded, widths = spectral.planes(waveform, n_fft), mels.sum(dim=1)  # as wide as a bin is in mels
            total = total + spectral.mel_distance(decoded, recorded, mels).mean()
            total = total + spectral.complex_distance(decoded, recorded, widths / widths.sum(), EXPONENT).mean()
            total = total + spectral.envelope_distance(decoded, recorded, envelopes).mean()
        return total / len(self._scales)
