"""A neural speech codec whose bottleneck is SimVQ. ``Codec.from_pretrained()`` is where to begin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec.audio import load as load
    from codec.audio import save as save
    from codec.config import CodecConfig as CodecConfig
    from codec.config import ConfigError as ConfigError
    from codec.container import ContainerError as ContainerError
    from codec.errors import CodecError as CodecError
    from codec.model import Codec as Codec
    from codec.pretrained import ModelError as ModelError

__version__ = "0.1.0"

_HOME = {
    "Codec": "codec.model",
    "CodecConfig": "codec.config",
    "CodecError": "codec.errors",
    "ConfigError": "codec.config",
    "ContainerError": "codec.container",
    "ModelError": "codec.pretrained",
    "load": "codec.audio",
    "save": "codec.audio",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    # names load their modules when first used: importing codec, and the commands' --help, wait for no torch
    if name in _HOME:
        try:
            if name in ("load", "save"):
                import_module("torch")  # their waveforms are tensors
            return getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            advice = "pip install torch; without it, codec.runtime.OnnxCodec runs models"
            raise ModuleNotFoundError(f"codec.{name} needs torch: {advice}", name="torch") from None
    raise AttributeError(f"module 'codec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
