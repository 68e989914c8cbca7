"""Which optimizer trains what, and how fast."""

from __future__ import annotations

import pytest
import torch

from codec.config import CodecConfig, ConfigError
from codec.model import Codec
from codec.training.config import OptimizerConfig
from codec.training.optimizers import codec_optimizers, set_learning_rates

SETTINGS = OptimizerConfig(muon_learning_rate=0.01, weight_decay=0.0)


def test_muon_takes_the_hidden_matrices_and_adamw_all_else(
    tiny_config: CodecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(tiny_config)
    names = {id(p): name for name, p in codec.named_parameters()}
    optimizers = codec_optimizers(codec, SETTINGS)
    taken = {
        kind: {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for kind, optimizer in optimizers.items()
    }
    assert taken["optimizer"] | taken["matrix_optimizer"] == set(names.values())
    assert not taken["optimizer"] & taken["matrix_optimizer"]
    matrices = {"encoder.stages.1.0.linear.weight", "encoder.output.weight", "decoder.blocks.0.expand.weight"}
    assert matrices < taken["matrix_optimizer"]
    ends = {"encoder.stages.0.0.linear.weight", "decoder.head.output.weight", "encoder.stages.1.0.linear.bias"}
    assert ends < taken["optimizer"] and not any("quantizer" in name for name in taken["matrix_optimizer"])
    assert set(codec_optimizers(codec, OptimizerConfig())) == {"optimizer"}
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"needs torch >= 2\.9"):
        codec_optimizers(codec, SETTINGS)


def test_muons_steps_have_the_size_of_adamws(tiny_config: CodecConfig) -> None:
    codec = Codec(tiny_config)
    optimizers = codec_optimizers(codec, SETTINGS)
    set_learning_rates(optimizers, SETTINGS, 0.5)
    weight = codec.get_parameter("decoder.blocks.0.expand.weight")
    before = weight.detach().clone()
    for parameter in codec.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers["matrix_optimizer"].step()
    step = weight.detach() - before
    sizes = torch.linalg.svdvals(step)
    assert sizes.max() < 2.5 * sizes.min()
    assert 0.5 < float(step.square().mean().sqrt() / (0.5 * 0.01 * 0.2)) < 2
