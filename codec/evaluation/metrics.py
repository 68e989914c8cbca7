"""How close a decoded waveform is to its original.

Each metric is a function of a :class:`Pair`; :data:`METRICS` lists them with what a reader must know of a result. PESQ,
STOI and the pitch tracker come from their packages (extra ``eval``; ModuleNotFoundError without them). A pair for which a
metric has no value raises :class:`MetricError`, as one that is digital silence or shorter than a quarter of a second does.

The last ones are artefacts that means of PESQ do not show: fixed lines, washed-out harmonics, blurred onsets, lost level.
A perfect decoder has none. Lines are counted in the mean spectrum of a set of files.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from codec import spectral
from codec.audio import resample
from codec.errors import CodecError
from codec.evaluation.results import Metric

Waveform = NDArray[np.float32]
Array = NDArray[np.float64]

SHORTEST = 0.25  # seconds: the minimum of PESQ; of less speech no metric means anything
RATE = 16000  # of PESQ wide-band (ITU-T P.862.2), and of pitch tracking
PESQ_UTTERANCES = 25  # half of the reference code's room for utterances, as its voice detector finds more of them
PESQ_SAFE_SECONDS = 20  # 50 utterances of 0.2 s with gaps of 0.2 s, the shortest that it separates
MEL_BANDS = {256: 32, 512: 64, 1024: 80, 2048: 128}  # by window
SPECTRAL_FLOOR = -80.0  # dB relative to a full-scale sine

# for artefacts
STEP = 6.25  # Hz between the values of a mean spectrum
SILENT = 1e-12  # a power 120 dB below that of a full-scale sine
LINES_FROM, WIDE_FROM = 7000.0, 10000.0  # Hz
WIDE_SHARE = 1e-6  # a wide-band recording has at least this share of its power above WIDE_FROM
LINE_DB, AROUND = 6.0, 150.0  # dB of a line over the median of the Hz around it
RIPPLE_TOP, PITCHES, VOICED = 2000.0, (65.0, 400.0), 0.6  # Hz, Hz, the part of the power that repeats after a period
BLURRED = 0.02  # seconds ahead of an onset
ONSET_DB = 15.0  # the level rises by so much at an onset
HEARD_DB = 30.0  # frames softer than the loudest by more are neither speech nor onsets
FLOOR = 1e-5  # of the power after an onset: before it, what is softer by 50 dB is not heard


class MetricError(CodecError):
    """The reason why a metric has no value for a pair; it is counted, and never part of a mean."""


@dataclass(frozen=True)
class Pair:
    """A reference and an estimate, ``[T]`` of one length, at ``sample_rate`` Hz."""

    reference: Waveform
    estimate: Waveform
    sample_rate: int

    @property
    def waveforms(self) -> tuple[Waveform, Waveform, int]:
        """All three, or a MetricError: no metric has a meaning for digital silence or very short waveforms."""
        assert self.reference.shape == self.estimate.shape and self.reference.ndim == 1
        if len(self.reference) < SHORTEST * self.sample_rate:
            raise MetricError("shorter than a quarter of a second")
        if not (self.reference.any() and self.estimate.any()):
            raise MetricError("digital silence cannot be compared")
        return np.asarray(self.reference, np.float32), np.asarray(self.estimate, np.float32), self.sample_rate

    def resampled(self, sample_rate: int) -> list[Waveform]:
        """Both at another rate, if the two can be compared."""
        return [resample(waveform, self.sample_rate, sample_rate) for waveform in self.waveforms[:2]]

    @property
    def pitch(self) -> list[Array]:
        """Pitch tracks of both."""
        return [_pitch_track(waveform.tobytes(), self.sample_rate) for waveform in self.waveforms[:2]]


@lru_cache(maxsize=2)
def _pitch_track(samples: bytes, sample_rate: int) -> Array:
    """A cached pitch track: both metrics of a pair share it, and all systems that are compared with one reference."""
    return pitch_track(np.frombuffer(samples, np.float32), sample_rate)


def pesq_wb(pair: Pair) -> float:
    """Wide-band PESQ (ITU-T P.862.2) as MOS-LQO, 1.04 to 4.64, resampled to 16 kHz.

    It is wrong for some recordings with rumble below 50 Hz: its reference code then gives values below that range.
    It has no value for more than a minute, if it finds no speech, or for so many bursts of speech that its reference code
    might run out of room.
    """
    import pesq

    if len(pair.reference) > 60 * pair.sample_rate:
        raise MetricError("longer than 60 s, for which PESQ is not made")
    clean, coded = pair.resampled(RATE)
    if len(clean) > PESQ_SAFE_SECONDS * RATE and bursts(clean) > PESQ_UTTERANCES:
        raise MetricError("more bursts of speech than PESQ has room for; cut it into shorter files")
    try:
        return float(pesq.pesq(RATE, clean, coded, "wb"))
    except (pesq.PesqError, ValueError) as error:
        text = error.args[0] if error.args else type(error).__name__
        raise MetricError(text.decode() if isinstance(text, bytes) else str(text)) from None


def bursts(waveform: Waveform) -> int:
    """Most stretches of sound, by any level, with gaps of at least 0.2 s between them, in ``[T]`` at 16 kHz."""
    energy = energies(waveform, 64)  # of 4 ms, as in PESQ: 50 are 0.2 s
    levels = np.quantile(energy, np.linspace(0.02, 0.98, 25))
    return max(1 + int((np.diff(np.flatnonzero(energy > level)) > 50).sum()) for level in levels)


def energies(waveform: Waveform, size: int) -> Array:
    """Sum of squares of every ``size`` samples of ``[T]``."""
    return np.square(waveform[: len(waveform) // size * size].astype(np.float64)).reshape(-1, size).sum(axis=1)


def stoi(pair: Pair, extended: bool = False) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1; no value for less than 0.4 s of speech.

    ``extended`` gives ESTOI (Jensen and Taal 2016), which also punishes what changes faster than a band's mean level.
    """
    import pystoi

    clean, coded, sample_rate = pair.waveforms
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi warns and returns 1e-5 where it has too few frames
        try:
            return float(pystoi.stoi(clean, coded, sample_rate, extended=extended))
        except (RuntimeWarning, ValueError) as error:
            raise MetricError(str(error).split(".")[0]) from None


def si_sdr(pair: Pair) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508)."""
    clean, coded = (w.astype(np.float64) for w in pair.waveforms[:2])
    target = (coded @ clean) / (clean @ clean) * clean
    noise = coded - target
    return float(10 * np.log10((target @ target + 1e-12) / (noise @ noise + 1e-12)))


def mel_distance(pair: Pair) -> float:
    """Mean absolute difference of natural-log mel magnitudes, mean over :data:`MEL_BANDS`; hop a quarter of the window."""
    if max(np.abs(w).max() for w in pair.waveforms[:2]) < 10 ** (SPECTRAL_FLOOR / 20):
        raise MetricError("nothing lies above 80 dB under full scale")
    clean, coded = (torch.from_numpy(w)[None] for w in pair.waveforms[:2])
    distances = []
    for n_fft, bands in MEL_BANDS.items():
        filters = spectral.mel_filterbank(pair.sample_rate, n_fft, bands)
        spectra = spectral.planes(coded, n_fft), spectral.planes(clean, n_fft)
        distances.append(float(spectral.mel_distance(*spectra, filters).mean()))
    return sum(distances) / len(distances)


def log_spectral_distance(pair: Pair) -> float:
    """Log-spectral distance in dB: root mean square over bins of the level difference, mean over frames.

    Window 32 ms, hop 8 ms; levels below 80 dB under a full-scale sine count as 80 dB, and frames in which neither
    waveform is above that do not count. If no frame counts there is no value.
    """
    n_fft = max(16, round(pair.sample_rate * 0.008) * 4)
    powers = (spectral.planes(torch.from_numpy(w)[None], n_fft).power for w in pair.waveforms[:2])
    levels = [(10 * torch.log10(power)).clamp(min=SPECTRAL_FLOOR) for power in powers]
    heard = (torch.maximum(*levels) > SPECTRAL_FLOOR).any(dim=-1)
    if not heard.any():
        raise MetricError("nothing lies above 80 dB under full scale")
    return float((levels[0] - levels[1]).square().mean(dim=-1).sqrt()[heard].mean())


def pitch_track(waveform: Waveform, sample_rate: int) -> Array:
    """Fundamental frequency in Hz every 10 ms, ``[N]``, NaN where unvoiced: pYIN (Mauch and Dixon 2014) by librosa."""
    import librosa

    samples = resample(waveform, sample_rate, RATE)
    frames: dict[str, Any] = {"frame_length": 1024, "hop_length": 160}  # 64 ms: four periods of the lowest pitch
    # in steps of 0.2 semitones; librosa's 0.1 takes several times as long
    return np.asarray(librosa.pyin(samples, fmin=65, fmax=500, sr=RATE, resolution=0.2, **frames)[0], np.float64)


def voicing_f1(reference: Array, estimate: Array) -> float:
    """F1 score of the voiced/unvoiced decision of two pitch tracks ``[N]``, voiced being the positive class."""
    voiced, coded = ~np.isnan(reference), ~np.isnan(estimate)
    if not voiced.any():
        raise MetricError("the reference has no voiced frame")
    return float(2 * (voiced & coded).sum() / (voiced.sum() + coded.sum()))


def pitch_rmse(reference: Array, estimate: Array) -> float:
    """Root mean square difference in Hz of two pitch tracks ``[N]`` over the frames that are voiced in both."""
    both = ~np.isnan(reference) & ~np.isnan(estimate)
    if not both.any():
        raise MetricError("no frame is voiced in both")
    return float(np.sqrt(np.square(reference[both] - estimate[both]).mean()))


def distillmos(pair: Pair) -> float:
    """DistillMOS: a mean opinion score predicted without the reference."""
    samples = pair.resampled(RATE)[1]
    if len(samples) < 0.5 * RATE:  # too short for a prediction
        raise MetricError("shorter than 0.5 s")
    with torch.no_grad():
        return float(_distillmos_network()(torch.from_numpy(samples)[None]))


@cache
def _distillmos_network() -> Any:
    """The network, with weights from its package, which imports torchaudio only for its command line."""
    stand_in = types.ModuleType("torchaudio")  # if torchaudio is missing, or built for another torch
    present = sys.modules.setdefault("torchaudio", stand_in)
    with redirect_stdout(StringIO()):  # it prints a line about its weights
        network = import_module("distillmos").ConvTransformerSQAModel().eval()
    if present is stand_in:
        del sys.modules["torchaudio"]  # other importers must find the real one
    return network


# ---- artefacts --------------------------------------------------------------------------------------------------------


def mean_spectrum(waveform: Waveform, sample_rate: int) -> Array:
    """Mean power by frequency, ``[F]``, every ``STEP`` Hz from 0 to half the sample rate, relative to a full-scale sine.

    Windows (Hann) are 160 ms long and overlap by half; there are zeros around ``waveform [T]``, so that any length will do.
    """
    size = round(sample_rate / STEP)
    spectrum = spectral.stft(torch.from_numpy(waveform).double()[None], size, size // 2)[0] / (size / 4)
    return np.asarray(spectrum.abs().square().mean(dim=0), np.float64)


def is_wide(spectrum: Array) -> bool:
    """Whether a recording with this mean spectrum ``[F]`` holds sound above 10 kHz."""
    return float(spectrum[round(WIDE_FROM / STEP) :].sum()) > WIDE_SHARE * float(spectrum.sum())


def lines(spectrum: Array, reference: Array) -> Array:
    """Frequencies in Hz above 7 kHz at which the mean spectrum of decoded files has a line that the recordings' has not.

    A line is a local maximum of at least 6 dB over the median of the levels within 75 Hz of it, where the recordings stand
    out by less than 3 dB. Decoders whose frames repeat a pattern have lines at multiples of their frame rate. Both: ``[F]``.
    """
    half = round(AROUND / STEP / 2)
    width = min(len(spectrum), len(reference))
    own, recorded = (10 * np.log10(each[:width] + SILENT) for each in (spectrum, reference))
    excess, other = (
        level - np.median(sliding_window_view(np.pad(level, half, mode="reflect"), 2 * half + 1), axis=1)
        for level in (own, recorded)
    )
    peak = own == np.max(sliding_window_view(np.pad(own, 1, mode="edge"), 3), axis=1)
    also = np.max(sliding_window_view(np.pad(other, 1, mode="edge"), 3), axis=1) >= LINE_DB / 2
    frequencies = STEP * np.flatnonzero(peak & (excess >= LINE_DB) & ~also)
    return np.asarray(frequencies[frequencies > LINES_FROM], np.float64)


def ripple(pair: Pair) -> float:
    """How much further harmonics stand out of the spectrum than in the reference, in dB, over its voiced frames.

    At 8 kHz, in Hann windows of 64 ms every 16 ms, the log spectrum in dB from half the pitch f to 2 kHz is compared with
    ``cos(2 pi frequency / f)``, which is 1 at the harmonics and -1 between them: the height of the cosine that fits it best,
    from valley to peak. The pitch is the reference's; either waveform may deviate from it by up to 3 %, as fits best.
    """
    rate, size, bins = 8000, 512, 4096
    window = np.hanning(size + 1)[:-1]
    padded = (np.pad(waveform, size // 2) for waveform in pair.resampled(rate))
    clean, coded = (sliding_window_view(each, size)[:: size // 4] * window for each in padded)
    pitch, voiced = _pitch(clean, window, rate)
    if not voiced.any():
        raise MetricError("the reference has no voiced frame")
    place = 0.5 + np.arange(0, 32, 1 / 16)  # in multiples of the pitch, [P]: 32 of the lowest are more than 2 kHz
    cosine, heights = np.cos(2 * np.pi * place), []
    for frames in (clean[voiced], coded[voiced]):
        level = 10 * np.log10(np.square(np.abs(np.fft.rfft(frames, bins)[:, : bins // 3])) + SILENT)
        fits = []
        for deviation in np.linspace(0.97, 1.03, 13):
            f = deviation * pitch[voiced, None]
            inside = place < 0.5 + np.floor(RIPPLE_TOP / f - 0.5)  # over whole periods a cosine has no mean, [N, P]
            picked = np.take_along_axis(level, np.round(place * f * inside * bins / rate).astype(int), axis=1)
            fits.append(4 * (picked * inside * cosine).sum(axis=1) / inside.sum(axis=1))
        heights.append(np.max(fits, axis=0))
    return float((heights[1] - heights[0]).mean())


def _pitch(frames: Array, window: Array, rate: int) -> tuple[Array, NDArray[np.bool_]]:
    """Pitch in Hz of windowed ``frames [N, size]``, by autocorrelation (Boersma 1993); whether voiced and loud enough."""
    size = frames.shape[1]
    correlation, own = (
        np.fft.irfft(np.square(np.abs(np.fft.rfft(each, 2 * size))))[..., :size] for each in (frames, window)
    )
    power = correlation[:, :1]
    lags = np.arange(round(rate / PITCHES[1]), round(rate / PITCHES[0]) + 1)
    strength = correlation[:, lags] / np.maximum(power, SILENT) / (own[lags] / own[0])
    best = np.argmax(strength - 0.05 * np.log2(lags), axis=1)  # a period twice as long has to be better by 0.05
    loud = power[:, 0] > 10 ** (-HEARD_DB / 10) * power.max()
    return rate / lags[best], loud & (strength[np.arange(len(best)), best] >= VOICED)


def onset_blur(pair: Pair) -> float:
    """How much more energy than in the reference lies in the 20 ms ahead of onsets, in dB, mean over the onsets.

    An onset is a place of the reference, on a grid of 2 ms, where the power of the 20 ms behind it is at least 15 dB over
    that of the 20 ms ahead, more so than anywhere within 50 ms, and less than 30 dB below the loudest 20 ms of all. The power
    ahead is taken relative to that behind, so that a gain does not count.
    """
    clean, coded, sample_rate = pair.waveforms
    step, span = round(sample_rate / 500), round(BLURRED * 500)
    powers = [sliding_window_view(energies(w, step), span).sum(axis=1) for w in (clean, coded)]  # of 20 ms each
    ahead, behind = powers[0][:-span], powers[0][span:]
    rise = -10 * np.log10(ahead / np.maximum(behind, SILENT) + FLOOR)
    later = rise + 1e-6 * np.arange(len(rise))  # of equal ones the last, which is next to the onset
    near = np.max(sliding_window_view(np.pad(later, 25, constant_values=-np.inf), 51), axis=1)
    loud = behind > 10 ** (-HEARD_DB / 10) * powers[0].max()
    onsets = np.flatnonzero(loud & (rise >= ONSET_DB) & (later == near))
    if not len(onsets):
        raise MetricError("the reference has no onset")
    coded_behind = np.maximum(powers[1][span + onsets], SILENT)
    return float((10 * np.log10(powers[1][onsets] / coded_behind + FLOOR) + rise[onsets]).mean())


def level_error(pair: Pair) -> float:
    """Level of active speech, decoded minus reference, in dB: over the reference's 20 ms frames that are loud enough."""
    clean, coded, sample_rate = pair.waveforms
    size = round(0.02 * sample_rate)
    before, after = energies(clean, size), energies(coded, size)
    active = before > 10 ** (-HEARD_DB / 10) * before.max()
    return float(10 * np.log10(after[active].sum() / before[active].sum() + SILENT))


# ---- the table of metrics -----------------------------------------------------------------------------------------------


class PairMetric(NamedTuple):
    """A description of a metric, and the function that computes it."""

    about: Metric
    compute: Callable[[Pair], float]


METRICS: dict[str, PairMetric] = {
    "pesq": PairMetric(Metric(
        "PESQ-WB", "MOS-LQO", "higher", 3,
        "ITU-T P.862.2 by the package pesq, both resampled to 16 kHz by soxr; PESQ aligns in time by itself. Up to 60 s "
        "(beyond 20 s only where there are at most 25 bursts of speech).", package="pesq",
    ), pesq_wb),
    "stoi": PairMetric(Metric(
        "STOI", "", "higher", 3,
        "Taal et al. 2011 by the package pystoi, which resamples to 10 kHz and removes pauses (frames 40 dB below the "
        "loudest of the reference).", package="pystoi",
    ), stoi),
    "estoi": PairMetric(Metric(
        "ESTOI", "", "higher", 3, "Jensen and Taal 2016 by the package pystoi; otherwise as STOI.", package="pystoi",
    ), lambda pair: stoi(pair, extended=True)),
    "mel": PairMetric(Metric(
        "mel distance", "nepers", "lower", 3,
        "Mean absolute difference of log-mel magnitudes over windows of 256, 512, 1,024 and 2,048 samples at the "
        "reference's rate, 32 to 128 bands, floor 100 dB under full scale.",
    ), mel_distance),
    "si_sdr": PairMetric(Metric(
        "SI-SDR", "dB", "higher", 2,
        "Scale-invariant signal-to-distortion ratio at the reference's rate, of waveforms as aligned above.",
    ), si_sdr),
    "lsd": PairMetric(Metric(
        "log-spectral distance", "dB", "lower", 2,
        "RMS level difference over bins, mean over frames of 32 ms, hop 8 ms, floor 80 dB under full scale (frames "
        "wholly below it are left out).",
    ), log_spectral_distance),
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
    "ripple": PairMetric(Metric(
        "harmonic ripple", "dB", "zero", 2,
        "How far harmonics stand out of the log spectrum below 2 kHz, voiced frames of the reference, decoded minus "
        "reference; negative: washed out.",
    ), ripple),
    "onset_blur": PairMetric(Metric(
        "onset blur", "dB", "lower", 2,
        "Power of the 20 ms ahead of onsets (rises of 15 dB) relative to that of the 20 ms behind, decoded minus "
        "reference, floor 50 dB.",
    ), onset_blur),
    "level": PairMetric(Metric(
        "level error", "dB", "zero", 2,
        "Level of active speech (20 ms frames less than 30 dB below the reference's loudest), decoded minus reference.",
    ), level_error),
}  # fmt: skip

LINES = Metric(
    "lines > 7 kHz", "", "lower", 0,
    "Local maxima above 7 kHz that stand 6 dB over the median of the 150 Hz around them, in the mean power spectrum (Hann "
    "windows of 160 ms) of all files whose original has a millionth of its power above 10 kHz, and not in the originals'.",
)  # fmt: skip

COSTS: dict[str, Metric] = {  # bits and time of a reconstruction: measured while coding, not from waveforms
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
        "of other systems include their start, and encoding, unless codes are refined, is that of all quantizers.",
        per_second=True,
    ),
}  # fmt: skip
