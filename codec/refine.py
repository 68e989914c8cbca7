"""Analysis by synthesis: codes chosen by what the decoder makes of them, not by the latents alone.

The encoder gives latents in one pass, and their nearest codes are not those that sound nearest. Here the latents z of one
waveform x are trained, as weights are, while the model stays as it is:

    minimize ``d(decoder(quantizer(z)), x)`` over z, from ``z = encoder(x)`` on

by Adam (Kingma and Ba, arXiv 1412.6980), whose gradient passes the quantizer as in training, straight through. The distance d
is the mean, over spectrograms of two window lengths, of log-mel, complex and envelope distance (``codec.spectral``). Kept are
the codes with the least distance, so that those of a window are by it no worse than the encoder's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codec import spectral
from codec.autoencoder import Decoder
from codec.errors import CodecError
from codec.quantizers import Quantizer

SCALES = ((256, 32), (1024, 80))  # n_fft and mel bands of the spectrograms
EXPONENT = 0.5  # of magnitudes in the complex distance
RATE = 0.1  # of the latents' standard deviation, over the root of the number of steps: the first step's size
FINAL = 0.1  # of it: towards this the size of the steps falls
BETAS = (0.8, 0.95)  # Adam's, and its epsilon
EPSILON = 1e-8


def refine(
    latents: Tensor,
    waveform: Tensor,
    sample_rate: int,
    quantizer: Quantizer,
    decoder: Decoder,
    num_quantizers: int,
    steps: int,
) -> Tensor:
    """Codes int64 ``[1, K, N]`` for a waveform ``[1, N * hop_length]`` with the latents ``[1, D, N]``; all in eval mode.

    Raises:
        CodecError: the decoder gives NaN.
    """
    with torch.inference_mode(False), torch.enable_grad():
        z, recording = latents.clone().requires_grad_(), waveform.clone()
        distances = [Distance(recording, sample_rate, *scale) for scale in SCALES]
        rate = RATE * latents.std() / steps**0.5
        mean, square = torch.zeros_like(latents), torch.zeros_like(latents)  # running averages of gradients
        least, best = math.inf, None
        for step in range(steps + 1):
            output = quantizer(z, num_quantizers)
            decoded = decoder(output.quantized)[:, 0]
            loss = torch.stack([distance(decoded) for distance in distances]).mean()
            if loss < least:
                least, best = loss.item(), output.codes
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(loss, z)
            with torch.no_grad():
                mean.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square(), 1 - BETAS[1])
                direction, size = (m / (1 - beta ** (step + 1)) for m, beta in zip((mean, square), BETAS, strict=True))
                z -= rate * (1 - (1 - FINAL) * step / steps) * direction / (size.sqrt() + EPSILON)
    if best is None:
        raise CodecError("the model gives NaN or infinity: the weights of its decoder cannot be right")
    return best


class Distance:
    """How far waveforms ``[1, T]`` are from a recording, by spectrograms of one window length."""

    def __init__(self, recording: Tensor, sample_rate: int, n_fft: int, n_mels: int) -> None:
        tables = [spectral.mel_filterbank(sample_rate, n_fft, count) for count in (n_mels, spectral.ENVELOPE_BANDS)]
        tables.append(spectral.bin_widths(sample_rate, n_fft, "mel"))
        self._mels, self._bands, self._widths = (table.to(recording) for table in tables)
        self._n_fft, self._recorded = n_fft, spectral.planes(recording, n_fft)

    def __call__(self, waveform: Tensor) -> Tensor:
        decoded = spectral.planes(waveform, self._n_fft)
        distances = (
            spectral.mel_distance(decoded, self._recorded, self._mels),
            spectral.complex_distance(decoded, self._recorded, self._widths, EXPONENT),
            spectral.envelope_distance(decoded, self._recorded, self._bands),
        )
        return torch.stack([distance.mean() for distance in distances]).sum()
