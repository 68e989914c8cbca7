"""Starting a training run from an exported model, which may have another quantizer and fewer blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from codec.config import CodecConfig, ConfigError
from codec.model import Codec
from codec.training.discriminators import Discriminators


def take_codec(codec: Codec, given: Codec, name: str) -> bool:
    """Start ``codec`` from the weights of ``given``; returns whether they include the quantizer, which fits only if equal.

    Blocks that ``given`` lacks begin as the identity, so the deeper codec starts where the other one stands.

    Raises:
        ConfigError: they differ in more than that; the message calls the given one ``name``.
    """
    if not can_grow(given.config, codec.config):
        raise ConfigError(
            f"{name} has another architecture than the configuration's model; only the quantizer may differ, and there may "
            "be more blocks (encoder.depths, decoder.depth)"
        )
    _take_blocks(codec.encoder, given.encoder)
    _take_blocks(codec.decoder, given.decoder)
    quantizer_given = given.config.quantizer == codec.config.quantizer
    if quantizer_given:
        codec.quantizer.load_state_dict(given.quantizer.state_dict())
    return quantizer_given


def can_grow(given: CodecConfig, wanted: CodecConfig) -> bool:
    """Whether ``wanted`` is ``given`` but for its quantizer and for more blocks of the same width."""
    if len(given.encoder.strides) != len(wanted.encoder.strides):
        return False
    encoder = replace(given.encoder, depths=wanted.encoder.depths)
    decoder = replace(given.decoder, depth=wanted.decoder.depth)
    depths = [(c.decoder.depth, *c.encoder.depths) for c in (given, wanted)]
    same_but_for_them = replace(given, quantizer=wanted.quantizer, encoder=encoder, decoder=decoder) == wanted
    return same_but_for_them and all(before <= after for before, after in zip(*depths, strict=True))


def _take_blocks(module: nn.Module, given: nn.Module) -> None:
    missing, unexpected = module.load_state_dict(given.state_dict(), strict=False)
    assert not unexpected
    for name in missing:
        if name.endswith(".scale"):
            nn.init.zeros_(module.get_parameter(name))


def take_discriminators(judges: Discriminators, path: Path) -> None:
    """Start the discriminators from a file of their weights, if there is one.

    Raises:
        ConfigError: it holds others.
    """
    if not path.is_file():
        return
    try:
        judges.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ConfigError(f"{path} cannot be read: {error}; remove it to begin with new discriminators") from None
    except RuntimeError:
        raise ConfigError(
            f"{path} holds other discriminators than the configuration's; remove it to begin with new ones"
        ) from None
