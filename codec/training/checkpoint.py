"""Checkpoints of a training run: safetensors and JSON, no pickle.

A checkpoint is a folder ``step_00001000`` with ``state.safetensors`` (weights, running average, optimizer moments) and
``state.json`` (step and counters), which is written last: a folder without it is no checkpoint. It has no random states:
every random choice of a run is a function of its seed and the step.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from codec.config import ConfigError, from_dict, require, to_dict
from codec.errors import CodecError
from codec.files import atomic_write, read_json, write_json
from codec.training.config import TrainConfig
from codec.training.progress import Counters, of_every_process

if TYPE_CHECKING:
    from accelerate import Accelerator

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, Optimizer]
CHECKPOINTS = "checkpoints"  # the folder in that of a run
STATE, META = "state.safetensors", "state.json"


class CheckpointError(CodecError):
    """A checkpoint that cannot be found, read or continued; the message says which."""


def save_checkpoint(folder: Path, step: int, modules: Modules, optimizers: Optimizers, meta: Mapping[str, Any]) -> Path:
    """Write ``folder/step_XXXXXXXX``."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    checkpoint = folder / f"step_{step:08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)  # it exists without META if a run was killed here
    with atomic_write(checkpoint / STATE) as path:
        try:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
        except SafetensorError as error:  # also if the disk is full
            raise CheckpointError(f"{checkpoint} cannot be written: {error}") from None
    write_json(checkpoint / META, {"step": step, **meta})
    return checkpoint


def load_checkpoint(checkpoint: Path, modules: Modules, optimizers: Optimizers) -> Counters:
    """Restore modules and optimizers in place; return the counters.

    Raises:
        CheckpointError: damaged, of another architecture, or with the state of other optimizers.
    """
    tensors, counters = read_checkpoint(checkpoint)
    expected = {f"{name}/{key}": t.shape for name, module in modules.items() for key, t in module.state_dict().items()}
    stored = {key: t.shape for key, t in tensors.items() if key.partition("/")[0] in modules}
    if other := sorted({key for key, _ in expected.items() ^ stored.items()}):
        raise CheckpointError(
            f"{checkpoint} does not fit this configuration: {len(other)} tensors are missing, foreign or of another shape "
            f"({', '.join(other[:3])}{', ...' if len(other) > 3 else ''}); take the run's own model and discriminator "
            "settings, or another --out"
        )
    states = {name: _optimizer_state(tensors, name, optimizer) for name, optimizer in optimizers.items()}
    strangers = {key.partition("/")[0] for key in tensors} - modules.keys() - optimizers.keys()
    if strangers or None in states.values():
        raise CheckpointError(
            f"{checkpoint} holds the state of other optimizers: within a run train stays, and optimizer.muon_learning_rate "
            "stays above 0, or stays 0; to change that, export the run and start a new one from it with --init"
        )
    for name, module in modules.items():
        module.load_state_dict(module_tensors(tensors, name))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(optimizer.state_dict() | {"state": states[name]})
    return counters


def _optimizer_state(tensors: Mapping[str, Tensor], name: str, optimizer: Optimizer) -> dict[int, Any] | None:
    """The moments by the number of their parameter; None if they are not those of this optimizer."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, moment in module_tensors(tensors, name).items():
        index, _, field = key.partition("/")
        known = index.isdecimal() and int(index) < len(shapes)
        if not known or moment.shape != (() if field == "step" else shapes[int(index)]):
            return None
        state[int(index)][field] = moment
    alike = len({frozenset(fields) for fields in state.values()}) <= 1  # all have the same moments
    return state if alike else None


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], Counters]:
    """All tensors by name, and the counters.

    Raises:
        CheckpointError: damaged or missing.
    """
    if not checkpoint.is_dir():
        there = ", ".join(path.name for path in whole_checkpoints(checkpoint.parent))
        raise CheckpointError(f"there is no {checkpoint}; there are {there or 'none'}")
    try:
        tensors, meta = load_file(checkpoint / STATE), read_json(checkpoint / META)
        counters = from_dict(Counters, meta, "", True)
        require("step" in meta, f"{META} has no step")  # a run from 0 on would overwrite what it has
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error}; remove it to go on from an earlier one") from None
    return tensors, counters


def module_tensors(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state dict of one module of a checkpoint."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in the folder, oldest first; copies under other names do not count."""
    return sorted(path for path in folder.glob("step_" + 8 * "[0-9]") if (path / META).is_file())


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    if not (checkpoints := whole_checkpoints(folder)):
        raise CheckpointError(f"no checkpoint in {folder}")
    return checkpoints[-1]


def start_from(
    run: Path, resume: bool, legs: bool, config: TrainConfig, accelerator: Accelerator
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and how ``config`` differs from before; ``None, []`` if the run begins anew.

    Raises:
        ConfigError: as :func:`changes_since`.
        CheckpointError: there is none to ``resume``; there is one, but the run neither resumes nor consists of ``legs``;
            or the processes do not see the same one.
    """
    checkpoints = whole_checkpoints(run / CHECKPOINTS)
    step = int(checkpoints[-1].name.removeprefix("step_")) if checkpoints else -1
    if len(set(steps := of_every_process(step, accelerator))) > 1:
        where = ", ".join(str(step) if step >= 0 else "none" for step in steps)
        raise CheckpointError(
            f"--out {run} must lie on a disk that all machines share: the processes see checkpoints of step {where}"
        )
    if checkpoints and not (resume or legs):
        raise CheckpointError(f"{run} holds a run already; continue it with --resume or choose another --out")
    if not checkpoints and not resume:
        return None, []
    checkpoint = latest_checkpoint(run / CHECKPOINTS)
    return checkpoint, changes_since(run / "config.json", config, checkpoint)


def changes_since(path: Path, config: TrainConfig, checkpoint: Path) -> list[str]:
    """How ``config`` differs from the run's config.json; checkpoints cannot show all, such as a sample rate.

    Raises:
        ConfigError: look_aheads or a field of model or discriminator differs; phases.autoencoder differs, and by the old
            or the new value that phase was over at the ``checkpoint``; or the file is damaged.
    """
    changes, step = [], int(checkpoint.name.removeprefix("step_"))
    try:
        before = from_dict(TrainConfig, read_json(path)) if path.is_file() else config
    except CodecError as error:
        raise ConfigError(f"{path} is damaged: {error}; remove it, and --resume writes it anew") from None
    for name, old, new in differences("", to_dict(before), to_dict(config)):
        # otherwise a quantizer would be matched twice, or never
        fixed = name == "phases.autoencoder" and step > min(old, new)
        if fixed or name.startswith(("model.", "discriminator.", "look_aheads")):
            raise ConfigError(
                f"{path.parent} does not fit this configuration: {name} differs, {old} there and {new} here; take the run's "
                "own settings of it, and its --init, or another --out"
            )
        if not name.startswith(("log.", "data.workers")):
            changes.append(f"{name} is {new} instead of {old}")
    return changes


def differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each field, at any depth, that differs between two configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from differences(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def prune_checkpoints(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the one named ``best``."""
    for path in whole_checkpoints(folder)[:-keep]:
        if path.name != best:
            (path / META).unlink()  # first, so that an interrupted deletion leaves no checkpoint
            shutil.rmtree(path)
