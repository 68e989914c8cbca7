"""Checkpoints restore exactly, are whole or absent, and are pruned to the newest and the best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codec.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
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


def test_an_unfinished_checkpoint_is_not_taken(tmp_path: Path) -> None:
    layer, _ = trained(0)
    save_checkpoint(tmp_path, 1, {"codec": layer}, {}, {})
    (tmp_path / ".step_00000002.tmp").mkdir()
    (tmp_path / "step_00000003").mkdir()
    assert latest_checkpoint(tmp_path).name == "step_00000001"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        latest_checkpoint(tmp_path / "nowhere")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    layer, _ = trained(0)
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"codec": layer}, {}, {})
    prune_checkpoints(tmp_path, 2, "step_00000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000004", "step_00000005"]


def test_damage_and_other_architectures_are_named(tmp_path: Path) -> None:
    layer, _ = trained(0)
    path = save_checkpoint(tmp_path, 1, {"codec": layer}, {}, {})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(path, {"codec": torch.nn.Linear(4, 2)}, {})
    (path / "state-00.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, {"codec": layer}, {})


def test_large_states_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.training.checkpoint.PART_BYTES", 100)
    layer, optimizer = trained(0)
    path = save_checkpoint(tmp_path, 1, {"codec": layer}, {"optimizer": optimizer}, {})
    parts = sorted(path.glob("state-*.safetensors"))
    assert len(parts) > 1
    other, other_optimizer = trained(1)
    assert load_checkpoint(path, {"codec": other}, {"optimizer": other_optimizer}) == {"step": 1}
    assert torch.equal(other.weight, layer.weight)  # type: ignore[arg-type]
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, {"codec": other}, {})
