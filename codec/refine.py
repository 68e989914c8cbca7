"""Analysis by synthesis: codes chosen by the sound that the decoder makes of them, not by the latents alone.

The encoder gives latents in one pass, and the codes nearest to them are not those that sound nearest. Here the latents z
of one waveform x are trained, as weights are, while the model does not change:

    minimize the mean of ``d(decoder(quantizer(z) + noise), x)`` over z, starting at ``z = encoder(x)``

by Adam (Kingma and Ba, arXiv 1412.6980); the gradient passes the quantizer as in training, straight through. The distance d
is the sum of log-mel, complex and envelope distance (``codec.spectral``), averaged over two window lengths. The noise is
white and new in every step. Without it z would find single points where d is small but the sound lacks harmonics. Its
generator has a fixed seed, so that the same waveform has the same codes. Of the codes of the first and of the last z, those
with the smaller d, without noise, are returned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codec import spectral
from codec.autoencoder import CPU, Decoder
from codec.quantizers import Quantizer

SCALES = ((256, 32), (1024, 80))  # n_fft and mel bands of the spectrograms
EXPONENT = 0.5  # of magnitudes in the complex distance
RATE = 0.1  # size of the first step, times the latents' standard deviation over the root of the number of steps
FINAL = 0.1  # size towards which the steps shrink, as a share of the first one
NOISE = 0.25  # standard deviation of the noise, as a share of that of the latents
BETAS = (0.8, 0.95)  # Adam's, and its epsilon
EPSILON = 1e-8
HALF = any(CPU.get(name) for name in ("avx512_bf16", "amx_bf16"))  # where bfloat16 halves the decoder's time


def refine(
    latents: Tensor,
    waveform: Tensor,
    sample_rate: int,
    quantizer: Quantizer,
    decoder: Decoder,
    num_quantizers: int,
    steps: int,
) -> Tensor:
    """Codes int64 ``[1, K, N]`` of a waveform ``[1, N * hop_length]`` with latents ``[1, D, N]``; modules in eval mode."""
    with torch.inference_mode(False), torch.enable_grad():
        start, recording = latents.clone(), waveform.clone()
        distances = [Distance(recording, sample_rate, *scale) for scale in SCALES]

        def distance(decoded: Tensor) -> Tensor:
            return torch.stack([each(decoded[:, 0]) for each in distances]).mean()

        z, spread = start.clone().requires_grad_(), start.std()
        mean, square = torch.zeros_like(start), torch.zeros_like(start)  # running averages of gradients
        generator = torch.Generator("cpu").manual_seed(0)
        for step in range(steps):
            noise = torch.randn(start.shape, generator=generator, **spectral.PLAIN).to(start)
            tried = quantizer(z, num_quantizers).quantized + NOISE * spread * noise
            with torch.autocast("cpu", torch.bfloat16, enabled=HALF):  # the noise is larger than what this rounds
                decoded = decoder(tried)
            (gradient,) = torch.autograd.grad(distance(decoded), z)
            with torch.no_grad():
                mean.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square(), 1 - BETAS[1])
                direction, size = (m / (1 - beta ** (step + 1)) for m, beta in zip((mean, square), BETAS, strict=True))
                rate = RATE * spread / steps**0.5 * (1 - (1 - FINAL) * step / steps)
                z -= rate * direction / (size.sqrt() + EPSILON)
        with torch.no_grad():
            outputs = [quantizer(each, num_quantizers) for each in (start, z)]
            before, after = (distance(decoder(output.quantized)).item() for output in outputs)
    return outputs[after < before].codes


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
