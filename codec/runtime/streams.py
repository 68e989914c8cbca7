"""The graphs chunk by chunk: their state goes in and comes out, as ``codec/streaming.py`` keeps it.

Beside the signal a graph takes, and gives again for the next chunk, ``state_0``, ``state_1`` and so on: at first zeros of the
shapes in the file. Outputs lag behind inputs; where there is none yet, or none any more, codes are -1 and samples 0.

- ``age`` int64 ``[B, 1]``: frames that were given before, at first 0; comes out as ``next_age``.
- ``total`` int64 ``[B, 1]``: the signal's frames, or any larger number as long as they are not known. To end a signal, say
  its total and give zeros until its last output has come.
"""

from __future__ import annotations

import numpy as np

from codec.config import CodecConfig
from codec.runtime.network import END, Network
from codec.runtime.weights import Floats, Weights

FLOAT = 1  # TensorProto.DataType


class StreamingNetwork(Network):
    """Layers that hold the inputs which they will need again.

    Attributes:
        per_frame, delay: of the last layer's rows: how many are a frame, and by how many they are late.
        late: by how many frames codes, or samples the waveform, are late.
    """

    def __init__(self, config: CodecConfig, weights: Weights, bits: int) -> None:
        super().__init__(config, weights, bits)
        self.per_frame, self.delay, self.late = 1, 0, 0
        self.num_frames = ""  # of this chunk, [1]
        self.inputs = {"age": ("int64", ("batch", 1)), "total": ("int64", ("batch", 1))}
        self.outputs = {"next_age": ("int64", ("batch", 1))}

    def begin(self, x: str, signal: str, per_frame: int) -> str:
        super().begin(x, signal, per_frame)
        graph, self.per_frame = self.graph, per_frame
        length = graph("Shape", signal, start=2, end=3)
        self.num_frames = graph("Div", length, graph.constant([per_frame]))
        graph("Add", "age", self.num_frames, name="next_age")
        return self.inside(x)

    def around(self, x: str, left: int, right: int, axis: int, channels: int, stride: int = 1) -> str:
        graph, ahead = self.graph, -(-right // stride)
        wait = -self.delay % stride  # until the late rows come in whole strides
        held = left + ahead * stride + wait
        count = graph("Shape", x, start=axis, end=axis + 1)
        joined = self._with_state(x, count, axis, ("batch", channels, held) if axis == 2 else ("batch", held, channels))
        self.delay, self.per_frame = (self.delay + wait) // stride + ahead, self.per_frame // stride
        end = graph("Add", count, graph.constant([left + right]))
        return graph("Slice", joined, graph.constant([0]), end, graph.constant([axis]))

    def center(self, x: str, around: str, left: int, right: int) -> str:
        graph = self.graph
        ends = graph.constant([left]), graph.constant([-right if right else END])
        center = graph("Slice", around, *ends, graph.constant([2]))
        rows = graph("Shape", x)
        return graph("Reshape", graph("Transpose", center, perm=[0, 2, 1]), rows)

    def inside(self, x: str) -> str:
        graph = self.graph
        exists = graph("Reshape", self._exists(self.per_frame, self.delay), graph.constant([-1, 1]))
        return graph("Mul", x, graph("Cast", exists, to=FLOAT))

    def give_codes(self, codes: str) -> None:
        graph, self.late = self.graph, self.delay
        exists = graph("Unsqueeze", self._exists(1, self.delay), graph.constant([1]))
        graph("Where", exists, codes, graph.constant(-1), name="codes")

    def give_waveform(self, frames: str, window: Floats) -> None:
        graph, (overlap, hop) = self.graph, window.shape
        exists = graph("Cast", self._exists(1, self.delay), to=FLOAT)
        exists = graph("Unsqueeze", exists, graph.constant([2, 3]))
        audio = self._summed(graph("Mul", frames, exists), overlap, hop)
        squares = np.square(window)
        if self.config.decoder_look_ahead[1]:  # as if frames had come before the first
            envelope, offset = graph.constant(squares.sum(axis=0)), 0
        else:
            sums = self._summed(graph("Mul", graph.constant(squares), exists), overlap, hop)
            envelope = graph("Max", sums, graph.constant(np.float32(1e-11)))  # nothing is divided by 0
            offset = (overlap - 1) * hop // 2  # a frame's window begins before the frame
        samples = graph(
            "Reshape", graph("Div", audio, envelope), graph("Concat", self.batch, graph.constant([-1]), axis=0)
        )
        self.late = self.delay * hop + offset
        exists = graph("Cast", self._exists(hop, self.late), to=FLOAT)
        graph("Unsqueeze", graph("Mul", samples, exists), graph.constant([1]), name="waveform")

    def _summed(self, frames: str, overlap: int, hop: int) -> str:
        """``[B, n, overlap, hop] -> [B, n, hop]``: final sums; those that later frames add to are held."""
        graph = self.graph
        rest, place = self._state(("batch", overlap - 1, hop))
        later = graph("Concat", graph.constant([0] * 4), self.num_frames, graph.constant([0]), axis=0)
        sums = graph("Add", self.overlap_add(frames, overlap), graph("Pad", rest, later))
        axis = graph.constant([1])
        graph("Slice", sums, self.num_frames, graph.constant([END]), axis, name=place)
        return graph("Slice", sums, graph.constant([0]), self.num_frames, axis)

    def _with_state(self, x: str, count: str, axis: int, shape: tuple[int | str, ...]) -> str:
        """What is held, then ``x``; the last of both is held for the next chunk."""
        graph = self.graph
        held, place = self._state(shape)
        joined = graph("Concat", held, x, axis=axis)
        graph("Slice", joined, count, graph.constant([END]), graph.constant([axis]), name=place)
        return joined

    def _state(self, shape: tuple[int | str, ...]) -> tuple[str, str]:
        """Names of a new state as it comes in and as it goes out."""
        name = f"state_{len(self.inputs) - 2}"
        self.inputs[name] = self.outputs[f"next_{name}"] = ("float32", shape)
        return name, f"next_{name}"

    def _exists(self, per_frame: int, delay: int) -> str:
        """Which of the ``[B, n * per_frame]`` rows that come out now are of the signal."""
        graph = self.graph
        scale = graph.constant([per_frame])
        count = graph("Squeeze", graph("Mul", self.num_frames, scale))
        first = graph("Sub", graph("Mul", "age", scale), graph.constant([delay]))
        index = graph("Add", first, graph("Range", graph.constant(0), count, graph.constant(1)))
        begun = graph("GreaterOrEqual", index, graph.constant([0]))
        return graph("And", begun, graph("Less", index, graph("Mul", "total", scale)))
