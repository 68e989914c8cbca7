"""The optimizers of a training run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from codec.config import ConfigError
from codec.model import Codec
from codec.training.config import OptimizerConfig

MUON_ITERATIONS = 3  # of Newton and Schulz, where 5 are usual: on a CPU they are a good part of a step
ENDS = {"encoder.stages.0.0.linear.weight", "decoder.head.output.weight"}  # at the waveform


def codec_optimizers(codec: Codec, settings: OptimizerConfig) -> dict[str, Optimizer]:
    """AdamW under "optimizer"; with a Muon learning rate "matrix_optimizer" beside it, for the matrices between layers.

    Raises:
        ConfigError: this torch has no Muon.
    """
    trained = {name: p for name, p in codec.named_parameters() if p.requires_grad}
    if not settings.muon_learning_rate:
        return {"optimizer": adamw(trained.values(), settings)}
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer.muon_learning_rate needs torch >= 2.9, not {torch.__version__}; set it to 0")
    hidden = {name for name, p in trained.items() if p.ndim == 2 and name.startswith(("encoder.", "decoder."))} - ENDS
    muon = torch.optim.Muon(  # its steps scaled to the size of AdamW's: Liu et al., arXiv 2502.16982, section 2.2
        [p for name, p in trained.items() if name in hidden],
        lr=settings.muon_learning_rate,
        weight_decay=settings.weight_decay,
        ns_steps=MUON_ITERATIONS,
        adjust_lr_fn="match_rms_adamw",
    )
    others = [p for name, p in trained.items() if name not in hidden]
    return {"optimizer": adamw(others, settings), "matrix_optimizer": muon}


def adamw(parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and filters, not on biases, norms and scales."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def set_learning_rates(optimizers: dict[str, Optimizer], settings: OptimizerConfig, share: float) -> None:
    """Set every rate to this share of its peak: from the step alone, so nothing to restore and nothing to step twice."""
    peaks = {"optimizer": settings.learning_rate, "matrix_optimizer": settings.muon_learning_rate}
    peaks["discriminator_optimizer"] = settings.discriminator_learning_rate
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = share * peaks[name]
