"""Reading a model's weights without torch: the format of ``codec/weights.py`` as numpy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.pretrained import ModelError

STEP = ".step"  # beside an int8 matrix: what one of its integers is worth, row by row
Floats = NDArray[np.float32]

_BYTE = np.arange(256)
_EXPONENT, _MANTISSA = _BYTE >> 3 & 15, _BYTE & 7
# float8 e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433): the value of each byte; no infinities, and 0x7F is NaN
_SIZE = np.where(_EXPONENT == 0, _MANTISSA * 2.0**-9, (8 + _MANTISSA) * 2.0 ** (_EXPONENT - 10))
FLOAT8 = np.where(_BYTE & 127 == 127, np.nan, np.where(_BYTE > 127, -_SIZE, _SIZE)).astype(np.float32)


class Weights:
    """The tensors of a ``model.safetensors`` by name.

    Attributes:
        path: of the file.
        unread: names that were not asked for yet.

    Raises:
        ModelError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, deserialize

        self.path = path
        try:
            self._tensors = dict(deserialize(path.read_bytes()))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        self.unread = set(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str, *shape: int) -> Floats:
        """A tensor of this shape in float32."""
        stored, step = self.stored(name, *shape)
        return stored if step is None else stored * step

    def stored(self, name: str, *shape: int) -> tuple[NDArray[Any], Floats | None]:
        """A tensor in float32; or, if it is stored so, in int8 with the step ``[rows, 1]`` of its integers.

        Raises:
            ModelError: there is none of this name and shape.
        """
        tensor = self._raw(name)
        if tensor.shape != shape:
            raise ModelError(f"{self.path}: {name} is {list(tensor.shape)}, config.json says {list(shape)}")
        return tensor, self._raw(name + STEP) if tensor.dtype == np.int8 else None

    def _raw(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise ModelError(f"{self.path} does not fit its config.json: missing {name}")
        self.unread.discard(name)
        tensor = self._tensors[name]
        kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
        if kind == "F8_E4M3":
            return FLOAT8[np.frombuffer(data, np.uint8)].reshape(shape)
        if kind == "I8":
            return np.frombuffer(data, np.int8).reshape(shape)
        return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[kind]).reshape(shape).astype(np.float32)
