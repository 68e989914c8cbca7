"""SimVQ quantizers trained elsewhere, converted to a SimVQ of this package that gives the same codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.errors import CodecError
from codec.quantizers.simvq import ResidualQuantizer, SimVQ

STACK = "layers."  # before the number of a stage, in a ResidualSimVQ of vector-quantize-pytorch
LAYOUTS = (  # names of the frozen table, and of the linear layer behind it, whose bias may be missing
    ("frozen_codebook", "code_transform.weight", "code_transform.bias"),  # SimVQ of vector-quantize-pytorch
    ("embedding.weight", "embedding_proj.weight", "embedding_proj.bias"),  # of the paper, github.com/youngsheen/SimVQ
)


def convert(
    source: Mapping[str, Tensor] | tuple[Tensor, ...], channel_first: bool = True, **settings: Any
) -> SimVQ | ResidualQuantizer:
    """A SimVQ in eval mode on the codebook ``table @ weight.T + bias`` as its basis, or a stack of them; it can learn on.

    Args:
        source: the state dict of a SimVQ of one of ``LAYOUTS`` or of vector-quantize-pytorch's ResidualSimVQ, without a
            prefix of the names; or the weights ``(table [V, d], weight [D, d])`` of an Embedding and a Linear, and its bias
            ``[D]`` as a third if it has one.
        channel_first: where the latents have their channels; see Quantizer.
        settings: other arguments of SimVQ, such as ``gradient``.

    Raises:
        CodecError: another layout; of other shapes torch raises a RuntimeError.
    """
    if not isinstance(source, Mapping) or not any(name.startswith(STACK) for name in source):
        return _single(source, channel_first=channel_first, **settings)
    count = len({name.split(".")[1] for name in source if name.startswith(STACK)})
    parts = [{n.split(".", 2)[2]: t for n, t in source.items() if n.startswith(f"{STACK}{i}.")} for i in range(count)]
    stages = [_single(part, **settings) for part in parts]
    return ResidualQuantizer(lambda dim: stages.pop(0), stages[0].dim, count, channel_first).eval()


@torch.no_grad()
def _single(tensors: Mapping[str, Tensor] | tuple[Tensor, ...], **settings: Any) -> SimVQ:
    if isinstance(tensors, Mapping):
        names = next((names for names in LAYOUTS if {*names[:2]} <= tensors.keys()), None)
        if names is None:
            raise CodecError(f"no known layout of SimVQ: {', '.join(tensors)}; give (table, weight, bias) instead")
        tensors = tuple(tensors[name] for name in names if name in tensors)
    codebook = F.linear(*(tensor.float().cpu() for tensor in tensors))
    return SimVQ(codebook.shape[1], basis=codebook, init=None, **settings).eval()
