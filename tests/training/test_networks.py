"""Starting from an exported model; optimizers."""

from dataclasses import replace

import pytest
import torch

from codec.autoencoder import DepthwiseConv
from codec.config import CodecConfig, ConfigError, Reach
from codec.model import Codec
from codec.training.config import OptimizerConfig
from codec.training.networks import JointCodec, codec_optimizers, copy_blocks, set_learning_rates, start_codec


def test_blocks_that_the_model_lacks_begin_as_the_identity(tiny_config: CodecConfig) -> None:
    source = Codec(tiny_config).eval()
    depths = tuple(depth + extra for extra, depth in enumerate(tiny_config.encoder.depths))
    encoder = replace(tiny_config.encoder, depths=depths)
    deeper = replace(tiny_config, encoder=encoder, decoder=replace(tiny_config.decoder, depth=3))
    grown = JointCodec(deeper)
    assert start_codec(grown, source, "mine")
    waveform = 0.1 * torch.randn(2, 1, 10 * source.hop_length)
    a, b = source(waveform), grown.eval()(waveform)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.waveform, b.waveform)
    b.waveform.square().sum().backward()
    scales = [p for name, p in grown.named_parameters() if name.endswith("scale")]
    assert len(scales) == sum(depths) + deeper.decoder.depth
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in scales)  # so that they can leave it


def test_further_decoders_learn_to_decode_the_same_codes(tiny_config: CodecConfig) -> None:
    source, joint = Codec(tiny_config), JointCodec(tiny_config, (2, 3))
    assert start_codec(joint, source, "mine")
    waveform = 0.1 * torch.randn(2, 1, 12 * source.hop_length - 5)
    output = joint.train()(waveform)
    for decoder, decoded in zip([joint.decoder, *joint.others], output.waveform.split(2), strict=True):
        assert torch.equal(decoded, decoder(output.quantized)[..., : waveform.shape[-1]])
        gradient = torch.autograd.grad(decoded.square().sum(), joint.encoder.output.weight, retain_graph=True)[0]
        assert gradient.abs().max() > 0
    assert [sum(layer.right for layer in other.layers) for other in joint.others] == [0, 1]  # beyond the window's two
    assert len(joint.eval()(waveform).waveform) == 2  # in use there is one


@pytest.mark.parametrize("causal", [True, False])
def test_filters_that_look_less_or_further_ahead_keep_their_taps_in_time(causal: bool) -> None:
    source, grown = (DepthwiseConv(4, Reach(6 - ahead, ahead)) for ahead in (not causal, causal))
    source.conv.weight.data[..., : source.left - 3] = 0  # but those from 3 steps before to now, which both have
    source.conv.weight.data[..., source.left + 1 :] = 0
    copy_blocks(torch.nn.Sequential(grown), torch.nn.Sequential(source))
    x = torch.randn(2, 20, 4)
    torch.testing.assert_close(grown(x), source(x))


def test_an_encoder_that_looks_less_far_loses_the_future_of_its_last_blocks(tiny_config: CodecConfig) -> None:
    """And nothing else: its codes have the same meaning."""
    encoder = replace(tiny_config.encoder, depths=(1, 1, 3))
    source = Codec(replace(tiny_config, encoder=encoder))
    early = JointCodec(replace(source.config, encoder=replace(encoder, look_ahead=source.encoder_context.right - 5)))
    assert start_codec(early, source, "mine") and early.fingerprint == source.fingerprint
    waveform = 0.1 * torch.randn(1, 1, 40 * source.hop_length)
    assert not torch.allclose(early.encoder(waveform), source.encoder(waveform), atol=1e-4)
    for layer, kept in zip(source.encoder.layers[-2:], (5, 4), strict=True):  # of 7 taps, 3 of them in the future
        layer.depthwise.conv.weight.data[..., kept:] = 0
    torch.testing.assert_close(early.encoder(waveform), source.encoder(waveform))


# ---- which optimizer trains what, and how fast -----------------------------------------------------------------------

SETTINGS = OptimizerConfig(muon_learning_rate=0.01, weight_decay=0.0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_muon_trains_the_hidden_matrices_alone(tiny_config: CodecConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps of the size of AdamW's."""
    codec = Codec(tiny_config)
    names = {id(p): name for name, p in codec.named_parameters()}
    taken, optimizers = {}, codec_optimizers(codec, SETTINGS)
    for kind, optimizer in optimizers.items():
        taken[kind] = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
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
    set_learning_rates(optimizers, 0.5)
    weight = codec.get_parameter("decoder.blocks.0.expand.weight")
    before = weight.detach().clone()
    for parameter in codec.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers["matrix_optimizer"].step()
    assert 0.5 < float((weight.detach() - before).square().mean().sqrt() / (0.5 * 0.01 * 0.2)) < 2
