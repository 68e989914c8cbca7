"""The public names are a promise: this list changes only with the changelog."""

import inspect

import codec
from codec.base import CodecBase

NAMES = ["Codec", "CodecConfig", "CodecError", "ConfigError", "ContainerError", "ModelError", "load", "save"]
NAMES += ["__version__"]


def test_public_names() -> None:
    assert codec.__all__ == NAMES and dir(codec) == sorted(NAMES)
    assert all(getattr(codec, name) is not None for name in NAMES)


def test_everything_public_is_documented() -> None:
    members = inspect.getmembers(codec.Codec, lambda m: inspect.isfunction(m) or isinstance(m, property))
    own = [
        (name, m) for name, m in members if not name.startswith("_") and name in {*vars(codec.Codec), *vars(CodecBase)}
    ]
    assert len(own) > 10
    assert [name for name, member in own if not inspect.getdoc(member)] == []
