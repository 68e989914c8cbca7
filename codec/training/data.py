"""Training data: random segments of the utterances of a manifest, read ahead by processes that end with the run."""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.audio import AudioReader, resample
from codec.corpus.manifest import ManifestError, Record, audio_source
from codec.errors import CodecError
from codec.training.config import DataConfig, TrainConfig
from codec.training.progress import STOPPING, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

FULL_SCALE = 32767  # of 16-bit samples
MOST_DRAWS = 100  # of one segment: where the manifest is mostly one bad file, its draws would never end
log = logging.getLogger(__name__)


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
        config: length, gain and choice of the segments.
        seed: of every random choice.
    """

    def __init__(self, records: Sequence[Record], sample_rate: int, config: DataConfig, seed: int) -> None:
        if not records:
            raise ManifestError("the manifest is empty")
        self.records, self.sample_rate, self.config, self.seed = list(records), sample_rate, config, seed
        self.num_samples = round(config.segment_seconds * sample_rate)
        self.ends = np.cumsum(draw_weights(records, config.max_speaker_hours))
        self.tried, self.bad = set[str](), set[str]()  # ids

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        skipped = 0
        while True:
            number, position, gain = self.draw(rng)
            record = self.records[number]
            self.tried.add(record.id)
            try:
                segment = read_segment(record, position, self.num_samples, self.sample_rate)
                break
            except (OSError, CodecError) as error:
                self.count_bad(record, error)
                skipped += 1
                if skipped >= MOST_DRAWS:
                    raise ManifestError(f"{skipped} draws in a row cannot be read; prepare the data again") from None
        segment *= min(gain, 1.0 / float(np.abs(segment).max(initial=1e-9)))
        return {
            "waveform": torch.from_numpy(segment[None]),
            "bandwidth": torch.tensor(min(record.bandwidth, self.sample_rate / 2), dtype=torch.float32),
            "index": torch.tensor(index),
            "skipped": torch.tensor(skipped),
        }

    def draw(self, rng: np.random.Generator) -> tuple[int, float, float]:
        """The number of a record, where in it a segment starts (0 to 1), and its gain as a factor."""
        number = min(int(np.searchsorted(self.ends, rng.random() * self.ends[-1])), len(self.records) - 1)
        return number, rng.random(), 10 ** (rng.uniform(*self.config.gain_db) / 20)

    def count_bad(self, record: Record, error: object) -> None:
        """Note a file that cannot be read.

        Raises:
            ManifestError: they are too many.
        """
        if record.id not in self.bad:
            log.warning("skipped %s: %s", record.path, error)
        self.bad.add(record.id)
        allowed = max(3.0, self.config.max_bad_fraction * len(self.tried))
        if len(self.bad) > allowed or len(self.bad) == len(self.records):
            raise ManifestError(
                f"{len(self.bad)} of {len(self.tried)} files tried cannot be read (the last: {record.path}); "
                "prepare the data again, or raise data.max_bad_fraction"
            )


def draw_weights(records: Sequence[Record], max_speaker_hours: float) -> list[float]:
    """How often each record is drawn, in seconds of speech; a record without a speaker is a speaker of its own."""
    most = 3600 * (max_speaker_hours or math.inf)
    spoken: dict[str, float] = defaultdict(float)
    for record in records:
        spoken[record.speaker or record.id] += record.duration
    return [record.duration * min(1.0, most / spoken[record.speaker or record.id]) for record in records]


def read_segment(record: Record, position: float, num_samples: int, sample_rate: int) -> NDArray[np.float32]:
    """``num_samples`` at ``sample_rate`` from a file, mixed down to mono and resampled; zeros after the end.

    ``position`` in [0, 1) chooses the start among all that keep the segment inside the file. A margin is read and cut off
    on both sides, so that the resampler never sees an edge inside the segment.
    """
    with AudioReader(audio_source(record), record.path) as reader:
        rate, total = reader.sample_rate, reader.claimed_samples or record.num_samples
        length = math.ceil(num_samples * rate / sample_rate)
        start = int(position * (max(total - length, 0) + 1))
        margin = 0 if rate == sample_rate else rate // 50
        before = min(margin, start)
        samples = reader.segment(start - before, min(before + length + margin, total - start + before))
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate)
    samples = samples[round(before * sample_rate / rate) :][:num_samples]
    return np.pad(samples, (0, num_samples - len(samples))).astype(np.float32)


# ---- all speech on the device ------------------------------------------------------------------------------------------


class _Utterances(torch.utils.data.Dataset[tuple[Tensor, str]]):
    """Whole utterances as 16-bit samples ``[T]``, and why one cannot be read."""

    def __init__(self, records: Sequence[Record], sample_rate: int) -> None:
        self.records, self.sample_rate = records, sample_rate

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        record = self.records[index]
        try:
            with AudioReader(audio_source(record), record.path) as reader:
                samples = resample(np.concatenate(list(reader.blocks())), reader.sample_rate, self.sample_rate)
        except (OSError, CodecError) as error:
            return torch.zeros(0, dtype=torch.int16), str(error)
        return torch.from_numpy((samples.clip(-1, 1) * FULL_SCALE).round().astype(np.int16)), ""

    def __len__(self) -> int:
        return len(self.records)


class ResidentSpeech:
    """All speech of a dataset, read once, in the memory of a device; segments are cut there, drawn as the dataset draws.

    Args:
        dataset: of the segments; its records that cannot be read are never drawn.
        device: where the samples lie, two bytes each.
    """

    def __init__(self, dataset: SegmentDataset, device: torch.device) -> None:
        self.dataset = dataset
        records, rate, config = dataset.records, dataset.sample_rate, dataset.config
        utterances = []
        dataset.tried |= {record.id for record in records}  # bad ones may stand together, and the first ones may be bad
        loader = _loader(_Utterances(records, rate), None, config.workers)
        for record, (samples, error) in zip(records, loader, strict=True):
            if error:
                dataset.count_bad(record, error)
            utterances.append(samples.clone())  # out of the shared memory of the reader
        self.lengths = np.array([len(samples) for samples in utterances])
        self.skipped = int((self.lengths == 0).sum())  # files, told with the first batch
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.samples = torch.cat(utterances).to(device)
        weights = draw_weights(records, config.max_speaker_hours)
        dataset.ends = np.cumsum(np.where(self.lengths > 0, weights, 0.0))

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The segments of these indices, like those of the dataset, as a batch; ``index`` and ``skipped`` on the CPU."""
        dataset, device, length = self.dataset, self.samples.device, self.dataset.num_samples
        draws = [dataset.draw(np.random.default_rng((dataset.seed, index))) for index in indices]
        numbers, positions, gains = (np.array(column) for column in zip(*draws, strict=True))
        lengths = self.lengths[numbers]
        first = self.starts[numbers] + (positions * (np.maximum(lengths - length, 0) + 1)).astype(np.int64)
        bandwidth = [min(dataset.records[number].bandwidth, dataset.sample_rate / 2) for number in numbers]
        offsets = torch.arange(length, device=device)
        places = torch.from_numpy(first).to(device)[:, None] + offsets
        inside = offsets < torch.from_numpy(lengths).to(device)[:, None]
        segments = self.samples[places.clamp(max=len(self.samples) - 1)] * inside / FULL_SCALE
        gain = torch.from_numpy(gains).float().to(device)[:, None]
        skipped, self.skipped = self.skipped, 0
        loudest = segments.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
        return {
            "waveform": (segments * torch.minimum(gain, 1 / loudest))[:, None],
            "bandwidth": torch.tensor(bandwidth, device=device),
            "index": torch.tensor(indices),
            "skipped": torch.tensor(skipped),
        }


# ---- batches read ahead -----------------------------------------------------------------------------------------------


def batches(
    config: TrainConfig, dataset: SegmentDataset, first: int, accelerator: Accelerator
) -> Iterator[dict[str, Tensor]]:
    """Yield this process's share of every batch from step ``first`` on.

    Raises:
        ManifestError: too many files cannot be read.
        TrainingError: the readers lack shared memory.
    """
    rank, share = accelerator.process_index, config.data.batch_size // accelerator.num_processes
    starts = (step * config.data.batch_size + rank * share for step in range(first, config.phases.steps))
    indices = (list(range(start, start + share)) for start in starts)
    try:
        if config.data.resident:
            speech = ResidentSpeech(dataset, accelerator.device)
            yield from map(speech.batch, indices)
        else:
            yield from _loader(dataset, indices, config.data.workers)
    except CodecError as error:
        # which the DataLoader puts first
        _, from_reader, traceback = str(error.args[0]).partition("\nOriginal Traceback")
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


def _loader(dataset: torch.utils.data.Dataset[Any], batches: Iterable[list[int]] | None, workers: int) -> Iterable[Any]:
    """Batches of these indices, or else every item by itself, read ahead by so many processes."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=None if batches is None else 1,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        worker_init_fn=_leave_stopping_to_the_parent,
    )


def _leave_stopping_to_the_parent(_worker: int) -> None:
    """Ignore in a reading process what stops a run: it often reaches the whole group, and the step needs its batch.

    The parent ends its readers through their queue; readers whose parent was killed end by themselves within seconds.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kill the reading processes that an error has left: at exit Python would wait for them after a mere SIGTERM."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the DataLoader would report them as lost
    for process in multiprocessing.active_children():
        process.kill()
