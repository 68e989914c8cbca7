"""Which library runs a model: torch, or ONNX Runtime where torch is not wanted or not there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.base import CodecBase

BACKENDS = ("torch", "onnx")
DECODERS = (*BACKENDS, "onnx8")  # not for encoding, where 8 bits give other codes


def torch_is_here() -> bool:
    """Whether torch is installed; an uninstall may leave a mere folder of that name, which has no origin."""
    spec = find_spec("torch")
    return spec is not None and spec.origin is not None


def load_codec(model: str, backend: str | None, device: str = "cpu", num_threads: int | None = None) -> CodecBase[Any]:
    """A model run by the backend; by default torch if it is installed, else ONNX Runtime, with its own number of threads.

    Raises:
        ModelError: no such model, device or backend here.
        UsageError: a device that the backend does not have.
        ImportError, OSError: torch is missing though it was asked for, or cannot be used.
    """
    if backend == "torch" or (backend is None and torch_is_here()):
        from codec.model import Codec

        if num_threads is not None:
            import torch

            torch.set_num_threads(num_threads)
        return Codec.from_pretrained(model, device)
    if device != "cpu":
        raise UsageError(f"--device {device} needs torch; ONNX Runtime computes on the CPU")
    from codec.runtime import OnnxCodec

    return OnnxCodec.from_pretrained(model, 8 if backend == "onnx8" else 32, num_threads)
