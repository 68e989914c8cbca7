"""Quantizers behind one contract (``base.py``); a new one is a file here and an entry in this table."""

from collections.abc import Callable

from codec.config import ConfigError, QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.residual import ResidualSimVQ
from codec.quantizers.simvq import SimVQ

QUANTIZERS: dict[str, Callable[[int, QuantizerConfig], Quantizer]] = {"simvq": SimVQ, "residual_simvq": ResidualSimVQ}

__all__ = ["QUANTIZERS", "Quantizer", "QuantizerOutput", "ResidualSimVQ", "SimVQ", "build_quantizer"]


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer that ``config.kind`` names, for latents of width ``dim``.

    Raises:
        ConfigError: no such kind.
    """
    if config.kind not in QUANTIZERS:
        raise ConfigError(f"quantizer.kind must be one of {', '.join(QUANTIZERS)}, not {config.kind!r}")
    return QUANTIZERS[config.kind](dim, config)
