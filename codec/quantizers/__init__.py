"""Quantizers behind one contract (``base.py``); a new one is a class here and an entry in this table.

SimVQ, as all in this folder, needs only torch: ``from codec.quantizers import SimVQ``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from codec.quantizers.base import Quantizer, QuantizerOutput
from codec.quantizers.convert import convert
from codec.quantizers.grid import FSQ, LFQ, LatticeVQ
from codec.quantizers.simvq import ResidualQuantizer, ResidualSimVQ, SimVQ
from codec.quantizers.vq import EMAVQ, VQ, ClusteredVQ, FactorisedVQ, IndexVQ

if TYPE_CHECKING:
    from codec.config import QuantizerConfig

__all__ = [
    "QUANTIZERS", "Quantizer", "QuantizerOutput", "ResidualQuantizer", "ResidualSimVQ", "SimVQ", "build_quantizer", "convert",
]  # fmt: skip


QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "simvq": partial(SimVQ, init=None),
    "residual_simvq": partial(ResidualSimVQ, init=None),
    "vq": VQ,
    "ema_vq": EMAVQ,
    "factorised_vq": FactorisedVQ,
    "clustered_vq": ClusteredVQ,
    "index_vq": IndexVQ,
    # affine re-parameterisation, ``e_k = s * c_k + b`` with c, s and b learned (Huh et al., arXiv 2305.08842), without
    # the paper's larger learning rate for s and b
    "affine_vq": partial(SimVQ, basis="learnable", map="diagonal", init=None),
    "fsq": FSQ,
    "lfq": LFQ,
    "lattice_vq": LatticeVQ,
    "residual_vq": partial(ResidualQuantizer, VQ),
    "residual_ema_vq": partial(ResidualQuantizer, EMAVQ),
    "residual_factorised_vq": partial(ResidualQuantizer, FactorisedVQ),
}


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer that ``config.kind`` names, for latents of width ``dim``; start it with ``initialize``.

    Raises:
        ConfigError: no such kind, or a setting that the kind does not know.
        CodecError: a number of codes that the kind cannot have.
    """
    from codec.config import ConfigError  # here: a quantizer alone does not need it

    kind, settings = config.kind, {name: value for name, value in vars(config).items() if name != "kind"}
    if kind not in QUANTIZERS:
        raise ConfigError(f"quantizer.kind must be one of {', '.join(QUANTIZERS)}, not {kind!r}")
    unknown = [] if kind.endswith("simvq") else ["basis", "map", "map_bias"]
    if not kind.startswith("residual_"):
        unknown.append("num_quantizers")
    if kind in ("fsq", "lfq", "lattice_vq"):  # the number of codes gives their dimension, and they round
        unknown += ["codebook_dim", "gradient"]
    if kind == "index_vq":  # its gradient is that of soft choices
        unknown.append("gradient")
    for name in unknown:
        value, default = settings.pop(name), getattr(type(config)(), name)
        allowed = (default, 1) if name == "num_quantizers" else (default,)  # one stage may be given as 1
        if value not in allowed:
            raise ConfigError(f"quantizer.{name} means nothing to {kind}: leave {value!r} out, or set {allowed[-1]!r}")
    if settings.get("gradient") == "straight_through":
        settings["gradient"] = "ste"
    return QUANTIZERS[kind](dim, **settings)
