"""The layers of a model as operators of an ONNX graph.

Activations are rows ``[B * N, C]``, so that every layer is one matrix product with its bias. Where a layer sees neighbours
they are pictures ``[B, 1, N, C]``: for these ONNX Runtime has a fast depthwise convolution, and none for ``[B, C, N]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codec.config import CodecConfig, Reach
from codec.pretrained import ModelError
from codec.pretrained.weights import Floats, Weights
from codec.runtime.proto import Graph, Shape

# Layers that stay in float32 with 8 bits, too: rounding them changes the most codes and SNR, and saves little time.
FLOAT32_LAYERS = ("encoder.stages.0.", "encoder.output.", "decoder.input.", "decoder.head.")
NORM_EPSILON = 1e-6
CODES_PER_TILE = 4096  # distances that a frame holds at once: a large table is searched piece by piece
CODES_PER_GROUP = 256
FAR = 1e38  # farther than any code
END = 2**62  # end of a slice that goes to the end


class Network:
    """Layers; each takes and returns the name of a value, which is ``[B * N, C]`` unless its docstring says otherwise.

    Args:
        bits: 32, or 8: activations and weights of the inner matrix products are rounded to 8 bits.

    Attributes:
        per_frame: how many rows of the last layer make a frame.
    """

    most_pieces = 8  # to compute a block in: more are no faster, and take longer to load

    def __init__(self, config: CodecConfig, weights: Weights, bits: int) -> None:
        self.config, self.weights, self.bits = config, weights, bits
        self.graph = Graph()
        self.batch, self.per_frame = "", 1
        self.inputs: dict[str, tuple[str, Shape]] = {}  # beside the signal
        self.outputs: dict[str, tuple[str, Shape]] = {}

    def begin_rows(self, x: str, signal: str, per_frame: int) -> str:
        """The rows ``x`` of the ``signal``, whose shape tells the batch; ``per_frame`` rows make a frame."""
        self.batch, self.per_frame = self.graph("Shape", signal, start=0, end=1), per_frame
        return x

    def rows(self, channels: int) -> str:
        """The shape ``[B * N, C]``."""
        return self.graph.constant([-1, channels])

    def batches(self, x: str, *shape: int) -> str:
        """Rows as ``[B, *shape]``, where -1 is computed from the rest."""
        return self.graph("Reshape", x, self.graph("Concat", self.batch, self.graph.constant(shape), axis=0))

    def with_context(self, x: str, context: Reach, channels: int) -> tuple[str, int, int]:
        """Rows as ``[B, 1, N, C]`` with their known neighbours, and how many zeros to add before and after them."""
        return self.batches(x, 1, -1, channels), context.left, context.right

    def own_rows(self, x: str, around: str, context: Reach, channels: int) -> str:
        """The rows to which a block adds its output; ``around`` are those rows with their context."""
        return x

    def zero_outside(self, x: str) -> str:
        """Rows that are 0 outside of the signal."""
        return x

    def linear(self, x: str, name: str, inner: int, outer: int, scale: Floats | None = None) -> str:
        """``(x W^T + b) * scale``, one factor per output; ``scale`` is multiplied into W and b."""
        graph, w = self.graph, self.weights
        scale = np.ones(outer, np.float32) if scale is None else scale
        bias = w.read(f"{name}.bias", outer) * scale
        if self.bits == 32 or f"{name}.".startswith(FLOAT32_LAYERS):
            rows = w.read(f"{name}.weight", outer, inner)
            rows *= scale[:, None]  # in place: new memory takes longer than the product
            rows_name = graph.constant(rows, f"{name}.weight")
            return graph("Gemm", x, rows_name, graph.constant(bias, f"{name}.bias"), transB=1)
        matrix, step = w.stored(f"{name}.weight", outer, inner)
        if step is None:  # not stored in 8 bits: round as codec/weights.py does
            step = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
            matrix = np.rint(matrix / step).astype(np.int8)
        integers = graph("DynamicQuantizeLinear", x, outputs=3)
        columns = graph.constant(np.ascontiguousarray(matrix.T), f"{name}.weight")
        product = graph("MatMulInteger", integers, columns, f"{integers}.2")
        product = graph("Cast", product, to=1)
        steps = graph.constant(step[:, 0] * scale, f"{name}.step")
        product = graph("Mul", product, graph("Mul", f"{integers}.1", steps))
        return graph("Add", product, graph.constant(bias, f"{name}.bias"))

    def norm(self, x: str, name: str, channels: int) -> str:
        scale = self.graph.constant(self.weights.read(f"{name}.weight", channels), f"{name}.weight")
        bias = self.graph.constant(self.weights.read(f"{name}.bias", channels), f"{name}.bias")
        return self.graph("LayerNormalization", x, scale, bias, axis=-1, epsilon=NORM_EPSILON)

    def block(self, x: str, name: str, channels: int, context: Reach) -> str:
        """A ConvNeXt block.

        If a frame has many rows, it is computed in pieces, whose hidden activations stay in the processor's cache.
        """
        graph, w = self.graph, self.weights
        kernel = w.read(f"{name}.depthwise.conv.weight", channels, 1, 1, context.left + 1 + context.right)
        kernels = graph.constant(kernel, f"{name}.depthwise.conv.weight")
        bias = graph.constant(w.read(f"{name}.depthwise.conv.bias", channels), f"{name}.depthwise.conv.bias")
        around, before, after = self.with_context(x, context, channels)
        columns = graph("Transpose", around, perm=[0, 3, 1, 2])
        y = graph("Conv", columns, kernels, bias, group=channels, pads=[0, before, 0, after])
        y = graph("Reshape", graph("Transpose", y, perm=[0, 2, 3, 1]), self.rows(channels))
        count = max(n for n in range(1, self.most_pieces + 1) if self.per_frame % n == 0)
        pieces = self._split(y, count, axis=0) if count > 1 else [y]
        done = [self.perceptron(piece, name, channels) for piece in pieces]
        y = graph("Concat", *done, axis=0) if done[1:] else done[0]
        return self.zero_outside(graph("Add", self.own_rows(x, around, context, channels), y, name=name))

    def perceptron(self, x: str, name: str, channels: int) -> str:
        y = self.norm(x, f"{name}.norm", channels)
        y = self.graph("Gelu", self.linear(y, f"{name}.expand", channels, 4 * channels))
        return self.linear(y, f"{name}.project", 4 * channels, channels, self.weights.read(f"{name}.scale", channels))

    def downsample(self, x: str, name: str, context: Reach, inner: int, outer: int) -> str:
        """A strided convolution of kernel ``2 * stride``, as a product: a row is two neighbouring strides."""
        graph, stride = self.graph, context.stride
        self.per_frame //= stride
        x, before, after = self.with_context(x, context, inner)
        x = graph("Pad", x, graph.constant([0, 0, before, 0, 0, 0, after, 0]))
        x = self.batches(x, -1, stride * inner)
        first = graph("Slice", x, graph.constant([0]), graph.constant([-1]), graph.constant([1]))
        second = graph("Slice", x, graph.constant([1]), graph.constant([END]), graph.constant([1]))
        pairs = graph("Reshape", graph("Concat", first, second, axis=2), self.rows(2 * stride * inner))
        return self.zero_outside(self.linear(pairs, name, 2 * stride * inner, outer))

    def search(self, residual: str) -> list[str]:
        """Codes ``[B * N]`` of every stage."""
        graph = self.graph
        codes: list[str] = []
        for i, stage in enumerate(read_stages(self.config, self.weights)):
            codes.append(graph("Squeeze", self._nearest(residual, stage), graph.constant([1]), name=f"codes.{i}"))
            if i + 1 < self.config.num_quantizers:  # what this stage leaves
                chosen = graph("Gather", graph.constant(stage.codebook), codes[-1])
                quantized = graph("Gemm", chosen, graph.constant(stage.out), graph.constant(stage.out_bias), transB=1)
                residual = graph("Sub", residual, quantized)
        return codes

    def _nearest(self, x: str, stage: Stage) -> str:
        """Codes ``[B * N, 1]``: the least ``|E|^2 - 2 z E^T``, the lowest index where several are equal.

        The least of each group of codes is found first: ONNX Runtime finds a least value much faster than its index.
        """
        graph = self.graph
        # a column of ones behind z and of |E|^2 behind -2 E: the sum is one product
        squares = np.square(stage.codebook).sum(axis=1, keepdims=True, dtype=np.float32)
        table = np.concatenate([-2 * stage.codebook, squares], axis=1)
        table = np.pad(table, [(0, -len(table) % CODES_PER_GROUP), (0, 0)])
        table[len(squares) :, -1] = FAR  # the rows that fill up the last group
        into = graph.constant(np.pad(stage.into, [(0, 1), (0, 0)]))
        z = graph("Gemm", x, into, graph.constant(np.append(stage.into_bias, np.float32(1))), transB=1)
        least, codes, last = [], [], graph.constant([1])
        for start in range(0, len(table), CODES_PER_TILE):
            tile = np.ascontiguousarray(table[start : start + CODES_PER_TILE].T)
            groups = graph.constant([-1, tile.shape[1] // CODES_PER_GROUP, CODES_PER_GROUP])
            distances = graph("Reshape", graph("MatMul", z, graph.constant(tile)), groups)
            of_groups = graph("ReduceMin", distances, graph.constant([2]), keepdims=0)
            group = graph("ArgMin", of_groups, axis=1, keepdims=1)
            place = graph("ArgMin", graph("GatherND", distances, group, batch_dims=1), axis=1, keepdims=1)
            first = graph("Add", graph("Mul", group, graph.constant([CODES_PER_GROUP])), graph.constant([start]))
            least.append(graph("ReduceMin", of_groups, last, keepdims=1))
            codes.append(graph("Add", first, place))
        tile_index = graph("ArgMin", graph("Concat", *least, axis=1), axis=1, keepdims=1)
        return graph("GatherElements", graph("Concat", *codes, axis=1), tile_index, axis=1)

    def lookup(self, codes: str) -> str:
        """Latents of codes ``[B, K, N]``, by one lookup and one product for all stages.

        Each table gets a first row of zeros, for code -1, and a last column of ones, for the bias.
        """
        graph = self.graph
        stages = list(read_stages(self.config, self.weights))
        tables = np.stack([np.pad(stage.codebook, [(0, 0), (0, 1)], constant_values=1) for stage in stages])
        tables = np.pad(tables, [(0, 0), (1, 0), (0, 0)])  # [K, V + 1, d + 1]
        ways = np.concatenate([part for stage in stages for part in (stage.out.T, stage.out_bias[None])])
        rows = graph("Unsqueeze", graph("Add", codes, graph.constant(1)), graph.constant([3]))
        which = graph("Expand", graph.constant(np.arange(len(stages))[:, None, None]), graph("Shape", rows))
        points = graph("GatherND", graph.constant(tables), graph("Concat", which, rows, axis=3))  # [B, K, N, d + 1]
        points = graph("Transpose", points, perm=[0, 2, 1, 3])
        return graph("MatMul", graph("Reshape", points, self.rows(len(ways))), graph.constant(ways), name="latents")

    def inverse_transform(self, x: str) -> tuple[str, Floats]:
        """Windowed frames ``[B, N, overlap, hop]`` and the window; see ISTFTHead in ``codec/autoencoder.py``."""
        graph, config = self.graph, self.config
        n_fft, hop = config.decoder.n_fft, config.hop_length
        bins, overlap = n_fft // 2 + 1, n_fft // hop
        x = self.linear(x, "decoder.head.output", config.decoder.width, 2 * bins)
        log_magnitude, phase = self._split(x, 2, axis=1)
        limit = graph.constant(np.float32(math.log(100.0)))
        magnitude = graph("Exp", graph("Min", log_magnitude, limit))
        parts = [graph("Mul", magnitude, graph(op, phase)) for op in ("Cos", "Sin")]
        angle = 2 * np.pi / n_fft * np.arange(n_fft)
        window = 0.5 - 0.5 * np.cos(angle)
        # the windowed inverse transform of half the samples; each inner bin stands for two bins
        turns = np.outer(np.arange(bins), np.arange(bins)) % n_fft  # [bins, samples]
        share = np.where(np.arange(bins) % (bins - 1) == 0, 1, 2)[:, None] / n_fft * window[:bins]
        bases = [(table[turns] * share).astype(np.float32) for table in (np.cos(angle), -np.sin(angle))]
        even, odd = (graph("MatMul", part, graph.constant(basis)) for part, basis in zip(parts, bases, strict=True))
        # sample n_fft - n has the same cosines, and sines of opposite sign
        steps = (graph.constant([bins - 2]), graph.constant([0]), graph.constant([1]), graph.constant([-1]))
        mirrored = graph("Slice", graph("Sub", even, odd), *steps)
        frames = graph("Concat", graph("Add", even, odd), mirrored, axis=1)
        return self.batches(frames, -1, overlap, hop), window.astype(np.float32).reshape(overlap, hop)

    def give_waveform(self, frames: str, window: Floats) -> None:
        """Overlap and add ``[B, N, overlap, hop]``, divided by the sum of the squared windows."""
        graph, (overlap, hop) = self.graph, window.shape
        audio = self.overlap_add(frames, overlap)
        if not self.config.decoder_layers()[-1].right:  # as if there were frames before the first one
            envelope, start = graph.constant(np.square(window).sum(axis=0)), 0
        else:
            count = graph("Shape", frames, start=1, end=2)
            shape = graph("Concat", graph.constant([1]), count, graph.constant([overlap, hop]), axis=0)
            squares = graph("Expand", graph.constant(np.square(window)[None, None]), shape)
            envelope, start = self.overlap_add(squares, overlap), (overlap - 1) * hop // 2
        envelope = graph("Max", envelope, graph.constant(np.float32(1e-11)))  # so that nothing is divided by 0
        audio = self.batches(graph("Div", audio, envelope), 1, -1)
        stop = start - (overlap - 1) * hop
        axes, first, last = graph.constant([2]), graph.constant([start]), graph.constant([stop])
        graph("Slice", audio, first, last, axes, name="waveform")

    def give_codes(self, codes: str) -> None:
        """The output ``codes [B, K, N]``."""
        self.graph("Identity", codes, name="codes")

    def overlap_add(self, frames: str, overlap: int) -> str:
        """``[B, N, overlap, hop] -> [B, N + overlap - 1, hop]``: the sum of the parts, each one hop later."""
        graph = self.graph
        total = ""
        for shift, part in enumerate(self._split(frames, overlap, axis=2)):
            part = graph("Squeeze", part, graph.constant([2]))
            part = graph("Pad", part, graph.constant([0, shift, 0, 0, overlap - 1 - shift, 0]))
            total = graph("Add", total, part) if total else part
        return total

    def _split(self, x: str, count: int, axis: int) -> list[str]:
        name = self.graph("Split", x, axis=axis, outputs=count, num_outputs=count)
        return [name, *(f"{name}.{i}" for i in range(1, count))]


@dataclass
class Stage:
    """One SimVQ stage: ``codebook [V, d]``, and the projections ``into [d, D]`` and ``out [D, d]`` with their biases.

    ``state`` has the tensors that decide what a code means, in the order of ``Quantizer.codebook_state``.
    """

    codebook: Floats
    into: Floats
    into_bias: Floats
    out: Floats
    out_bias: Floats
    state: list[Floats]


def read_stages(config: CodecConfig, weights: Weights) -> Iterator[Stage]:
    """The model's stages, one after another."""
    dim, d, diagonal = config.latent_dim, config.quantizer.codebook_dim, config.quantizer.map == "diagonal"
    for index in range(config.num_quantizers):
        prefix = f"quantizer.stages.{index}." if config.quantizer.kind == "residual_simvq" else "quantizer."
        basis = weights.read(f"{prefix}basis", config.quantizer.codebook_size, d)
        weight = weights.read(f"{prefix}weight", *((d,) if diagonal else (d, d)))
        state = [basis, weight]
        with np.errstate(over="ignore", invalid="ignore"):  # values that are too large are refused below
            codebook = basis * weight if diagonal else basis @ weight
            if config.quantizer.map_bias:
                state.append(weights.read(f"{prefix}bias", d))
                codebook = codebook + state[-1]
            farthest = np.square(codebook).sum(axis=1).max()
        if not farthest < FAR:
            raise ModelError(f"{weights.path}: the codebook of stage {index + 1} is too large to be right")
        if d == dim:  # there are no projections
            same, nothing = np.eye(d, dtype=np.float32), np.zeros(d, np.float32)
            yield Stage(codebook, same, nothing, same, nothing, state)
            continue
        into = weights.read(f"{prefix}project_in.weight", d, dim)
        into_bias = weights.read(f"{prefix}project_in.bias", d)
        out = weights.read(f"{prefix}project_out.weight", dim, d)
        out_bias = weights.read(f"{prefix}project_out.bias", dim)
        yield Stage(codebook, into, into_bias, out, out_bias, [*state, out, out_bias])
