"""Measurements of a running training: scalars as JSON lines, and in TensorBoard also audio and pictures."""

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codec.audio import AudioReader, resample
from codec.corpus.manifest import ManifestError, Record, audio_source
from codec.errors import CodecError, one_line
from codec.files import write_text
from codec.health import CodebookCounter
from codec.level import check_peak
from codec.model import Codec
from codec.spectral import mel_decibels
from codec.training.losses import SpectralLoss

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST = 60  # seconds of an utterance: the memory of a forward pass grows with them
log = logging.getLogger(__name__)


class Tracker:
    """Writes ``metrics.jsonl`` (one line per point in time) and, unless ``logger="none"``, events for TensorBoard.

    If the disk is full or the folder was removed, it warns once and raises nothing. While it is open, another for the same
    folder is refused as a CodecError, except on Windows and file systems without locks.

    Args:
        folder: of the run.
        logger: "tensorboard" or "none".
        first_step: points of an earlier run after this step are dropped (after a resume).
    """

    def __init__(self, folder: Path, logger: str, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._unlock = weakref.finalize(self, os.close, _lock_folder(folder))
        if hasattr(os, "register_at_fork"):  # readers live a moment longer than a killed run: they hold no lock
            os.register_at_fork(after_in_child=self._unlock)
        self._metrics = folder / "metrics.jsonl"
        kept = [point for point in read_scalars(self._metrics) if point["step"] <= first_step]
        write_text(self._metrics, "".join(json.dumps(point) + "\n" for point in kept))
        self._failed = False  # whether a line could not be written, or only a part of it
        self.writer: Any = None  # TensorBoard's; without it pictures and speech need not be made
        if logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = partial(_unless_tensorboards, threading.excepthook)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record one point of each named curve."""
        try:
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write("\n" * self._failed + json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            if not self._failed:
                log.warning("points are missing from now on, training goes on: %s", one_line(error))
            self._failed = True
        for name, value in values.items():
            self._event("add_scalar", name, value, step)

    def speech(self, name: str, waveform: Tensor, sample_rate: int, step: int) -> None:
        """Show a waveform ``[T]`` as sound and as a log-mel spectrogram."""
        self._event("add_audio", f"audio/{name}", waveform[None], step, sample_rate)
        picture = mel_decibels(waveform, sample_rate, 480, 160)
        loudest = picture.max().clamp(min=0)  # silence is dark
        self._event("add_image", f"mel/{name}", ((picture - loudest) / 80 + 1).clamp(0, 1)[None], step)

    def text(self, name: str, text: str) -> None:
        """Show a block of text as it is."""
        self._event("add_text", name, f"```\n{text}\n```")

    def close(self) -> None:
        """Write out what is buffered."""
        self._event("close")
        self._unlock()

    def _event(self, method: str, *args: Any) -> None:
        """Call a method of TensorBoard's writer; after an error (disk full, folder gone) it is not called again."""
        try:
            if self.writer is not None:
                getattr(self.writer, method)(*args)
        except OSError as error:
            log.warning("nothing more goes to TensorBoard, training goes on: %s", error.strerror)
            self.writer = None


def _lock_folder(folder: Path) -> int:
    """The descriptor of a file in the folder, locked until it is closed or its process ends."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CodecError(f"another run trains in {folder}; choose another --out, or end it") from None
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return lock


def _unless_tensorboards(hook: Callable[[Any], object], failure: Any) -> None:
    """Report what ended a thread, but not an OSError of TensorBoard's threads: the next call to its writer raises it."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
        hook(failure)


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The points of a ``metrics.jsonl``, which may be missing, or end in half a line if its writer was killed."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]
    except ValueError as error:
        raise CodecError(f"{path} is damaged: {error}; remove it, or the lines that are not JSON") from None


def readable(records: Iterable[Record], codec: Codec) -> Iterator[tuple[Record, Tensor]]:
    """Each record with its speech ``[1, 1, T]`` on the codec's device: the first ``LONGEST`` seconds at most.

    Records that cannot be read are skipped, as in training.
    """
    for record in records:
        try:
            with AudioReader(audio_source(record), record.path) as reader:
                length = min(reader.claimed_samples or record.num_samples, LONGEST * reader.sample_rate)
                samples = resample(reader.segment(0, length), reader.sample_rate, codec.sample_rate)
            check_peak(samples)
        except (OSError, CodecError) as error:
            log.warning("skipped %s: %s", record.path, error)
        else:
            yield record, torch.from_numpy(samples).to(codec.device)[None, None]


def check_readable(records: list[Record], codec: Codec) -> None:
    """Raise a ManifestError if none of the validation's utterances can be read, and tell of long ones."""
    if any(record.duration > LONGEST for record in records):
        log.warning("validation takes the first %d s of longer utterances", LONGEST)
    if next(readable(records, codec), None) is None:
        raise ManifestError(f"data.valid: none of {len(records)} files can be read; prepare the data again")


@torch.no_grad()
def validate(
    codec: Codec, records: list[Record], spectral: SpectralLoss, quantize: bool, accelerator: Accelerator
) -> dict[str, float]:
    """Mean losses and codebook health over all utterances; every process takes its share, each utterance counts once."""
    counter = CodebookCounter(codec.num_quantizers, codec.codebook_size)
    sums = torch.zeros(len(spectral.terms) + 1, dtype=torch.float64)  # of each term, and the number of utterances
    for record, waveform in readable(records[accelerator.process_index :: accelerator.num_processes], codec):
        output = codec(waveform, quantize=quantize)
        bandwidth = torch.tensor([min(record.bandwidth, codec.sample_rate / 2)], device=codec.device)
        terms = spectral(output.waveform, waveform, bandwidth)
        sums += torch.tensor([*map(float, terms.values()), 1.0], dtype=torch.float64)
        if output.codes is not None:
            counter.add(output.codes)
    *totals, count = accelerator.reduce(sums.float().to(accelerator.device), "sum").cpu()
    values = {f"valid/{name}": float(total / count) for name, total in zip(spectral.terms, totals, strict=True)}
    values["valid/utterances"] = float(count)
    if quantize:
        values |= codebook_scalars(counter, accelerator, "valid_codebook")
    return values


def codebook_scalars(counter: CodebookCounter, accelerator: Accelerator, prefix: str) -> dict[str, float]:
    """Usage and perplexity of each quantizer over the frames counted by all processes."""
    counter.counts = accelerator.reduce(counter.counts.to(accelerator.device), "sum").cpu()
    values: dict[str, float] = {}
    for index, stage in enumerate(counter.stages(), start=1):
        values |= {f"{prefix}/usage_{index}": stage.usage, f"{prefix}/perplexity_{index}": stage.perplexity}
        values[f"{prefix}/frames"] = float(stage.frames)
    return values


@torch.no_grad()
def show_examples(
    codec: Codec, records: list[Record], tracker: Tracker, quantize: bool, step: int, first: bool
) -> None:
    """Show fixed utterances: the reference once, the reconstruction each time."""
    for index, (_, waveform) in enumerate(readable(records, codec)):
        if first:
            tracker.speech(f"{index}_reference", waveform[0, 0].cpu(), codec.sample_rate, 0)
        decoded = codec(waveform, quantize=quantize).waveform[0, 0].clamp(-1, 1)
        tracker.speech(f"{index}_decoded", decoded.cpu(), codec.sample_rate, step)
