"""Reading a model's weights, as numpy arrays: safetensors as ``codec/weights.py`` writes them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from codec.pretrained import BASE, CHECKSUM, FILES, STEP, ModelError, find_model, shipped_models

Floats = NDArray[np.float32]

_BYTE = np.arange(256, dtype=np.uint16)
# float8 e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433): the value of each byte; no infinities, and 0x7F is NaN
FLOAT8 = (_BYTE >> 7 << 15 | (_BYTE & 127) << 7).view(np.float16) * np.float32(2**8)  # read so, exponents are 8 too low
FLOAT8[_BYTE & 127 == 127] = np.nan
# the names of types in safetensors and numpy; the last two are converted to float32 below
FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2", "F8_E4M3": "u1"}


class Weights:
    """The tensors of a ``model.safetensors`` by name.

    A file may name a shipped model and leave out tensors that are equal there, as a second decoder for its codes does.

    Attributes:
        path: of the file.
        unread: names of tensors that were not read yet.

    Raises:
        ModelError: the file cannot be read, or is damaged; or it names a model that this version does not ship.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata, self._tensors = _read_file(path)
        base = metadata.get(BASE)
        if base is not None:
            if base not in shipped_models():
                raise ModelError(
                    f"{path} goes with the shipped model {base!r}, which this version of the package does not have"
                )
            _, others = _read_file(find_model(base) / FILES[1])
            self._tensors |= {n: t for n, t in others.items() if n.removesuffix(STEP) not in self._tensors}
        self.unread = set(self._tensors)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers in each tensor."""
        return {name: math.prod(t["shape"]) for name, t in self._tensors.items() if not name.endswith(STEP)}

    def read(self, name: str, *shape: int) -> Floats:
        """A tensor of this shape in float32."""
        stored, step = self.stored(name, *shape)
        return stored if step is None else stored * step

    def stored(self, name: str, *shape: int) -> tuple[NDArray[Any], Floats | None]:
        """A tensor in float32; or in int8, if it is stored so, with the step ``[rows, 1]``, the value of the integer 1.

        Raises:
            ModelError: there is no tensor of this name, shape and type, or it holds NaN.
        """
        tensor = self._raw(name, shape, FLOATS | {"I8": "i1"})
        step = self._raw(name + STEP, (*shape[:1], 1), FLOATS) if tensor.dtype == np.int8 else None
        if not np.isfinite(tensor if step is None else step).all():
            raise ModelError(f"{self.path}: {name} holds NaN or infinity")
        return tensor, step

    def integers(self, name: str, *shape: int) -> NDArray[np.int64]:
        """A tensor of this shape in int64; a ModelError if there is none."""
        return self._raw(name, shape, {"I64": "<i8"})

    def refuse_unread(self, but: str | tuple[str, ...] = ()) -> None:
        """Raise a ModelError if there are unread tensors, unless their names begin with ``but``."""
        names = sorted(name for name in self.unread.copy() if not name.startswith(but))
        if names:
            raise ModelError(f"{self.path} does not fit its config.json: not part of the model {', '.join(names)}")

    def _raw(self, name: str, shape: tuple[int, ...], types: dict[str, str]) -> NDArray[Any]:
        if name not in self._tensors:
            raise ModelError(f"{self.path} does not fit its config.json: missing {name}")
        self.unread.discard(name)
        tensor = self._tensors[name]
        kind = tensor["dtype"]
        if tuple(tensor["shape"]) != shape or kind not in types:
            asked = f"{list(shape)} of type {' or '.join(types)}"
            raise ModelError(f"{self.path}: {name} is {tensor['shape']} of type {kind}, config.json asks for {asked}")
        values = np.frombuffer(tensor["data"], types[kind]).reshape(shape)
        if kind == "F8_E4M3":
            return FLOAT8[values]
        if kind == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if kind in FLOATS else values


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The metadata of a safetensors file, and its tensors as its header describes them, each with its bytes as ``data``."""
    try:
        with safe_open(path, framework="numpy"):  # checks the header
            tensors, data, checksum = split_file(path.read_bytes())
    except (SafetensorError, OSError) as error:
        advice = "fetch it again, with git lfs if a pointer lies in its place"
        raise ModelError(f"{path} cannot be used: {error}; {advice}") from None
    metadata = tensors.pop("__metadata__", None) or {}
    if metadata.get(CHECKSUM, checksum) != checksum:
        raise ModelError(f"{path} is damaged: its checksum is wrong; fetch it again")
    for tensor in tensors.values():
        tensor["data"] = data[slice(*tensor["data_offsets"])]
    return metadata, tensors


def split_file(file: bytes) -> tuple[dict[str, Any], memoryview, str]:
    """The header of a safetensors file, all bytes after it (not copied), and their SHA-256."""
    start = 8 + int.from_bytes(file[:8], "little")
    data = memoryview(file)[start:]
    return json.loads(file[8:start]), data, hashlib.sha256(data).hexdigest()
