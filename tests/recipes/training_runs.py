"""Training runs of a few steps for the tests of the recipes: in this process, which is quick, or in one of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from loading import DEBUG, ROOT, recipe

from codec.training.checkpoint import module_tensors, read_checkpoint

RECIPES = ROOT / "recipes"
SHORT = ("phases.steps=8", "phases.autoencoder=2", "phases.ramp=2", "phases.adversarial=5", "data.segment_seconds=0.2")
SHORT += ("log.scalars_every=2", "log.valid_every=4", "log.checkpoint_every=4", "data.workers=0")
SHORT += ("optimizer.warmup_steps=1",)
QUANTIZED = ("phases.autoencoder=0", "phases.adversarial=-1")
TWO_STEPS = ("phases.steps=2", *QUANTIZED)
QUIET = ("--logger", "none")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")  # and a number


def arguments(corpus: Path, run: Path, *settings: str) -> list[str]:
    """Of train.py, for a short run on a corpus."""
    paths = [f"data.train=[{corpus}/train.jsonl]", f"data.valid=[{corpus}/dev.jsonl]"]
    return ["--config", str(DEBUG), "--out", str(run), "--cpu", "--set", *paths, *SHORT, *settings]


def train(corpus: Path, run: Path, *settings: str, flags: tuple[str, ...] = ()) -> int:
    """The exit code of a run in this process."""
    return recipe("train", *arguments(corpus, run, *settings), *QUIET, *flags)


def command(corpus: Path, run: Path, *settings: str, launcher: Sequence[str] = ()) -> list[str]:
    """The command line of a run in a process of its own, or in those that a launcher starts."""
    return [sys.executable, *launcher, str(RECIPES / "train.py"), *arguments(corpus, run, *settings)]


def start(args: list[str]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(args, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a run that ends by itself, and well, has written to stdout and stderr."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    return output, errors


def state(run: Path, step: int, group: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; of one group of them (a network or an optimizer), under their names in it."""
    tensors = read_checkpoint(run / "checkpoints" / f"step_{step:08d}")[0]
    return module_tensors(tensors, group) if group else tensors
