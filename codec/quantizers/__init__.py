"""Quantizers behind one contract (``base.py``); a new one is a class here and an entry in this table."""

from collections.abc import Callable
from functools import partial

from codec.config import ConfigError, QuantizerConfig
from codec.quantizers.base import Quantizer
from codec.quantizers.grid import FSQ, LFQ, LatticeVQ
from codec.quantizers.simvq import ResidualQuantizer, ResidualSimVQ, SimVQ
from codec.quantizers.vq import EMAVQ, VQ, AffineVQ, ClusteredVQ, FactorisedVQ, IndexVQ

__all__ = ["QUANTIZERS", "Quantizer", "ResidualQuantizer", "ResidualSimVQ", "SimVQ", "build_quantizer"]

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


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer that ``config.kind`` names, for latents of width ``dim``.

    Raises:
        ConfigError: no such kind, or a setting that the kind does not know.
    """
    if config.kind not in QUANTIZERS:
        raise ConfigError(f"quantizer.kind must be one of {', '.join(QUANTIZERS)}, not {config.kind!r}")
    unknown = [] if config.kind.endswith("simvq") else ["basis", "map", "map_bias"]
    if not config.kind.startswith("residual_") and config.num_quantizers != 1:  # one stage may be said to be one
        unknown.append("num_quantizers")
    if config.kind in ("fsq", "lfq", "lattice_vq"):  # the number of codes gives their dimension, and they round
        unknown += ["codebook_dim", "gradient"]
    for name in unknown:
        value, default = getattr(config, name), getattr(QuantizerConfig(), name)
        if value != default:  # it would go unheeded
            raise ConfigError(f"quantizer.{name} means nothing to {config.kind}: leave {value!r} out")
    return QUANTIZERS[config.kind](dim, config)
