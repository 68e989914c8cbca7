"""What a training run shows of itself: scalars as JSON lines, and TensorBoard curves, audio, spectrograms and text."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.errors import one_line
from codec.files import atomic_write
from codec.spectral import mel_filterbank, stft

log = logging.getLogger(__name__)


class Tracker:
    """Writes ``metrics.jsonl`` (one line per point in time) and, unless ``logger="none"``, events for TensorBoard.

    Where the disk is full or the folder was removed, that is said once and nothing is raised.

    Args:
        folder: of the run.
        logger: "tensorboard" or "none".
        first_step: points of an earlier run after this step are dropped (after a resume).
    """

    def __init__(self, folder: Path, logger: str, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        kept = [point for point in read_scalars(self._metrics) if point["step"] <= first_step]
        with atomic_write(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(point) + "\n" for point in kept), encoding="utf-8")
        self._failed = False  # a line that failed may have broken off
        self.writer: Any = None  # TensorBoard's, where there is somebody to show pictures and speech to
        if logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = partial(_unless_tensorboards, threading.excepthook)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of each named curve."""
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
        """A waveform ``[T]`` to listen to, and its log-mel spectrogram to look at."""
        self._event("add_audio", f"audio/{name}", waveform[None], step, sample_rate)
        self._event("add_image", f"mel/{name}", mel_picture(waveform, sample_rate)[None], step)

    def text(self, name: str, text: str) -> None:
        """A block of text, shown as it is."""
        self._event("add_text", name, f"```\n{text}\n```")

    def close(self) -> None:
        """Write out what is buffered."""
        self._event("close")

    def _event(self, method: str, *args: Any) -> None:
        """Call TensorBoard's writer; where its disk is full or its folder gone, it is not called again."""
        try:
            if self.writer is not None:
                getattr(self.writer, method)(*args)
        except OSError as error:
            log.warning("nothing more goes to TensorBoard, training goes on: %s", error.strerror)
            self.writer = None


def _unless_tensorboards(hook: Callable[[Any], object], failure: Any) -> None:
    """Show what ended a thread, but not an OSError in TensorBoard's own: the next call to its writer raises it again."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
        hook(failure)


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The points of a ``metrics.jsonl``, which may not be there, or may break off where its writer was killed."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def mel_picture(waveform: Tensor, sample_rate: int) -> Tensor:
    """Log-mel spectrogram of ``[T]`` as grey values ``[80, N]``, 0 at 80 dB under a full-scale sine, the lowest band last."""
    magnitude = stft(waveform[None].float(), 1024, 256)[0].abs() / 256
    mel = magnitude @ mel_filterbank(sample_rate, 1024, 80).to(waveform.device)
    decibels = 20 * torch.log10(mel.clamp(min=1e-4))
    return (decibels / 80 + 1).clamp(0, 1).T.flip(0)
