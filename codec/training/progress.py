"""Counters of a training run, its stop signal, and its speed."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from codec.errors import STOPPING, CodecError

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingError(CodecError):
    """Training cannot go on; the message says what to change."""


@dataclass
class Counters:
    """What a run remembers beside its weights; ``best`` names the checkpoint with the lowest validation loss so far."""

    step: int = 0
    segments: int = 0  # drawn so far, over all processes
    bad_steps: int = 0
    bad_in_a_row: int = 0
    skipped_files: int = 0
    best: str | None = None
    best_loss: float | None = None
    best_of: str = ""  # a hash of what best_loss was measured on: utterances and losses
    best_utterances: float = 0.0  # of them could be read
    speech: str = ""  # a description of the speech that is learned from
    start: str = ""  # a hash of the weights that the run began with
    seconds: float = 0.0  # of training, in all legs together

    def judge_step(self, finite: bool, most: int) -> None:
        """Count a step if any of its gradients was not ``finite``.

        Raises:
            TrainingError: it is the ``most``-th in a row.
        """
        self.bad_steps += not finite
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        if self.bad_in_a_row >= most:
            raise TrainingError(
                f"{self.bad_in_a_row} steps in a row had no finite gradient; resume from an earlier checkpoint with a "
                "lower optimizer.learning_rate or a longer optimizer.warmup_steps, and look at the segments named above"
            )


@dataclass
class StopSignal:
    """Whether to finish the step, save and end: after SIGTERM, ctrl-C, a closed terminal, or at the deadline."""

    deadline: float = math.inf  # on the monotonic clock
    begun: bool = False  # whether a step was made: each leg makes one at least, or short legs would never progress
    asked: bool = False

    def listen(self) -> None:
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
                signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def anywhere(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop, so that all of them do."""
        asked = self.asked or (self.begun and time.monotonic() > self.deadline)
        return any(of_every_process(int(asked), accelerator))


def of_every_process(number: float, accelerator: Accelerator) -> list[float]:
    """The numbers of all processes, in order, so that all of them decide alike."""
    if accelerator.num_processes == 1:
        return [number]
    return accelerator.gather(torch.tensor([number], device=accelerator.device)).tolist()


@dataclass
class Clock:
    """How fast training goes, and how much of the time it waits for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    batches: int = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the wait for a batch inside."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start
        self.batches += 1

    def lap(self, batch_seconds: float) -> dict[str, float]:
        """Speed since the last lap, over all processes; ``batch_seconds`` of speech make a batch."""
        now = time.perf_counter()
        elapsed = now - self.started
        speed, share = self.batches * batch_seconds / elapsed, self.waited / elapsed
        self.started, self.waited, self.batches = now, 0.0, 0
        return {"speed/audio_seconds_per_second": speed, "speed/data_wait_share": share}
