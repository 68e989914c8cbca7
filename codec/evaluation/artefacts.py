"""Artefacts of decoders that means of PESQ do not show: fixed lines, washed-out harmonics, blurred onsets, lost level.

Lines are counted in the mean spectrum of a set of files; the others belong to a pair of waveforms and raise MetricError where
the reference has nothing to judge by. All are zero for a decoder that gives back what it was given.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from codec.audio import resample
from codec.evaluation.metrics import MetricError, Pair, PairMetric, Waveform
from codec.evaluation.results import Metric

Array = NDArray[np.float64]

STEP = 6.25  # Hz between the values of a mean spectrum
SILENT = 1e-12  # power of what lies 120 dB below a full-scale sine
LINES_FROM, WIDE_FROM = 7000.0, 10000.0  # Hz
WIDE_SHARE = 1e-6  # of the power that a wide-band recording has at least above WIDE_FROM
LINE_DB, AROUND = 6.0, 150.0  # a line stands so far over the median of so many Hz around it
RIPPLE_TOP, PITCHES, VOICED = 2000.0, (65.0, 400.0), 0.6  # Hz, Hz, share of the power that repeats after a period
BLURRED = 0.02  # seconds ahead of an onset
ONSET_DB = 15.0  # the level rises by so much at an onset
HEARD_DB = 30.0  # frames further below the loudest are no speech, nor onsets
FLOOR = 1e-5  # of the power behind an onset: what lies 50 dB below it is not heard ahead of it


def mean_spectrum(waveform: Waveform, sample_rate: int) -> Array:
    """Mean power by frequency, ``[F]``, every ``STEP`` Hz from 0 to half the sample rate, relative to a full-scale sine.

    Windows (Hann) are 160 ms long and overlap by half; zeros stand around ``waveform [T]``, so that any length has one.
    """
    size = round(sample_rate / STEP)
    window: Array = np.hanning(size + 1)[:-1]
    frames = sliding_window_view(np.pad(waveform, size // 2), size)[:: size // 2]
    spectra: Array = np.abs(np.fft.rfft(frames * window)) / (window.sum() / 2)
    power: Array = np.square(spectra).mean(axis=0)
    return power


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
        level - np.median(sliding_window_view(np.pad(level, half, mode="edge"), 2 * half + 1), axis=1)
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
    padded = (np.pad(resample(w, pair.sample_rate, rate), size // 2) for w in pair.waveforms[:2])
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
    powers = []
    for waveform in (clean, coded):
        short = np.square(waveform[: len(waveform) // step * step].astype(np.float64)).reshape(-1, step).sum(axis=1)
        powers.append(sliding_window_view(short, span).sum(axis=1))  # of the 20 ms from each place
    ahead, behind = powers[0][:-span], powers[0][span:]
    rise = -10 * np.log10(ahead / np.maximum(behind, SILENT) + FLOOR)
    later = rise + 1e-6 * np.arange(len(rise))  # of equal ones the last: nothing lies between it and the onset
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
    before, after = (
        np.square(w[: len(w) // size * size].astype(np.float64)).reshape(-1, size).sum(axis=1) for w in (clean, coded)
    )
    active = before > 10 ** (-HEARD_DB / 10) * before.max()
    return float(10 * np.log10(after[active].sum() / before[active].sum() + SILENT))


LINES = Metric(
    "lines > 7 kHz", "", "lower", 0,
    "Local maxima above 7 kHz that stand 6 dB over the median of the 150 Hz around them, in the mean power spectrum (Hann "
    "windows of 160 ms) of all files whose original has a millionth of its power above 10 kHz, and not in the originals'.",
)  # fmt: skip

ARTEFACTS: dict[str, PairMetric] = {
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
