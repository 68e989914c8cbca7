"""The random table that quantizers start from."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.config import QuantizerConfig

TABLE_TYPE = torch.float8_e4m3fn  # random numbers need few bits: stored so, a frozen table takes a quarter of the space


def random_table(config: QuantizerConfig) -> Tensor:
    """Codes ``[V, d]`` from N(0, 1/d), rounded to ``TABLE_TYPE``, in float32."""
    d = config.codebook_dim
    return (torch.randn(config.codebook_size, d) * d**-0.5).to(TABLE_TYPE).float()
