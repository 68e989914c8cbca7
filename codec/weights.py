"""The file of a model's weights: safetensors, with 32, 16 or 8 bits per weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from codec.files import written_whole
from codec.pretrained import ModelError
from codec.quantizers.lookup import TABLE_TYPE

Bits = Literal[32, 16, 8]
STEP = ".step"  # beside a matrix of 8 bits: what one of its integers is worth, row by row
SHORTEST_ROW = 64  # matrices of shorter rows are not worth one step per row


def save_weights(state: Mapping[str, Tensor], path: Path, bits: Bits) -> None:
    """Write ``state``, whole or not at all; for ``bits`` see :meth:`codec.Codec.save_pretrained`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensors |= _stored(name, tensor.detach().cpu().contiguous(), bits)
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))


def load_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Copy every tensor of the file into ``state``; names and shapes must agree exactly.

    Raises:
        ModelError: they do not, or the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    steps = {name for name in tensors if name.endswith(STEP) and name.removesuffix(STEP) in tensors}
    missing, foreign = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys() - steps)
    if missing or foreign:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"not part of the model {', '.join(foreign)}"] if foreign else []
        raise ModelError(f"{path} does not fit its config.json: {'; '.join(parts)}")
    for name, tensor in state.items():
        stored, step = tensors[name], tensors.get(name + STEP)
        if stored.shape != tensor.shape:
            raise ModelError(f"{path}: {name} is {list(stored.shape)}, config.json says {list(tensor.shape)}")
        if (stored.dtype == torch.int8) != (step is not None):
            raise ModelError(f"{path}: {name} must have a {STEP} if it is int8, and only then")
        if step is not None and step.shape != (*stored.shape[:1], 1):
            raise ModelError(
                f"{path}: {name + STEP} is {list(step.shape)}, not one number per row of {list(stored.shape)}"
            )
        tensor.copy_(stored if step is None else stored.float() * step)


def _stored(name: str, tensor: Tensor, bits: Bits) -> dict[str, Tensor]:
    if bits == 32:
        return {name: tensor}
    if name.startswith("quantizer."):  # codes keep their meaning to the bit
        small = tensor.to(TABLE_TYPE) if name.endswith(".basis") else tensor
        return {name: small if torch.equal(small.to(tensor.dtype), tensor) else tensor}
    if bits == 8 and tensor.dim() == 2 and tensor.shape[1] >= SHORTEST_ROW:
        step = (tensor.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return {name: (tensor / step).round().to(torch.int8), name + STEP: step}
    return {name: tensor.half()}
