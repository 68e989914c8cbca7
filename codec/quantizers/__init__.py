"""Quantizers behind one contract (``base.py``); a new one is a file here and an entry in this table."""

from collections.abc import Callable
from functools import partial

from codec.config import ConfigError, QuantizerConfig
from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.ema import EMAVQ
from codec.quantizers.grid import FSQ, LFQ, LatticeVQ
from codec.quantizers.online import AffineVQ, ClusteredVQ, IndexVQ
from codec.quantizers.residual import ResidualQuantizer, ResidualSimVQ
from codec.quantizers.simvq import SimVQ
from codec.quantizers.vq import VQ, FactorisedVQ

QUANTIZERS: dict[str, Callable[[int, QuantizerConfig], Quantizer]] = {
    "simvq": SimVQ,
    "residual_simvq": ResidualSimVQ,
    "vq": VQ,
    "ema_vq": EMAVQ,
    "factorised_vq": FactorisedVQ,
    "clustered_vq": ClusteredVQ,
    "index_vq": IndexVQ,
    "affine_vq": AffineVQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "lattice_vq": LatticeVQ,
    "residual_vq": partial(ResidualQuantizer, stage=VQ),
    "residual_ema_vq": partial(ResidualQuantizer, stage=EMAVQ),
    "residual_factorised_vq": partial(ResidualQuantizer, stage=FactorisedVQ),
}

__all__ = [
    "QUANTIZERS",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "ResidualSimVQ",
    "SimVQ",
    "VQ",
    "build_quantizer",
]


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer that ``config.kind`` names, for latents of width ``dim``.

    Raises:
        ConfigError: no such kind, or a setting that the kind does not know.
    """
    if config.kind not in QUANTIZERS:
        raise ConfigError(f"quantizer.kind must be one of {', '.join(QUANTIZERS)}, not {config.kind!r}")
    _reject_unknown(config)
    return QUANTIZERS[config.kind](dim, config)


def _reject_unknown(config: QuantizerConfig) -> None:
    """No setting changed from its default may go unheeded; a single stage may also be said to be one."""
    unknown = [] if config.kind.endswith("simvq") else ["basis", "map", "map_bias"]
    if not config.kind.startswith("residual_") and config.num_quantizers != 1:
        unknown.append("num_quantizers")
    if config.kind in ("fsq", "lfq", "lattice_vq"):  # the number of codes gives their dimension; they round
        unknown += ["codebook_dim", "gradient"]
    defaults = QuantizerConfig()
    for name in unknown:
        value, default = getattr(config, name), getattr(defaults, name)
        if value != default:
            raise ConfigError(f"quantizer.{name} means nothing to {config.kind}: leave {value!r} out")
