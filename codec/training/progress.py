"""What a run counts, when it must stop, and how fast it goes."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Counters:
    """What a run remembers beside its weights."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    skipped_files: int = 0
    best: str | None = None
    best_loss: float = math.inf

    def meta(self) -> dict[str, Any]:
        """For a checkpoint; infinity is no JSON."""
        return {k: v for k, v in vars(self).items() if v != math.inf}


@dataclass
class StopSignal:
    """Set by SIGTERM, ctrl-C and the end of the time given: finish the step, save, leave."""

    deadline: float = math.inf  # on the monotonic clock
    begun: bool = False  # however short the time, a leg makes one step, or legs would never get anywhere
    asked: bool = False
    signals: tuple[int, ...] = field(default=(signal.SIGTERM, signal.SIGINT))

    def listen(self) -> None:
        for number in self.signals:
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def anywhere(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop, so that all of them do."""
        asked = self.asked or (self.begun and time.monotonic() > self.deadline)
        if accelerator.num_processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)


@dataclass
class Clock:
    """How fast training goes, and how much of the time it waits for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    batches: int = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for each batch."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start
        self.batches += 1

    def lap(self, seconds_of_a_batch: float) -> dict[str, float]:
        """Speed since the last lap, over all processes."""
        now = time.perf_counter()
        elapsed = now - self.started
        values = {
            "speed/audio_seconds_per_second": self.batches * seconds_of_a_batch / elapsed,
            "speed/data_wait_share": self.waited / elapsed,
        }
        self.started, self.waited, self.batches = now, 0.0, 0
        return values
