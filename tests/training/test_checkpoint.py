"""Checkpoints restore exactly, are whole or absent, and are pruned to the newest and the best."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codec.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    start_from,
)


def trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(2):
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def test_round_trip_restores_weights_and_moments(tmp_path: Path) -> None:
    layer, optimizer = trained(0)
    save_checkpoint(tmp_path, 2, {"codec": layer}, {"optimizer": optimizer}, {"best": "x"})
    other, other_optimizer = trained(1)
    meta = load_checkpoint(latest_checkpoint(tmp_path), {"codec": other}, {"optimizer": other_optimizer})
    assert meta == {"step": 2, "best": "x"}
    assert torch.equal(other.weight, layer.weight)  # type: ignore[arg-type]
    a, b = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])


def test_checkpoints_are_whole_and_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    layer, _ = trained(0)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"codec": layer}, {}, {})
    killed = tmp_path / "step_00000007"
    killed.mkdir()
    assert latest_checkpoint(tmp_path).name == "step_00000005"
    prune_checkpoints(tmp_path, 2, "step_00000001")
    names = ["step_00000001", "step_00000004", "step_00000005"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != killed) == names
    assert save_checkpoint(tmp_path, 7, {"codec": layer}, {}, {}) == latest_checkpoint(tmp_path) == killed


def test_damage_and_other_architectures_are_named(tmp_path: Path) -> None:
    layer, _ = trained(0)
    path = save_checkpoint(tmp_path, 1, {"codec": layer}, {}, {})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(path, {"codec": torch.nn.Linear(4, 2)}, {})
    (path / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, {"codec": layer}, {})


def test_processes_that_see_different_checkpoints_say_so(tmp_path: Path) -> None:
    """As on machines without a common disk."""
    other: Any = SimpleNamespace(device="cpu", gather=lambda step: torch.cat([step, torch.tensor([-1])]))
    save_checkpoint(tmp_path / "checkpoints", 7, {"codec": trained(0)[0]}, {}, {})
    with pytest.raises(CheckpointError, match="that all machines share: the processes see checkpoints of step 7, none"):
        start_from(tmp_path, True, False, other)
