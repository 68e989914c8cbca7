"""Writing an ONNX file: the few messages of onnx.proto that a graph needs, as protocol buffers.

A file is one ``ModelProto``. Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. The package
``onnx`` could write the same, at the price of another dependency and of its time to import; it checks this in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 20  # the first with Gelu
LARGE = 2**12  # bytes of a constant; ONNX Runtime needs the values of smaller ones in the graph
IR_VERSION = 9  # of the file format; it belongs to opset 20
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}  # TensorProto.DataType

Array = NDArray[Any]
Attribute = int | float | Sequence[int]
Shape = Sequence[int | str]  # a name is a length that is free


class Graph:
    """A graph under construction; values have names.

    Attributes:
        nodes: serialized ``NodeProto``, in the order of computation.
        initializers: the constants by name.
    """

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.initializers: dict[str, Array] = {}

    def constant(self, value: Array | Sequence[int] | int, name: str = "") -> str:
        """Add a constant (whole numbers become int64) and return its name."""
        name = name or f"constant_{len(self.initializers)}"
        self.initializers[name] = np.asarray(value)
        return name

    def __call__(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Attribute) -> str:
        """Add an operator and return the name of its first output; further ones are ``name.1`` and so on."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        parts = [_bytes(1, value.encode()) for value in inputs] + [_bytes(2, value.encode()) for value in names]
        parts += [_bytes(3, name.encode()), _bytes(4, op.encode())]
        parts += [_bytes(5, _attribute(key, value)) for key, value in attributes.items()]
        self.nodes.append(b"".join(parts))
        return name

    @property
    def large(self) -> dict[str, Array]:
        """The constants that ``serialize`` may leave out."""
        return {name: np.ascontiguousarray(a) for name, a in self.initializers.items() if a.nbytes >= LARGE}

    def serialize(
        self, inputs: dict[str, tuple[str, Shape]], outputs: dict[str, tuple[str, Shape]], whole: bool = True
    ) -> bytes:
        """The file; inputs and outputs by name, each an element type and a shape. If not ``whole``, it lacks ``large``."""
        graph = [_bytes(1, node) for node in self.nodes] + [_bytes(2, b"codec")]
        for name, value in self.initializers.items():
            graph += _initializer(name, value, whole or value.nbytes < LARGE)
        graph += [_bytes(11, _value(name, *what)) for name, what in inputs.items()]
        graph += [_bytes(12, _value(name, *what)) for name, what in outputs.items()]
        head = _number(1, IR_VERSION) + _bytes(2, b"codec") + _bytes(8, _bytes(1, b"") + _number(2, OPSET))
        return b"".join([head, _varint(7 << 3 | 2), _varint(sum(map(len, graph))), *graph])


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are written in two's complement
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _attribute(name: str, value: Attribute) -> bytes:
    start = _bytes(1, name.encode())
    if isinstance(value, float):
        return start + _varint(2 << 3 | 5) + np.float32(value).tobytes() + _number(20, 1)
    if isinstance(value, int):
        return start + _number(3, value) + _number(20, 2)
    return start + b"".join(_number(8, item) for item in value) + _number(20, 7)


def _initializer(name: str, value: Array, whole: bool) -> list[bytes]:
    """The graph's field of a constant: in two parts, so that its data are copied once, or without the data."""
    head = b"".join(_number(1, size) for size in value.shape) + _number(2, ELEMENT_TYPES[value.dtype.name])
    head += _bytes(8, name.encode())
    if not whole:  # external data, which must have a location
        return [_bytes(5, head + _bytes(13, _bytes(1, b"location") + _bytes(2, b"memory")) + _number(14, 1))]
    head += _varint(9 << 3 | 2) + _varint(value.nbytes)
    return [_varint(5 << 3 | 2) + _varint(len(head) + value.nbytes) + head, value.tobytes()]


def _value(name: str, element_type: str, shape: Shape) -> bytes:
    sizes = [_bytes(2, size.encode()) if isinstance(size, str) else _number(1, size) for size in shape]
    tensor = _number(1, ELEMENT_TYPES[element_type]) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))
