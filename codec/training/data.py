"""Training data: random segments of the utterances of a manifest."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.audio import system_path
from codec.corpus.manifest import ManifestError, Record, audio_source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentConfig:
    """How random segments are drawn.

    Attributes:
        seconds: length of a segment.
        gain_db: lowest and highest random gain; a segment is never amplified beyond full scale.
        max_bad_fraction: reading stops once more than this share of the files tried cannot be read.
        max_speaker_hours: a speaker with more speech is drawn as if it were so much; 0 for no cap.
    """

    seconds: float = 1.0
    gain_db: tuple[float, ...] = (-6.0, 3.0)
    max_bad_fraction: float = 0.01
    max_speaker_hours: float = 0.0


class SegmentDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random segments of speech at one sample rate; segment ``index`` is a function of the seed and the index alone.

    Utterances are drawn with a chance proportional to their duration, so that every second of speech is as likely (but for
    speakers over ``max_speaker_hours``: a few long-winded ones should not make up the whole). Any
    process can therefore go on at any position of the endless stream without having read what came before.

    Items: ``waveform [1, T]`` float32, ``bandwidth []`` in Hz, ``index []``, ``skipped []``. A file that cannot be read
    is skipped (the next draw of the same index takes its place), counted in ``skipped`` and reported once by name.

    Args:
        records: the utterances.
        sample_rate: of the segments, in Hz; files of other rates are resampled.
        config: segment length and augmentation.
        seed: of every random choice.
    """

    def __init__(self, records: Sequence[Record], sample_rate: int, config: SegmentConfig, seed: int) -> None:
        if not records:
            raise ManifestError("the manifest is empty")
        self.records, self.sample_rate, self.config, self.seed = list(records), sample_rate, config, seed
        self.num_samples = round(config.seconds * sample_rate)
        self.ends = np.cumsum(draw_weights(records, config.max_speaker_hours))
        self.tried: set[str] = set()
        self.bad: set[str] = set()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        skipped = 0
        while True:
            record = self.records[min(np.searchsorted(self.ends, rng.random() * self.ends[-1]), len(self.records) - 1)]
            position, gain = rng.random(), rng.uniform(self.config.gain_db[0], self.config.gain_db[1])
            try:
                segment = read_segment(record, position, self.num_samples, self.sample_rate)
            except (OSError, soundfile.LibsndfileError, ManifestError) as error:
                self._count_bad(record, error)
                skipped += 1
                continue
            self.tried.add(record.id)
            peak = float(np.abs(segment).max(initial=1e-9))
            segment *= min(10 ** (gain / 20), 1.0 / peak)
            return {
                "waveform": torch.from_numpy(segment[None]),
                "bandwidth": torch.tensor(min(record.bandwidth, self.sample_rate / 2), dtype=torch.float32),
                "index": torch.tensor(index),
                "skipped": torch.tensor(skipped),
            }

    def _count_bad(self, record: Record, error: Exception) -> None:
        if record.id not in self.bad:
            log.warning("skipped %s: %s", record.path, error)
        self.tried.add(record.id)
        self.bad.add(record.id)
        allowed = max(3.0, self.config.max_bad_fraction * len(self.tried))
        if len(self.bad) > allowed or len(self.bad) == len(self.records):
            raise ManifestError(
                f"{len(self.bad)} of {len(self.tried)} files tried cannot be read (the last: {record.path}); "
                "prepare the data again, or raise data.max_bad_fraction"
            )


def draw_weights(records: Sequence[Record], max_speaker_hours: float) -> list[float]:
    """How often each record is drawn, in seconds of speech; a record without a speaker is a speaker of its own."""
    if max_speaker_hours <= 0:
        return [record.duration for record in records]
    spoken: dict[str, float] = {}
    for record in records:
        spoken[record.speaker or record.id] = spoken.get(record.speaker or record.id, 0.0) + record.duration
    most = 3600 * max_speaker_hours
    return [record.duration * min(1.0, most / spoken[record.speaker or record.id]) for record in records]


def read_segment(record: Record, position: float, num_samples: int, sample_rate: int) -> NDArray[np.float32]:
    """``num_samples`` at ``sample_rate`` from a file, mixed down to mono and resampled; zeros after the end.

    ``position`` in [0, 1) chooses the start among all that keep the segment inside the file. A margin is read and cut off
    on both sides, so that the resampler never sees an edge inside the segment.
    """
    source = audio_source(record)
    with soundfile.SoundFile(system_path(source) if isinstance(source, str) else source) as file:
        rate, total = file.samplerate, file.frames
        if total < 1:
            raise ManifestError(f"{record.path} is empty")
        wanted = math.ceil(num_samples * rate / sample_rate)
        start = int(position * (max(total - wanted, 0) + 1))
        margin = 0 if rate == sample_rate else rate // 50
        before = min(margin, start)
        file.seek(start - before)
        samples = file.read(before + wanted + margin, dtype="float32", always_2d=True).mean(axis=1)
    if not np.isfinite(samples).all():
        raise ManifestError(f"{record.path} holds NaN or infinity")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate)
    samples = samples[round(before * sample_rate / rate) :][:num_samples]
    return np.pad(samples, (0, num_samples - len(samples))).astype(np.float32)
