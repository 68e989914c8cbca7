"""How close a decoded waveform is to its original. PESQ and STOI come from their packages (extra ``eval``)."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from codec.audio import resample
from codec.losses import SpectralLoss

Waveform = NDArray[np.float32]

PESQ_RATE = 16000  # ITU-T P.862.2 (wide-band) is defined at 16 kHz only


class MetricError(ValueError):
    """A metric that has no value for this pair; to be counted, never averaged in."""


def pesq_wb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2) as MOS-LQO, 1.04 to 4.64, of two mono waveforms ``[T]``, resampled to 16 kHz.

    Raises:
        MetricError: shorter than a quarter of a second, silence, or no speech found.
        ModuleNotFoundError: the package ``pesq`` is not installed.
    """
    pesq = _lazy("pesq")
    wanted, made = (resample(w, sample_rate, PESQ_RATE) for w in _comparable(reference, estimate))
    try:
        return float(pesq.pesq(PESQ_RATE, wanted, made, "wb"))
    except (pesq.PesqError, ValueError) as error:
        raise MetricError(f"PESQ: {error.args[0] if error.args else type(error).__name__}") from None


def stoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1, of two mono waveforms ``[T]``.

    Raises:
        MetricError: silence, or less than 30 frames of speech (0.4 s) once pauses are removed.
        ModuleNotFoundError: the package ``pystoi`` is not installed.
    """
    module = _lazy("pystoi")
    wanted, made = _comparable(reference, estimate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi warns and returns 1e-5 where it has too few frames
        try:
            return float(module.stoi(wanted, made, sample_rate, extended=False))
        except (RuntimeWarning, ValueError) as error:
            raise MetricError(f"STOI: {str(error).split('.')[0]}") from None


def si_sdr(reference: Waveform, estimate: Waveform, sample_rate: int = 0) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508).

    Raises:
        MetricError: silence.
    """
    wanted, made = (w.astype(np.float64) for w in _comparable(reference, estimate))
    target = (made @ wanted) / (wanted @ wanted) * wanted
    noise = made - target
    return float(10 * np.log10((target @ target + 1e-12) / (noise @ noise + 1e-12)))


def mel_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mean absolute difference of natural-log mel magnitudes over 80 bands, window 1,024, hop 256."""
    wanted, made = (torch.from_numpy(w)[None, None] for w in _same_length(reference, estimate))
    distance = SpectralLoss(sample_rate, (1024,), (80,), ())
    with torch.no_grad():
        return float(distance(made, wanted, torch.tensor([sample_rate / 2]))["mel"])


METRICS = {"pesq": pesq_wb, "stoi": stoi, "si_sdr": si_sdr, "mel": mel_distance}


def _same_length(reference: Waveform, estimate: Waveform) -> tuple[Waveform, Waveform]:
    if reference.shape != estimate.shape or reference.ndim != 1:
        raise ValueError(f"both must be mono and of one length: {list(reference.shape)} and {list(estimate.shape)}")
    return reference, estimate


def _comparable(reference: Waveform, estimate: Waveform) -> tuple[Waveform, Waveform]:
    """Both, if neither is digital silence, to which these metrics give no meaning."""
    reference, estimate = _same_length(reference, estimate)
    if not (reference.any() and estimate.any()):
        raise MetricError("digital silence cannot be compared")
    return reference, estimate


def _lazy(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{name} is not installed: pip install 'simvq-codec[eval]'", name=name) from None
