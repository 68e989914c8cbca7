"""How close a decoded waveform is to its original.

Each metric is a function of two mono waveforms ``[T]`` of one length at one rate in Hz; :data:`METRICS` lists them with
what a reader of a result has to know. PESQ, STOI and the pitch tracker come from their packages (extra ``eval``;
ModuleNotFoundError without them). A pair for which a metric has no value raises :class:`MetricError`, as one that is digital
silence or shorter than a quarter of a second always does.
"""

from __future__ import annotations

import math
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import import_module
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from codec.audio import resample
from codec.errors import CodecError
from codec.evaluation.results import Metric
from codec.spectral import log_mel, mel_filterbank, planes
from codec.spectral import stft as short_time_spectrum

Waveform = NDArray[np.float32]

SHORTEST = 0.25  # seconds: what PESQ asks for at least; of less, no metric's value says anything about speech
RATE = 16000  # of PESQ wide-band (ITU-T P.862.2), and of pitch tracking
PESQ_UTTERANCES = 25  # half of what the reference code has room for; its voice detector cuts finer
PESQ_SAFE_SECONDS = 20  # 50 utterances of 0.2 s with gaps of 0.2 s, the shortest that it tells apart
MEL_BANDS = {256: 32, 512: 64, 1024: 80, 2048: 128}  # by window
SPECTRAL_FLOOR = 1e-4  # of a full-scale sine: 80 dB


class MetricError(CodecError):
    """A metric that has no value for this pair, and why; to be counted, never averaged in."""


def _comparable(reference: Waveform, estimate: Waveform, sample_rate: int) -> tuple[Waveform, Waveform]:
    """Both, if neither is digital silence nor very short, to which these metrics give no meaning."""
    if reference.shape != estimate.shape or reference.ndim != 1:
        raise CodecError(f"both must be mono and of one length: {list(reference.shape)} and {list(estimate.shape)}")
    if len(reference) < SHORTEST * sample_rate:
        raise MetricError("shorter than a quarter of a second")
    if not (reference.any() and estimate.any()):
        raise MetricError("digital silence cannot be compared")
    return reference, estimate


def pesq_wb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2) as MOS-LQO, 1.04 to 4.64, resampled to 16 kHz.

    It has no value for more than a minute, where it finds no speech, or for so many bursts of speech that its reference
    code might run out of room.
    """
    import pesq

    if len(reference) > 60 * sample_rate:
        raise MetricError("longer than 60 s, for which PESQ is not made")
    clean, coded = (resample(w, sample_rate, RATE) for w in _comparable(reference, estimate, sample_rate))
    if len(clean) > PESQ_SAFE_SECONDS * RATE and bursts(clean) > PESQ_UTTERANCES:
        raise MetricError("more bursts of speech than PESQ has room for; cut it into shorter files")
    try:
        return float(pesq.pesq(RATE, clean, coded, "wb"))
    except (pesq.PesqError, ValueError) as error:
        text = error.args[0] if error.args else type(error).__name__
        raise MetricError(text.decode() if isinstance(text, bytes) else str(text)) from None


def bursts(waveform: Waveform) -> int:
    """Most stretches of sound, by any level, with gaps of at least 0.2 s between them, in ``[T]`` at 16 kHz."""
    frames = waveform[: len(waveform) // 64 * 64].reshape(-1, 64)  # of 4 ms, as in PESQ: 50 are 0.2 s
    energy = np.square(frames.astype(np.float64)).mean(axis=1)
    levels = np.quantile(energy, np.linspace(0.02, 0.98, 25))
    return max(1 + int((np.diff(np.flatnonzero(energy > level)) > 50).sum()) for level in levels)


def stoi(reference: Waveform, estimate: Waveform, sample_rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1; no value for less than 0.4 s of speech.

    ``extended`` gives ESTOI (Jensen and Taal 2016), which also punishes what changes faster than a band's mean level.
    """
    import pystoi

    clean, coded = _comparable(reference, estimate, sample_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi warns and returns 1e-5 where it has too few frames
        try:
            return float(pystoi.stoi(clean, coded, sample_rate, extended=extended))
        except (RuntimeWarning, ValueError) as error:
            raise MetricError(str(error).split(".")[0]) from None


def si_sdr(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508)."""
    clean, coded = (w.astype(np.float64) for w in _comparable(reference, estimate, sample_rate))
    target = (coded @ clean) / (clean @ clean) * clean
    noise = coded - target
    return float(10 * np.log10((target @ target + 1e-12) / (noise @ noise + 1e-12)))


def mel_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mean absolute difference of natural-log mel magnitudes, mean over :data:`MEL_BANDS`; hop a quarter of the window."""
    clean, coded = (torch.from_numpy(w)[None] for w in _comparable(reference, estimate, sample_rate))
    distances = []
    for n_fft, bands in MEL_BANDS.items():
        filters = mel_filterbank(sample_rate, n_fft, bands)
        difference = log_mel(planes(coded, n_fft), filters) - log_mel(planes(clean, n_fft), filters)
        distances.append(float(difference.abs().mean()))
    return sum(distances) / len(distances)


def log_spectral_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Log-spectral distance in dB: root mean square over bins of the level difference, mean over frames.

    Window 32 ms, hop 8 ms; levels below 80 dB under a full-scale sine count as 80 dB, and frames in which neither waveform
    has anything above that do not count. Without any other frame there is no value.
    """
    n_fft = max(16, round(sample_rate * 0.008) * 4)
    levels = []
    for waveform in _comparable(reference, estimate, sample_rate):
        magnitude = short_time_spectrum(torch.from_numpy(waveform)[None], n_fft, n_fft // 4).abs() / (n_fft / 4)
        levels.append(20 * torch.log10(magnitude.clamp(min=SPECTRAL_FLOOR)))
    heard = (torch.maximum(*levels) > 20 * math.log10(SPECTRAL_FLOOR)).any(dim=-1)
    if not heard.any():
        raise MetricError("nothing lies above the floor of 80 dB under full scale")
    return float((levels[0] - levels[1]).square().mean(dim=-1).sqrt()[heard].mean())


def pitch_track(waveform: Waveform, sample_rate: int) -> NDArray[np.float64]:
    """Fundamental frequency in Hz every 10 ms, ``[N]``, NaN where unvoiced: pYIN (Mauch and Dixon 2014) by librosa."""
    import librosa

    samples = resample(waveform, sample_rate, RATE)
    frames: dict[str, Any] = {"frame_length": 1024, "hop_length": 160}  # 64 ms: four periods of the lowest pitch
    # in steps of 0.2 semitones; librosa's 0.1 takes several times as long
    return np.asarray(librosa.pyin(samples, fmin=65, fmax=500, sr=RATE, resolution=0.2, **frames)[0], np.float64)


def voicing_f1(reference: NDArray[np.float64], estimate: NDArray[np.float64]) -> float:
    """F1 score of the voiced/unvoiced decision of two pitch tracks ``[N]``, voiced being the positive class."""
    voiced, coded = ~np.isnan(reference), ~np.isnan(estimate)
    if not voiced.any():
        raise MetricError("the reference has no voiced frame")
    return float(2 * (voiced & coded).sum() / (voiced.sum() + coded.sum()))


def pitch_rmse(reference: NDArray[np.float64], estimate: NDArray[np.float64]) -> float:
    """Root mean square difference in Hz of two pitch tracks ``[N]`` over the frames that are voiced in both."""
    both = ~np.isnan(reference) & ~np.isnan(estimate)
    if not both.any():
        raise MetricError("no frame is voiced in both")
    return float(np.sqrt(np.square(reference[both] - estimate[both]).mean()))


# ---- the table of metrics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A reference and an estimate, ``[T]`` of one length, at ``sample_rate`` Hz."""

    reference: Waveform
    estimate: Waveform
    sample_rate: int

    @property
    def waveforms(self) -> tuple[Waveform, Waveform, int]:
        """The arguments of the metrics above, if the two can be compared at all."""
        return *_comparable(self.reference, self.estimate, self.sample_rate), self.sample_rate

    @cached_property
    def pitch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pitch tracks of both."""
        reference, estimate, sample_rate = self.waveforms
        return _pitch_of_reference(reference.tobytes(), sample_rate), pitch_track(estimate, sample_rate)


@lru_cache(maxsize=1)
def _pitch_of_reference(samples: bytes, sample_rate: int) -> NDArray[np.float64]:
    """Its pitch track, made once for all that is compared with it one after the other."""
    return pitch_track(np.frombuffer(samples, np.float32), sample_rate)


class PairMetric(NamedTuple):
    """What is said of a metric, and what computes it."""

    about: Metric
    compute: Callable[[Pair], float]


def distillmos(pair: Pair) -> float:
    """DistillMOS: a mean opinion score predicted without the reference."""
    samples = resample(pair.estimate, pair.sample_rate, RATE)
    if len(samples) < 0.5 * RATE:  # too little to say anything
        raise MetricError("shorter than 0.5 s")
    if not samples.any():
        raise MetricError("digital silence cannot be judged")
    with torch.no_grad():
        return float(_distillmos_network()(torch.from_numpy(samples)[None]))


@cache
def _distillmos_network() -> Any:
    """The network with the weights inside its package, which imports torchaudio, but for its command line only."""
    try:
        import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):  # not here, or built for another torch
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    with redirect_stdout(StringIO()):  # it announces its weights
        return import_module("distillmos").ConvTransformerSQAModel().eval()


METRICS: dict[str, PairMetric] = {
    "pesq": PairMetric(Metric(
        "PESQ-WB", "MOS-LQO", "higher", 3,
        "ITU-T P.862.2 by the package pesq, both resampled to 16 kHz by soxr; PESQ aligns in time by itself. Up to 60 s "
        "(beyond 20 s only where there are at most 25 bursts of speech).", package="pesq",
    ), lambda pair: pesq_wb(*pair.waveforms)),
    "stoi": PairMetric(Metric(
        "STOI", "", "higher", 3,
        "Taal et al. 2011 by the package pystoi, which resamples to 10 kHz and removes pauses (frames 40 dB below the "
        "loudest of the reference).", package="pystoi",
    ), lambda pair: stoi(*pair.waveforms)),
    "estoi": PairMetric(Metric(
        "ESTOI", "", "higher", 3, "Jensen and Taal 2016 by the package pystoi; otherwise as STOI.", package="pystoi",
    ), lambda pair: stoi(*pair.waveforms, extended=True)),
    "mel": PairMetric(Metric(
        "mel distance", "nepers", "lower", 3,
        "Mean absolute difference of log-mel magnitudes over windows of 256, 512, 1,024 and 2,048 samples at the "
        "reference's rate, 32 to 128 bands, floor 100 dB under full scale.",
    ), lambda pair: mel_distance(*pair.waveforms)),
    "si_sdr": PairMetric(Metric(
        "SI-SDR", "dB", "higher", 2,
        "Scale-invariant signal-to-distortion ratio at the reference's rate, of waveforms as aligned above.",
    ), lambda pair: si_sdr(*pair.waveforms)),
    "lsd": PairMetric(Metric(
        "log-spectral distance", "dB", "lower", 2,
        "RMS level difference over bins, mean over frames of 32 ms, hop 8 ms, floor 80 dB under full scale (frames "
        "wholly below it are left out).",
    ), lambda pair: log_spectral_distance(*pair.waveforms)),
    "vuv_f1": PairMetric(Metric(
        "V/UV F1", "", "higher", 3,
        "F1 of voiced frames; pitch every 10 ms by librosa.pyin at 16 kHz (soxr), 65 to 500 Hz, window 64 ms.",
        package="librosa",
    ), lambda pair: voicing_f1(*pair.pitch)),
    "f0_rmse": PairMetric(Metric(
        "F0 RMSE", "Hz", "lower", 1, "Over frames voiced in both; pitch tracks as for V/UV F1.", package="librosa",
    ), lambda pair: pitch_rmse(*pair.pitch)),
    "distillmos": PairMetric(Metric(
        "DistillMOS", "MOS", "higher", 2,
        "Mean opinion score predicted from the reconstruction alone at 16 kHz (soxr); for ranking only.",
        package="distillmos",
    ), distillmos),
}  # fmt: skip

COSTS: dict[str, Metric] = {  # what a reconstruction took in bits and time: measured while coding, not of the waveforms
    "kbps_file": Metric(
        "file bitrate", "kbit/s", "lower", 2,
        "Size of all files, headers and checksums included, over their duration (Opus: with its Ogg pages).",
        per_second=True,
    ),
    "kbps_entropy": Metric(
        "entropy bound", "kbit/s", "lower", 2,
        "Bits that an ideal entropy coder would need that knows how often each code occurs in these very files, stage by "
        "stage; no context.", per_second=True,
    ),
    "rtf": Metric(
        "real-time factor", "", "none", 4,
        "Seconds of encoding and decoding for a second of speech, one thread, whatever else the machine was doing; programs "
        "of other systems include their start, and encoding is that of all quantizers.", per_second=True,
    ),
}  # fmt: skip
