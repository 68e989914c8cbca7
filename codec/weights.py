"""Writing a model's weights, as safetensors with 32, 16 or 8 bits per weight, and giving them to its modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codec.files import atomic_write
from codec.pretrained import BASE, CHECKSUM, STEP, ModelError, find_model, shipped_name
from codec.pretrained.weights import Weights, split_file
from codec.quantizers.base import TABLE_TYPE

Bits = Literal[32, 16, 8]
SHORTEST_ROW = 64  # matrices of shorter rows are not worth one step per row


def save_weights(state: Mapping[str, Tensor], path: Path, bits: Bits, base: str | None = None) -> None:
    """Write ``state``, whole or not at all; for ``bits`` and ``base`` see :meth:`codec.Codec.save_pretrained`."""
    metadata, there, tensors = {"format": "pt"}, dict[str, Tensor](), dict[str, Tensor]()
    if base is not None:
        if shipped_name(base) is None:
            raise ModelError(f"{base!r} is no shipped model, and no other is found where this is loaded")
        metadata[BASE] = find_model(base).name
        there = load_file(find_model(base) / "model.safetensors")
        if others := sorted({key.removesuffix(STEP) for key in there} - state.keys()):
            raise ModelError(f"{base} cannot be the base: this model has no {others[0]}, which would be loaded with it")
    for name, tensor in state.items():
        stored = _stored(name, tensor.detach().cpu().contiguous(), bits)
        if not all(key in there and torch.equal(part, there[key]) for key, part in stored.items()):
            tensors |= stored  # a matrix always with its step
    header, data, metadata[CHECKSUM] = split_file(save(tensors))
    header = {"__metadata__": metadata, **header}  # written here: safetensors writes it in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary:
        temporary.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Outline(TorchFunctionMode):
    """Modules built in this mode have names and shapes, but no values: even large ones cost no memory and no time.

    ``torch.device("meta")`` does the same, but loads torch's compiler for it, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.full, torch.eye):
            size = {torch.full: args[:1], torch.eye: 2 * args[:1]}.get(func, args)
            return torch.empty(*size, **(kwargs | {"device": "meta"}))
        target = kwargs.get("tensor", *args[:1])
        if func.__name__.strip("_") + "_" == func.__name__ and target.is_meta:  # in place, as initializers are
            return target
        return func(*args, **kwargs)


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model that was built in an :class:`Outline` the tensors of the file.

    Raises:
        ModelError: names, shapes or types do not fit, or the file is damaged, holds NaN, or cannot be read.
    """
    weights, loaded = Weights(path), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        read = weights.read if tensor.is_floating_point() else weights.integers
        loaded[name] = torch.tensor(read(name, *tensor.shape), device="cpu")
    weights.refuse_unread()
    model.load_state_dict(loaded, assign=True)


def _stored(name: str, tensor: Tensor, bits: Bits) -> dict[str, Tensor]:
    if bits == 32:
        return {name: tensor}
    if name.startswith("quantizer."):  # codes keep their meaning to the bit
        small = tensor.to(TABLE_TYPE) if name.endswith(".basis") else tensor
        return {name: small if torch.equal(small.to(tensor.dtype), tensor) else tensor}
    if bits == 8 and tensor.dim() == 2 and tensor.shape[1] >= SHORTEST_ROW:
        step = (tensor.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return {name: (tensor / step).round().to(torch.int8), name + STEP: step}
    return {name: half if (half := tensor.half()).isfinite().all() else tensor}
