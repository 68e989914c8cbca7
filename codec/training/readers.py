"""The batches of a run, read ahead by worker processes, which end with it whatever happens."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import torch
from torch import Tensor

from codec.errors import one_line
from codec.training.config import TrainConfig
from codec.training.data import SegmentDataset


def batches(
    config: TrainConfig, dataset: SegmentDataset, first: int, rank: int, world: int
) -> Iterator[dict[str, Tensor]]:
    """This process's share of every batch from step ``first`` on."""
    share = config.data.batch_size // world
    steps = range(first, config.phases.steps)
    indices = (step * config.data.batch_size + rank * share + i for step in steps for i in range(share))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=share,
        sampler=list(indices),
        num_workers=config.data.workers,
        prefetch_factor=8 if config.data.workers else None,
        worker_init_fn=_leave_stopping_to_the_parent,
    )
    return iter(loader)


def _leave_stopping_to_the_parent(_worker: int) -> None:
    """Ignore SIGTERM and ctrl-C in a reading process: they often reach the whole group, and the step wants its batch.

    The parent ends its readers through their queue; readers whose parent was killed end by themselves within seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kill the reading processes that an error has left: at exit Python would wait for them after a mere SIGTERM."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the DataLoader would report them as lost
    for process in multiprocessing.active_children():
        process.kill()


def sentence(error: Exception) -> str:
    """The message on one line, without the traceback that the DataLoader puts before it where a reading process failed."""
    _, wrapped, traceback = str(error).partition("\nOriginal Traceback")
    return traceback.strip().splitlines()[-1].partition(": ")[2] if wrapped else one_line(error)
