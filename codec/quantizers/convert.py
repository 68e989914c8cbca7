"""SimVQ quantizers trained elsewhere: their tensors, as a SimVQ of this package that gives the same codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codec.errors import CodecError
from codec.quantizers.simvq import SimVQ

LAYOUTS = {  # the linear layer -> the frozen table before it
    "code_transform": "frozen_codebook",  # SimVQ of vector-quantize-pytorch
    "embedding_proj": "embedding.weight",  # SimVQ of the paper's repository, github.com/youngsheen/SimVQ
}


@torch.no_grad()
def convert(source: Mapping[str, Tensor] | tuple[Tensor, ...], **settings: Any) -> SimVQ:
    """A SimVQ in eval mode with the codebook ``table @ weight.T + bias``, to use or to train on.

    Args:
        source: the state dict of a SimVQ of one of ``LAYOUTS``, without what stands before these names; or the weights
            ``(table [V, d], weight [D, d])`` of an Embedding and a Linear, with its bias ``[D]`` as a third. Where d is not D
            the whole codebook ``[V, D]`` becomes the basis.
        settings: more of SimVQ, such as ``channel_first``.

    Raises:
        CodecError: another layout.
    """
    if isinstance(source, Mapping):
        layer = next((layer for layer, table in LAYOUTS.items() if {table, f"{layer}.weight"} <= source.keys()), None)
        if layer is None:
            raise CodecError(f"no known layout of SimVQ: {', '.join(source)}; give (table, weight, bias) instead")
        source = tuple(source[k] for k in (LAYOUTS[layer], f"{layer}.weight", f"{layer}.bias") if k in source)
    table, weight, bias = source if len(source) == 3 else (*source, source[1].new_zeros(len(source[1])))
    if table.shape[1] != len(weight):
        table, weight, bias = table @ weight.t() + bias, torch.eye(len(weight)), torch.zeros_like(bias)
    quantizer = SimVQ(len(weight), basis=table.float().cpu(), init=None, **settings).eval()
    quantizer.load_state_dict(quantizer.state_dict() | {"weight": weight.t(), "bias": bias})
    return quantizer
