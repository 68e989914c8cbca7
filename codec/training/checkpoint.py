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

from codec.errors import CodecError
from codec.files import written_whole

CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
META = "state.json"
PART_BYTES = 15_000_000


class CheckpointError(CodecError):
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
    former = folder / f".{final.name}.old"  # out of the way first: a folder cannot take another one's place
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    temporary.rename(final)
    shutil.rmtree(former, ignore_errors=True)
    return final


def load_checkpoint(
    checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore modules and optimizers in place; return the counters.

    Raises:
        CheckpointError: damaged, of another architecture, or with the state of other optimizers.
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
    states = {name: _optimizer_state(tensors, name) for name in optimizers}
    strangers = {key.partition("/")[0] for key in tensors} - modules.keys() - optimizers.keys()
    if strangers or not all(_state_fits(states[name], optimizer) for name, optimizer in optimizers.items()):
        raise CheckpointError(
            f"{checkpoint} holds the state of other optimizers: within a run optimizer.muon_learning_rate stays above 0, or "
            "stays 0; to change that, export the run and start a new one from it with --init"
        )
    for name, module in modules.items():
        module.load_state_dict(module_tensors(tensors, name))
    for name, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states[name], "param_groups": groups})
    return meta


def _optimizer_state(tensors: Mapping[str, Tensor], name: str) -> dict[int, dict[str, Tensor]]:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in module_tensors(tensors, name).items():
        index, _, field = key.partition("/")
        states.setdefault(int(index), {})[field] = value
    return states


def _state_fits(states: Mapping[int, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer) -> bool:
    """Whether each moment has its parameter's shape; a parameter that has not been trained yet has none."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    return all(
        index < len(shapes) and all(moment.shape in (shapes[index], ()) for moment in state.values())
        for index, state in states.items()
    )


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
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error}") from None


def module_tensors(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state dict of one module of a checkpoint."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those of a run that were written to the end, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / META).is_file())


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = whole_checkpoints(folder)
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
