"""The graphs chunk by chunk: their state, which is that of ``codec/streaming.py``, is an input and an output.

Beside the signal a graph takes ``state_0``, ``state_1`` and so on, at first zeros of the shapes in the file, and returns them
for the next chunk. Outputs lag behind inputs; before the first and after the last one codes are -1 and samples 0.

- ``age`` int64 ``[B, 1]``: number of frames of earlier chunks, at first 0; the output ``next_age`` is the next one.
- ``total`` int64 ``[B, 1]``: the signal's frames, or any larger number while they are not known. To end a signal, give its
  total, and zeros as samples or codes, until the last output has come.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.base import FOREVER, MOST_ROWS, as_array, kind_of
from codec.config import CodecConfig, Reach, lag, whole_number
from codec.errors import CodecError
from codec.level import check_peak
from codec.pretrained.weights import Floats, Weights
from codec.runtime.network import END, Network

FLOAT = 1  # TensorProto.DataType
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}  # ONNX Runtime's names


class StreamingNetwork(Network):
    """Layers that hold those inputs that they will need again.

    Attributes:
        delay: how many rows late the output of the last layer is.
        output_delay: how many frames late codes are, or how many samples the waveform.
    """

    most_pieces = 1  # chunks are short

    def __init__(self, config: CodecConfig, weights: Weights, bits: int) -> None:
        super().__init__(config, weights, bits)
        self.delay, self.output_delay = 0, 0
        self.num_frames = ""  # the name of the number of frames of this chunk, [1]
        self.inputs = {"age": ("int64", ("batch", 1)), "total": ("int64", ("batch", 1))}
        self.outputs = {"next_age": ("int64", ("batch", 1))}

    def begin_rows(self, x: str, signal: str, per_frame: int) -> str:
        super().begin_rows(x, signal, per_frame)
        graph = self.graph
        length = graph("Shape", signal, start=2, end=3)
        self.num_frames = graph("Div", length, graph.constant([per_frame]))
        graph("Add", "age", self.num_frames, name="next_age")
        return self.zero_outside(x)

    def with_context(self, x: str, context: Reach, channels: int) -> tuple[str, int, int]:
        """Rows after those that are held for this layer, without the last ones, whose future is not known yet."""
        graph, axis = self.graph, self.graph.constant([2])
        count, self.delay = lag(*context, self.delay)
        held, next_held = self._state(("batch", 1, count, channels))
        joined = graph("Concat", held, self.batches(x, 1, -1, channels), axis=2)
        graph("Slice", joined, graph.constant([-count or END]), graph.constant([END]), axis, name=next_held)
        early = count - context.left - context.right
        if early:
            joined = graph("Slice", joined, graph.constant([0]), graph.constant([-early]), axis)
        return joined, 0, 0

    def own_rows(self, x: str, around: str, context: Reach, channels: int) -> str:
        graph, last = self.graph, -context.right
        if not last:
            return x
        center = graph("Slice", around, graph.constant([context.left]), graph.constant([last]), graph.constant([2]))
        return graph("Reshape", center, self.rows(channels))

    def zero_outside(self, x: str) -> str:
        graph = self.graph
        exists = graph("Reshape", self._valid_rows(self.per_frame, self.delay), graph.constant([-1, 1]))
        return graph("Mul", x, graph("Cast", exists, to=FLOAT))

    def give_codes(self, codes: str) -> None:
        graph, self.output_delay = self.graph, self.delay
        exists = graph("Unsqueeze", self._valid_rows(1, self.delay), graph.constant([1]))
        graph("Where", exists, codes, graph.constant(-1), name="codes")

    def give_waveform(self, frames: str, window: Floats) -> None:
        graph, (overlap, hop) = self.graph, window.shape
        axis = graph.constant([1])
        exists = graph("Unsqueeze", self._valid_rows(1, self.delay), graph.constant([2, 3]))
        held, next_held = self._state(("batch", overlap - 1, overlap, hop))
        frames = graph("Concat", held, graph("Mul", frames, graph("Cast", exists, to=FLOAT)), axis=1)
        graph("Slice", frames, graph.constant([1 - overlap]), graph.constant([END]), axis, name=next_held)
        whole = self.overlap_add(frames, overlap)  # [B, overlap - 1 + n + overlap - 1, hop]
        audio = graph("Slice", whole, graph.constant([overlap - 1]), graph.constant([1 - overlap]), axis)
        squares = np.square(window)
        if not self.config.decoder_layers()[-1].right:  # as if there were frames before the first one
            envelope, offset = graph.constant(squares.sum(axis=0)), 0
        else:
            exists = graph("Cast", self._valid_rows(1, self.delay, overlap), to=FLOAT)
            sums = graph("MatMul", exists, graph.constant(squares))
            envelope = graph("Max", sums, graph.constant(np.float32(1e-11)))  # so that nothing is divided by 0
            offset = (overlap - 1) * hop // 2  # a frame's window begins before the frame
        samples = self.batches(graph("Div", audio, envelope), -1)
        self.output_delay = self.delay * hop + offset
        exists = graph("Cast", self._valid_rows(hop, self.output_delay), to=FLOAT)
        graph("Unsqueeze", graph("Mul", samples, exists), axis, name="waveform")

    def _state(self, shape: tuple[int | str, ...]) -> tuple[str, str]:
        """The names of a new state as an input and as an output."""
        name = f"state_{len(self.inputs) - 2}"
        self.inputs[name] = self.outputs[f"next_{name}"] = ("float32", shape)
        return name, f"next_{name}"

    def _valid_rows(self, per_frame: int, delay: int, overlap: int = 0) -> str:
        """Which of the rows that come out now, ``[B, n * per_frame]``, belong to the signal.

        With ``overlap`` it is ``[B, n, overlap]``: whether each row, and the ``overlap - 1`` before it, do.
        """
        graph = self.graph
        scale = graph.constant([per_frame])
        count, total = graph("Squeeze", graph("Mul", self.num_frames, scale)), graph("Mul", "total", scale)
        first = graph("Sub", graph("Mul", "age", scale), graph.constant([delay]))
        index = graph("Add", first, graph("Range", graph.constant(0), count, graph.constant(1)))
        if overlap:
            index, total = (graph("Unsqueeze", each, graph.constant([2])) for each in (index, total))
            index = graph("Sub", index, graph.constant(range(overlap)))
        begun = graph("GreaterOrEqual", index, graph.constant([0]))
        return graph("And", begun, graph("Less", index, total))


class Stream:
    """A batch of signals, all of one length, through a graph with state: samples in and codes out, or the other way.

    Attributes:
        look_ahead: samples by which the output lags behind the input.
    """

    def __init__(self, config: CodecConfig, session: Any, delay: int, batch_size: int, num_quantizers: int) -> None:
        batch = whole_number("batch_size", batch_size, 1, MOST_ROWS)
        hop, entries = config.hop_length, session.get_inputs()
        self._run, self._config, self._delay = session.run, config, delay
        codes: NDArray[Any] = np.zeros((batch, num_quantizers, 0), np.int64)
        samples: NDArray[Any] = np.zeros((batch, 1, 0), np.float32)
        self._name = entries[0].name
        self._encodes = self._name == "waveform"
        # values of a frame
        self._inputs_per_frame, self._outputs_per_frame = (hop, 1) if self._encodes else (1, hop)
        self._no_input, self._no_output = (samples, codes) if self._encodes else (codes, samples)
        self._zeros = {
            entry.name: np.zeros([size if isinstance(size, int) else batch for size in entry.shape], TYPES[entry.type])
            for entry in entries[1:]
        }
        self.look_ahead = delay * hop // self._outputs_per_frame
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._rest = self._no_input  # samples that are not a whole frame yet
        self._state = self._zeros | {"total": self._zeros["total"] + FOREVER}

    def push(self, signal: NDArray[Any]) -> NDArray[Any]:
        """What is final now: codes int64 ``[B, K, n]`` or samples float ``[B, 1, t]``; n or t may be 0.

        Args:
            signal: the next samples, float ``[B, 1, T]`` in [-1, 1] at the model's rate; or codes, integers ``[B, K, n]``,
                with the K of the stream.

        Raises:
            CodecError: another shape or type, NaN, codes that the model does not have, or the stream was flushed; the
                state is as before.
        """
        self._check_open()
        chunk = as_array(signal, integers=not self._encodes)
        if chunk is None or chunk.ndim != 3 or chunk.shape[:2] != self._no_input.shape[:2]:
            kind, (batch, rows, _) = "float" if self._encodes else "int64", self._no_input.shape
            raise CodecError(f"a chunk must be an array {kind} [{batch}, {rows}, n], not {kind_of(signal)}")
        size = self._config.quantizer.codebook_size
        if self._encodes:
            check_peak(chunk)
        elif chunk.size and not 0 <= chunk.min() <= chunk.max() < size:
            raise CodecError(f"codes must be from 0 to {size - 1}; are they of another model?")
        chunk = np.concatenate([self._rest, chunk], axis=-1)
        whole = chunk.shape[-1] // self._inputs_per_frame * self._inputs_per_frame
        self._rest = chunk[..., whole:].copy()  # a view would keep the whole chunk
        return self._run_graph(chunk[..., :whole])

    def flush(self) -> NDArray[Any]:
        """End the signals here; return the rest of the output."""
        self._check_open()
        frames = -(-self._rest.shape[-1] // self._inputs_per_frame)
        self._state = self._state | {"total": self._state["age"] + frames}
        missing = (frames - (-self._delay // self._outputs_per_frame)) * self._inputs_per_frame - self._rest.shape[-1]
        return self._run_graph(np.pad(self._rest, [(0, 0), (0, 0), (0, missing)]))

    def _check_open(self) -> None:
        if (self._state["total"] < FOREVER).any():
            raise CodecError("the stream was flushed: reset it before the next chunk")

    def _run_graph(self, signal: NDArray[Any]) -> NDArray[Any]:
        """The output of the graph for whole frames, without what comes before the signal and after its end."""
        if not signal.size:
            return self._no_output
        if not self._encodes:
            unused = self._config.num_quantizers - signal.shape[1]
            signal = np.pad(signal, [(0, 0), (0, unused), (0, 0)], constant_values=-1)  # -1: no code in this stage
        age, total = (int(self._state[key][0, 0]) for key in ("age", "total"))
        first, end = (max(self._delay + (frame - age) * self._outputs_per_frame, 0) for frame in (0, total))
        output, *following = self._run(None, {self._name: signal, **self._state})  # in the order of the inputs
        changing = (key for key in self._state if key != "total")
        self._state = self._state | dict(zip(changing, following, strict=True))  # a copy of the stream keeps its own
        return output[:, : self._no_output.shape[1], first:end]
