"""Training data: random segments of the utterances of a manifest, read ahead by processes that end with the run."""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from codec.audio import AudioReader, resample
from codec.corpus.manifest import ManifestError, Record, audio_source, evenly, read_manifest
from codec.corpus.scan import read_record
from codec.errors import STOPPING, CodecError
from codec.level import check_peak, factor, gain_of
from codec.training.config import DataConfig
from codec.training.progress import TrainingError
from codec.workers import in_threads

if TYPE_CHECKING:
    from accelerate import Accelerator

FULL_SCALE = 32767  # of 16-bit samples
MOST_DRAWS = 100  # of one segment: if most of the manifest is one bad file, draws would hardly end
log = logging.getLogger(__name__)


class SegmentDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random segments of speech at one sample rate; segment ``index`` is a function of the seed and the index alone.

    So any process can go on at any position of the endless stream without having read what came before. Utterances are drawn
    with a chance proportional to their duration: every second of speech is equally likely, except for speakers over
    ``max_speaker_hours``, as a few of them should not make up most of the speech.

    Items: ``waveform [1, T]`` float32, ``bandwidth []`` in Hz, ``index []``, ``skipped []``. A file that cannot be read
    is skipped (the next draw of the same index takes its place), counted in ``skipped`` and reported once by name.

    Args:
        records: the utterances.
        sample_rate: of the segments, in Hz; files of other rates are resampled.
        config: length, gain and choice of the segments.
        seed: of every random choice.
    """

    def __init__(self, records: Sequence[Record], sample_rate: int, config: DataConfig, seed: int) -> None:
        if not records:
            raise ManifestError(
                "there is no utterance to draw from: the manifests of data.train are empty, or none is given"
            )
        self.records, self.sample_rate, self.config, self.seed = list(records), sample_rate, config, seed
        self.num_samples = round(config.segment_seconds * sample_rate)
        self.ends = np.cumsum(draw_weights(records, config.max_speaker_hours))
        self.tried, self.bad, self.skipped = set[str](), set[str](), 0  # ids; bad draws since the last item

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(MOST_DRAWS):
            number = min(int(np.searchsorted(self.ends, rng.random() * self.ends[-1])), len(self.records) - 1)
            position, gain, record = rng.random(), 10 ** (rng.uniform(*self.config.gain_db) / 20), self.records[number]
            self.tried.add(record.id)
            try:
                segment = self.cut(number, position)
                if self.config.normalize:
                    gain *= factor(-gain_of([segment.cpu().numpy()], self.sample_rate))
                break
            except (OSError, CodecError) as error:
                self.count_bad(record, error)
        else:
            raise ManifestError(f"{MOST_DRAWS} draws in a row cannot be read; prepare the data again")
        skipped, self.skipped = self.skipped, 0
        scale = (1 / segment.abs().max().clamp(min=1e-9)).clamp(max=gain)
        return {
            "waveform": (scale * segment)[None],
            "bandwidth": torch.tensor(min(record.bandwidth, self.sample_rate / 2), dtype=torch.float32),
            "index": torch.tensor(index),
            "skipped": torch.tensor(skipped),
        }

    def cut(self, number: int, position: float) -> Tensor:
        """A segment ``[T]`` of the record of this number, mixed down to mono and resampled; zeros after the end.

        ``position`` in [0, 1) chooses the start, of all with which the segment is inside the file. A margin is read and cut
        off on both sides, so that the resampler never sees an edge inside the segment.
        """
        record = self.records[number]
        with AudioReader(audio_source(record), record.path) as reader:
            rate, total = reader.sample_rate, reader.claimed_samples or record.num_samples
            length = math.ceil(self.num_samples * rate / self.sample_rate)
            start = int(position * (max(total - length, 0) + 1))
            margin = 0 if rate == self.sample_rate else rate // 50
            before = min(margin, start)
            samples = reader.segment(start - before, min(before + length + margin, total - start + before))
        check_peak(samples)
        samples = resample(samples, rate, self.sample_rate)
        samples = samples[round(before * self.sample_rate / rate) :][: self.num_samples]
        return torch.from_numpy(np.pad(samples, (0, self.num_samples - len(samples))))

    def count_bad(self, record: Record, error: object) -> None:
        """Note a file that cannot be read.

        Raises:
            ManifestError: there are too many of them.
        """
        if record.id not in self.bad:
            log.warning("skipped %s: %s", record.path, error)
        self.bad.add(record.id)
        self.skipped += 1
        allowed = max(3.0, self.config.max_bad_fraction * len(self.tried))
        if len(self.bad) > allowed or len(self.bad) == len(self.records):
            raise ManifestError(
                f"{len(self.bad)} of {len(self.tried)} files tried cannot be read (the last: {record.path}); "
                "prepare the data again, or raise data.max_bad_fraction"
            )


def read_manifests(config: DataConfig) -> tuple[list[Record], list[Record]]:
    """The utterances to train on and to validate with; a ManifestError if there are none of these."""
    train, valid = ([r for path in paths for r in read_manifest(path)] for paths in (config.train, config.valid))
    if not valid:
        raise ManifestError(
            f"data.valid: no utterance in {', '.join(config.valid) or 'an empty list; give a manifest'}"
        )
    valid = evenly(valid, config.valid_limit or None)
    trained = Counter((record.path, record.offset) for record in train)
    if twice := sum(count > 1 for count in trained.values()):
        log.warning("data.train: %d utterances stand in it more than once", twice)
    if shared := sum((record.path, record.offset) in trained for record in valid):
        log.warning("data.valid: %d of %d utterances are trained on, too", shared, len(valid))
    return train, valid


def draw_weights(records: Sequence[Record], max_speaker_hours: float) -> list[float]:
    """How often each record is drawn, in seconds of speech; a record without a speaker is a speaker of its own."""
    most = 3600 * (max_speaker_hours or math.inf)
    speakers = [record.speaker or (record.path, record.offset) for record in records]  # ids of two corpora may be alike
    spoken: dict[object, float] = defaultdict(float)
    for speaker, record in zip(speakers, records, strict=True):
        spoken[speaker] += record.duration
    return [record.duration * min(1.0, most / spoken[each]) for each, record in zip(speakers, records, strict=True)]


class ResidentDataset(SegmentDataset):
    """The segments of another dataset, rounded to 16 bits, cut from speech that is read once into a device's memory.

    Args:
        dataset: of the segments; records that cannot be read are never drawn.
        device: whose memory holds the samples, two bytes each.
    """

    def __init__(self, dataset: SegmentDataset, device: torch.device) -> None:
        super().__init__(dataset.records, dataset.sample_rate, dataset.config, dataset.seed)
        self.tried |= {each.id for each in self.records}  # as if all were tried: the first ones may be the bad ones
        threads = max(self.config.workers, 1)  # decoding and resampling release Python's lock
        self.utterances = [samples.to(device) for samples in in_threads(self._read_pcm, self.records, threads)]
        readable = [len(samples) > 0 for samples in self.utterances]
        self.ends, self.skipped = np.cumsum(np.diff(self.ends, prepend=0.0) * readable), readable.count(False)

    def _read_pcm(self, record: Record) -> Tensor:
        """An utterance as 16-bit samples ``[T]``, made softer if it exceeds full scale; empty if it cannot be read."""
        try:
            samples = resample(*read_record(record), self.sample_rate)
            samples /= max(check_peak(samples), 1.0)
        except (OSError, CodecError) as error:
            self.count_bad(record, error)
            samples = np.zeros(0, np.float32)
        return torch.from_numpy((samples * FULL_SCALE).round().astype(np.int16))

    def cut(self, number: int, position: float) -> Tensor:
        samples = self.utterances[number]
        start = int(position * (max(len(samples) - self.num_samples, 0) + 1))
        segment = samples[start : start + self.num_samples].float() / FULL_SCALE
        return torch.nn.functional.pad(segment, (0, self.num_samples - len(segment)))


def batches(dataset: SegmentDataset, first: int, steps: int, accelerator: Accelerator) -> Iterator[dict[str, Tensor]]:
    """Yield this process's share of the batch of each of so many steps; ``first`` is the index of the first segment.

    Raises:
        ManifestError: too many files cannot be read.
        TrainingError: the readers lack shared memory.
    """
    config, rank = dataset.config, accelerator.process_index
    share = config.batch_size // accelerator.num_processes
    starts = (first + step * config.batch_size + rank * share for step in range(steps))
    indices = (list(range(start, start + share)) for start in starts)
    workers = 0 if config.resident else config.workers
    try:
        yield from torch.utils.data.DataLoader(
            ResidentDataset(dataset, accelerator.device) if config.resident else dataset,
            batch_sampler=indices,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            worker_init_fn=_leave_stopping_to_the_parent,
        )
    except CodecError as error:
        _, from_reader, traceback = str(error.args[0]).partition("\nOriginal Traceback")  # the DataLoader's
        if not from_reader:
            raise
        raise type(error)(traceback.strip().splitlines()[-1].partition(": ")[2]) from None
    except RuntimeError as error:
        if "shared memory" not in str(error) and "No space left" not in str(error):
            raise
        raise TrainingError(
            "/dev/shm is too small for the batches read ahead: give a container more of it (docker run --shm-size 1g, or "
            "--ipc=host), or set data.workers=0"
        ) from None


def _leave_stopping_to_the_parent(_worker: int) -> None:
    """Ignore in a reader the signals that stop a run: they often reach the whole group, and the step needs its batch.

    The parent ends its readers through their queue; readers whose parent was killed end by themselves within seconds.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kill the readers that an error has left: at exit Python only sends SIGTERM, which they ignore, and waits."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the DataLoader would report them as lost
    for process in multiprocessing.active_children():
        process.kill()
