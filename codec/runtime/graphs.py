"""The encoder and the decoder as ONNX graphs: the architecture of ``codec/autoencoder.py`` in standard operators.

Batch and length are free. There are no complex numbers: the inverse STFT is a matrix product.
"""

from __future__ import annotations

from codec.runtime.network import Network


def build_encoder(net: Network, whole: bool = True) -> bytes:
    """``waveform`` float ``[B, 1, T]`` -> ``codes`` int64 ``[B, K, N]``; T is filled up with zeros to whole frames.

    If not ``whole``, the file lacks the constants ``net.graph.large``, which ONNX Runtime takes separately.

    Raises:
        ModelError: the weights do not fit the configuration.
    """
    graph, config, encoder = net.graph, net.config, net.config.encoder
    length = graph("Shape", "waveform", start=2, end=3)
    missing = graph("Mod", graph("Neg", length), graph.constant([config.hop_length]))
    x = graph("Pad", "waveform", graph("Concat", graph.constant([0] * 5), missing, axis=0))
    x = net.begin_rows(graph("Reshape", x, net.rows(1)), "waveform", config.hop_length)
    channels = 1
    for i, (width, (first, *others)) in enumerate(zip(encoder.widths, config.encoder_layers(), strict=True)):
        x = net.downsample(x, f"encoder.stages.{i}.0.linear", first, channels, width)
        for j, context in enumerate(others, start=1):
            x = net.block(x, f"encoder.stages.{i}.{j}", width, context)
        channels = width
    x = net.linear(net.norm(x, "encoder.norm", channels), "encoder.output", channels, config.latent_dim)
    codes = net.search(x)  # K x [B * N]
    rows = graph("Concat", *(graph("Unsqueeze", item, graph.constant([1])) for item in codes), axis=1)
    net.give_codes(graph("Transpose", net.batches(rows, -1, len(codes)), perm=[0, 2, 1]))
    net.weights.refuse_unread(but="decoder.")
    return graph.serialize(
        {"waveform": ("float32", ("batch", 1, "samples")), **net.inputs},
        {"codes": ("int64", ("batch", len(codes), "frames")), **net.outputs},
        whole,
    )


def build_decoder(net: Network, whole: bool = True) -> bytes:
    """``codes`` int64 ``[B, K, N]`` -> ``waveform`` float ``[B, 1, N * hop_length]``; -1 is no code.

    ``whole`` and errors as of :func:`build_encoder`.
    """
    config, decoder = net.config, net.config.decoder
    x = net.linear(net.lookup("codes"), "decoder.input", config.latent_dim, decoder.width)
    x = net.begin_rows(x, "codes", 1)
    for j, context in enumerate(config.decoder_layers()[:-1]):
        x = net.block(x, f"decoder.blocks.{j}", decoder.width, context)
    frames, window = net.inverse_transform(net.norm(x, "decoder.norm", decoder.width))
    net.give_waveform(frames, window)
    net.weights.refuse_unread(but="encoder.")
    return net.graph.serialize(
        {"codes": ("int64", ("batch", config.num_quantizers, "frames")), **net.inputs},
        {"waveform": ("float32", ("batch", 1, "samples")), **net.outputs},
        whole,
    )
