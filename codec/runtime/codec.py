"""OnnxCodec: what ``codec.model.Codec`` does with a trained model, on numpy arrays and without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.base import CodecBase, as_array
from codec.config import CodecConfig, whole_number
from codec.container import Codes
from codec.errors import CodecError, legible
from codec.pretrained import DEFAULT_MODEL, ModelError, read_model, shipped_name
from codec.pretrained.weights import Floats, Weights
from codec.runtime.graphs import build_decoder, build_encoder
from codec.runtime.network import Network, read_stages
from codec.runtime.streams import Stream, StreamingNetwork
from codec.workers import available_cores

Session = Any  # onnxruntime's
Build = Callable[[Any, bool], bytes]  # of graphs.py
MOST_THREADS = 2**16  # far beyond any use
DEFAULT_THREADS = 8  # at most: each holds the activations of a window, some 110 MB


class OnnxCodec(CodecBase[NDArray[Any]]):
    """A trained model run by ONNX Runtime; the graphs are built from its ``config.json`` and ``model.safetensors``.

    Codes and audio are those of ``Codec`` except for rounding, which may change a code where two are equally near. Signals
    of one stream begin and end together; others take streams of their own. A ``copy.copy`` of a stream goes on
    independently. Latents, ``embed``, ``refine_steps`` and ``exact=False`` need torch.

    Attributes:
        bits: 32 or 8, of the inner matrix products.
    """

    _library, _noun = np, "array"
    _divisor = 2
    _array, to_numpy = staticmethod(as_array), staticmethod(np.asarray)
    _arguments: tuple[Any, ...]  # those of from_pretrained

    def __init__(self, config: CodecConfig, weights: Weights, name: str, bits: int, num_threads: int | None) -> None:
        self.config, self.name, self.bits = config, name, bits
        self.num_quantizers, self.codebook_size = config.num_quantizers, config.quantizer.codebook_size
        self._weights = weights
        self._streaming: dict[Build, tuple[Session, int]] = {}  # sessions of streams, each with its delay
        threads = min(available_cores(), DEFAULT_THREADS) if num_threads is None else num_threads
        self._num_threads = whole_number("num_threads", threads, 1, MOST_THREADS)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = DEFAULT_MODEL, bits: int = 32, num_threads: int | None = None
    ) -> OnnxCodec:
        """Load a model: the name of one inside the package, a folder, or a hub id ``owner/name[@revision]``.

        Args:
            bits: 32, or 8: the inner matrix products take activations rounded to 8 bits, which is faster and changes some
                codes; speech sounds the same. 8-bit codes depend on what is computed together (a batch, a stream's chunk);
                ``encode`` computes one item at a time.
            num_threads: how many windows (of long signals, of items) to compute at the same time, each on one thread; the
                results do not depend on it. Default: the number of cores, 8 at most. Streams take one thread.

        Raises:
            ModelError: no such model, its files cannot be used, or onnxruntime is missing; says what to do. Weights that
                do not fit the configuration raise it when they are first needed.
        """
        if bits not in (32, 8):
            raise CodecError(f"bits must be 32 or 8, not {bits!r}")
        folder, config, name = read_model(model)
        if config.quantizer.kind not in ("simvq", "residual_simvq"):
            raise ModelError(f"{folder} has the quantizer {config.quantizer.kind}, which runs with torch only")
        with ThreadPoolExecutor(1) as thread:  # the library loads while the weights' checksum is computed
            runtime = thread.submit(_onnxruntime)
            weights = Weights(folder / "model.safetensors")
            runtime.result()
        codec = cls(config, weights, name, bits, num_threads)
        by_path = shipped_name(str(model)) is None and Path(model).is_dir()
        codec._arguments = Path(model).absolute() if by_path else model, bits, num_threads
        return codec

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles load the model again, as in other processes."""
        return OnnxCodec.from_pretrained, self._arguments

    @cached_property
    def fingerprint(self) -> str:
        stages = read_stages(self.config, self._weights)
        return self._fingerprint_of(tensor for stage in stages for tensor in stage.state)

    @property
    def num_parameters(self) -> int:
        drawn = () if self.config.quantizer.basis == "learnable" else (".basis",)
        return sum(size for name, size in self._weights.sizes.items() if not name.endswith(drawn))

    def encoder_graph(self) -> bytes:
        """An ONNX file: ``waveform`` float ``[B, 1, T]`` -> ``codes`` int64 ``[B, K, N]``; see :func:`build_encoder`."""
        return build_encoder(Network(self.config, self._weights, self.bits))

    def decoder_graph(self) -> bytes:
        """An ONNX file: ``codes`` int64 ``[B, K, N]`` -> ``waveform`` float ``[B, 1, T]``; see :func:`build_decoder`."""
        return build_decoder(Network(self.config, self._weights, self.bits))

    def streaming_graphs(self) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
        """Encoder and decoder with state (``codec/runtime/streams.py``), each with its delay in frames and in samples."""
        encoder, decoder = (StreamingNetwork(self.config, self._weights, self.bits) for _ in range(2))
        return (build_encoder(encoder), encoder.output_delay), (build_decoder(decoder), decoder.output_delay)

    def streaming_encoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> Stream:
        return self._stream(build_encoder, batch_size, num_quantizers)

    def streaming_decoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> Stream:
        return self._stream(build_decoder, batch_size, num_quantizers)

    def _stream(self, build: Build, batch_size: int, num_quantizers: int | None) -> Stream:
        if build not in self._streaming:
            net = StreamingNetwork(self.config, self._weights, self.bits)
            self._streaming[build] = self._session(build, net), net.output_delay
        return Stream(self.config, *self._streaming[build], batch_size, self._checked_count(num_quantizers))

    def _session(self, build: Build, net: Network) -> Session:
        runtime = _onnxruntime()
        graph = build(net, False)  # weights are passed separately: inside the graph they would be copied three times
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings would appear among a command's own lines
        options.intra_op_num_threads = 1  # windows side by side gain more than threads inside one window
        large = net.graph.large
        values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in large.values()]
        options.add_external_initializers(list(large), values)
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    # ---- what CodecBase needs -------------------------------------------------------------------------------------

    def _padded(self, signal: NDArray[Any], count: int) -> NDArray[Any]:
        return np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, count)])

    def _encoded_at_once(self, *_: Any, **__: Any) -> Any:
        raise CodecError("refine_steps and exact=False need torch: take Codec, or --backend torch")

    _decoded_at_once = _refined = _encoded_at_once

    # graphs are built at first use, which is before any thread runs them

    @cached_property
    def _encoded(self) -> Callable[[Floats], Codes]:  # type: ignore[override]
        session = self._session(build_encoder, Network(self.config, self._weights, self.bits))
        return lambda window: session.run(["codes"], {"waveform": window[None, None]})[0][0]

    def _codes_of(self, frames: Codes, count: int) -> Codes:
        return frames[:count]

    @cached_property
    def _decoded(self) -> Callable[[Codes], Floats]:  # type: ignore[override]
        session = self._session(build_decoder, Network(self.config, self._weights, self.bits))

        def decoded(codes: Codes) -> Floats:
            unused = [(0, self.num_quantizers - len(codes)), (0, 0)]
            codes = np.pad(codes, unused, constant_values=-1)  # -1: no code in this stage
            waveform: Floats = session.run(["waveform"], {"codes": codes[None]})[0][0, 0]
            return waveform

        return decoded


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it reports to its maker what is run here
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModelError("to run models without torch, onnxruntime is needed: pip install onnxruntime") from None
    except ImportError as error:  # built for another processor or system
        raise ModelError(
            f"onnxruntime is installed but cannot be used ({legible(str(error))}): pip install -U onnxruntime"
        ) from None
    version = getattr(onnxruntime, "__version__", "0.0")  # a folder without the package has none
    if tuple(map(int, version.split(".")[:2])) < (1, 17):
        raise ModelError(f"onnxruntime {version} is too old, or broken: pip install -U onnxruntime")
    return onnxruntime
