"""Reading a model's weights without torch: the format of ``codec/weights.py`` as numpy arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.pretrained import STEP, ModelError, check_data, refused, weight_files

Floats = NDArray[np.float32]

_BYTE = np.arange(256)
_EXPONENT, _MANTISSA = _BYTE >> 3 & 15, _BYTE & 7
# float8 e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433): the value of each byte; no infinities, and 0x7F is NaN
_SIZE = np.where(_EXPONENT == 0, _MANTISSA * 2.0**-9, (8 + _MANTISSA) * 2.0 ** (_EXPONENT - 10))
FLOAT8 = np.where(_BYTE & 127 == 127, np.nan, np.where(_BYTE > 127, -_SIZE, _SIZE)).astype(np.float32)
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # as safetensors calls types, and numpy


class Weights:
    """The tensors of a ``model.safetensors`` by name.

    Attributes:
        path: of the file.
        unread: names that were not asked for yet.

    Raises:
        ModelError: the file cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path, self._tensors = path, dict[str, Any]()
        try:
            for source in weight_files(path):
                data = source.read_bytes()
                check_data(source, data)  # safetensors opens the file there, and finds whatever is wrong in its header
                start = 8 + int.from_bytes(data[:8], "little")
                tensors = json.loads(data[8:start])
                tensors.pop("__metadata__", None)
                for tensor in tensors.values():
                    first, last = tensor["data_offsets"]
                    tensor["data"] = memoryview(data)[start + first : start + last]  # nothing is copied
                self._tensors |= {n: t for n, t in tensors.items() if n.removesuffix(STEP) not in self._tensors}
        except (SafetensorError, OSError) as error:
            raise refused(path, error) from None
        self.unread = set(self._tensors)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers in each tensor."""
        steps = {name + STEP for name in self._tensors}
        return {name: math.prod(tensor["shape"]) for name, tensor in self._tensors.items() if name not in steps}

    def read(self, name: str, *shape: int) -> Floats:
        """A tensor of this shape in float32."""
        stored, step = self.stored(name, *shape)
        return stored if step is None else stored * step

    def stored(self, name: str, *shape: int) -> tuple[NDArray[Any], Floats | None]:
        """A tensor in float32; or, if it is stored so, in int8 with the step ``[rows, 1]`` of its integers.

        Raises:
            ModelError: there is none of this name, shape and type, or it holds NaN.
        """
        tensor = self._raw(name, shape)
        step = self._raw(name + STEP, (*shape[:1], 1)) if tensor.dtype == np.int8 else None
        if not np.isfinite(tensor if step is None else step).all():
            raise ModelError(f"{self.path}: {name} holds NaN or infinity")
        return tensor, step

    def _raw(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        if name not in self._tensors:
            raise ModelError(f"{self.path} does not fit its config.json: missing {name}")
        self.unread.discard(name)
        tensor = self._tensors[name]
        kind, data = tensor["dtype"], tensor["data"]
        if tuple(tensor["shape"]) != shape:
            raise ModelError(f"{self.path}: {name} is {tensor['shape']}, config.json says {list(shape)}")
        if kind == "F8_E4M3":
            return FLOAT8[np.frombuffer(data, np.uint8)].reshape(shape)
        if kind == "BF16":  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if kind == "I8" and not name.endswith(STEP):
            return np.frombuffer(data, np.int8).reshape(shape)
        if kind not in FLOATS:
            raise ModelError(
                f"{self.path}: {name} must be of type {', '.join(FLOATS)}, BF16, F8_E4M3 or I8, not {kind}"
            )
        return np.frombuffer(data, FLOATS[kind]).reshape(shape).astype(np.float32)
