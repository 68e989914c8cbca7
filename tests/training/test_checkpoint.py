"""Checkpoints are whole or absent, and are pruned to the newest and the best; recipes/test_train.py resumes from them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codec.training import checkpoint
from codec.training.checkpoint import CheckpointError, latest_checkpoint, save_checkpoint
from codec.training.config import TrainConfig

LAYER = torch.nn.Linear(3, 2)


def test_checkpoints_are_whole_and_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"codec": LAYER}, {}, {})
    killed, copied = tmp_path / "step_00000007", tmp_path / "step_00000002_copy"
    killed.mkdir()
    (tmp_path / "step_00000002").rename(copied)
    assert latest_checkpoint(tmp_path).name == "step_00000005"
    checkpoint.prune_checkpoints(tmp_path, 2, "step_00000001")
    names = ["step_00000001", copied.name, "step_00000004", "step_00000005"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != killed) == names
    assert save_checkpoint(tmp_path, 7, {"codec": LAYER}, {}, {}) == latest_checkpoint(tmp_path) == killed


def test_damage_and_other_architectures_are_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"codec": LAYER}, {}, {})
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load_checkpoint(path, {"codec": torch.nn.Linear(4, 2)}, {})
    damages = [("state.json", text) for text in ("[]", "{}", '{"step": "1"}')]
    for name, damage in (*damages, ("state.safetensors", "damaged")):
        (path / name).write_text(damage)
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.load_checkpoint(path, {"codec": LAYER}, {})


def test_processes_that_see_different_checkpoints_say_so(tmp_path: Path) -> None:
    """As on machines without a common disk."""
    other: Any = SimpleNamespace(device="cpu", num_processes=2)
    other.gather = lambda step: torch.cat([step, torch.tensor([-1])])
    save_checkpoint(tmp_path / "checkpoints", 7, {"codec": LAYER}, {}, {})
    with pytest.raises(CheckpointError, match="that all machines share: the processes see checkpoints of step 7, none"):
        checkpoint.start_from(tmp_path, True, False, TrainConfig(), other)
