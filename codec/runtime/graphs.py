"""The encoder and the decoder as ONNX graphs: the architecture of ``codec/autoencoder.py`` in standard operators.

Batch and length are free. There are no complex numbers: the inverse STFT is a matrix product.
"""

from __future__ import annotations

from codec.config import CodecConfig
from codec.pretrained import ModelError
from codec.runtime.network import Network, count_quantizers
from codec.runtime.weights import Weights
from codec.windows import Context


def encoder_graph(config: CodecConfig, weights: Weights, bits: int) -> bytes:
    """``waveform`` float ``[B, 1, T]`` -> ``codes`` int64 ``[B, K, N]``; T is filled up with zeros to whole frames.

    Args:
        bits: 32, or 8: activations and weights of the inner matrix products are rounded to 8 bits.

    Raises:
        ModelError: the weights do not fit.
    """
    return build_encoder(Network(config, weights, bits))


def decoder_graph(config: CodecConfig, weights: Weights, bits: int) -> bytes:
    """``codes`` int64 ``[B, K, N]`` -> ``waveform`` float ``[B, 1, N * hop_length]``; -1 leaves a code out.

    Arguments and errors as of :func:`encoder_graph`.
    """
    return build_decoder(Network(config, weights, bits))


def build_encoder(net: Network) -> bytes:
    """The encoder of ``net.config``."""
    graph, config, encoder = net.graph, net.config, net.config.encoder
    length = graph("Shape", "waveform", start=2, end=3)
    missing = graph("Mod", graph("Neg", length), graph.constant([config.hop_length]))
    x = graph("Pad", "waveform", graph("Concat", graph.constant([0] * 5), missing, axis=0))
    x = net.begin(graph("Reshape", x, net.rows(1)), "waveform", config.hop_length)
    channels = 1
    for i, (stride, width, depth) in enumerate(zip(encoder.strides, encoder.widths, encoder.depths, strict=True)):
        x = net.downsample(x, f"encoder.stages.{i}.0.linear", stride, channels, width)
        for j in range(1, depth + 1):
            x = net.block(x, f"encoder.stages.{i}.{j}", width, encoder.kernel_size)
        channels = width
    x = net.linear(net.norm(x, "encoder.norm", channels), "encoder.output", channels, config.latent_dim)
    codes = net.search(x)  # K x [B * N]
    rows = graph("Concat", *(graph("Unsqueeze", item, graph.constant([1])) for item in codes), axis=1)
    net.give_codes(graph("Transpose", net.batches(rows, len(codes)), perm=[0, 2, 1]))
    _refuse_unread(net.weights, "encoder.")
    return graph.serialize(
        {"waveform": ("float32", ("batch", 1, "samples")), **net.inputs},
        {"codes": ("int64", ("batch", len(codes), "frames")), **net.outputs},
    )


def build_decoder(net: Network) -> bytes:
    """The decoder of ``net.config``."""
    config, decoder = net.config, net.config.decoder
    x = net.linear(net.lookup("codes"), "decoder.input", config.latent_dim, decoder.width)
    x = net.begin(x, "codes", 1)
    for j in range(decoder.depth):
        x = net.block(x, f"decoder.blocks.{j}", decoder.width, decoder.kernel_size)
    frames, window = net.inverse_transform(net.norm(x, "decoder.norm", decoder.width))
    net.give_waveform(frames, window)
    _refuse_unread(net.weights, "decoder.")
    return net.graph.serialize(
        {"codes": ("int64", ("batch", count_quantizers(config), "frames")), **net.inputs},
        {"waveform": ("float32", ("batch", 1, "samples")), **net.outputs},
    )


def encoder_context(config: CodecConfig) -> Context:
    """Frames on either side beyond which a change of the waveform cannot reach a code."""
    encoder, left, right, step = config.encoder, 0, 0, 1  # in samples
    for stride, depth in zip(encoder.strides, encoder.depths, strict=True):
        ahead = 0 if config.causal else stride - stride // 2
        left, right = left + step * (stride - ahead), right + step * ahead
        step *= stride  # samples between the frames of this stage
        ahead = 0 if config.causal else depth * (encoder.kernel_size // 2)
        left, right = left + step * (depth * (encoder.kernel_size - 1) - ahead), right + step * ahead
    return Context(-(-left // config.hop_length), -(-right // config.hop_length))


def decoder_context(config: CodecConfig) -> Context:
    """Frames on either side beyond which a change of the codes cannot reach a frame of the waveform."""
    decoder = config.decoder
    reach, spread = decoder.depth * (decoder.kernel_size - 1), decoder.n_fft // config.hop_length - 1
    if config.causal:
        return Context(reach + spread, 0)
    return Context(reach // 2 + -(-spread // 2), reach // 2 + -(-spread // 2))


def _refuse_unread(weights: Weights, prefix: str) -> None:
    names = sorted(name for name in weights.unread if name.startswith(prefix))
    if names:
        raise ModelError(f"{weights.path} does not fit its config.json: not part of the model {', '.join(names)}")
