"""Checkpoints of a training run: safetensors and JSON, no pickle, written whole or not at all.

A checkpoint is a folder ``step_00001000`` with ``state-00.safetensors``, ``state-01.safetensors``, ... (weights, running
average, optimizer moments; parts of at most 15 MB, so that they pass through what takes small files only) and
``state.json`` (step, counters, number of parts). Random states are not in it: every random choice of a run is a function
of its seed and the step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from codec.files import written_whole

META = "state.json"
PART_BYTES = 15_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be found or read; the message says which."""


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    meta: Mapping[str, Any],
) -> Path:
    """Write ``folder/step_XXXXXXXX`` under a temporary name, then rename it."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parts = _parts({key: value.detach().cpu() for key, value in tensors.items()})
    for index, part in enumerate(parts):
        with written_whole(temporary / _part_name(index)) as path:
            path.write_bytes(save({key: value.clone().contiguous() for key, value in part.items()}))
    with written_whole(temporary / META) as path:
        path.write_text(json.dumps({"step": step, **meta, "parts": len(parts)}, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    return final


def load_checkpoint(
    checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore modules and optimizers in place; return the counters.

    Raises:
        CheckpointError: damaged, or of another architecture.
    """
    tensors, meta = read_checkpoint(checkpoint)
    wanted = {f"{name}/{key}": t.shape for name, module in modules.items() for key, t in module.state_dict().items()}
    found = {key: t.shape for key, t in tensors.items() if key.partition("/")[0] in modules}
    other = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if other:
        raise CheckpointError(
            f"{checkpoint} does not fit this configuration: {len(other)} tensors are missing, foreign or of another shape "
            f"({', '.join(other[:3])}{', ...' if len(other) > 3 else ''}); take the run's own model and discriminator "
            "settings, or another --out"
        )
    for name, module in modules.items():
        module.load_state_dict(_below(tensors, name))
    for name, optimizer in optimizers.items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, name).items():
            index, _, field = key.partition("/")
            states.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and the counters.

    Raises:
        CheckpointError: damaged or missing.
    """
    try:
        meta = json.loads((checkpoint / META).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for index in range(meta.pop("parts")):
            tensors |= load_file(checkpoint / _part_name(index))
        return tensors, meta
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error}") from None


def module_tensors(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state dict of one module of a checkpoint."""
    return _below(tensors, name)


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = sorted(path for path in folder.glob("step_*") if (path / META).is_file())
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}")
    return found[-1]


def prune_checkpoints(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the one named ``best``."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        if path.name != best:
            shutil.rmtree(path)


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in order, in groups of at most PART_BYTES; a larger tensor is a group of its own."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if parts[-1] and size + value.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    return parts


def _part_name(index: int) -> str:
    return f"state-{index:02d}.safetensors"


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
