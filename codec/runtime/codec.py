"""OnnxCodec: what ``codec.model.Codec`` does with a trained model, on numpy arrays and without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.audio import LARGEST_PEAK, resample
from codec.config import RATES, CodecConfig, ConfigError, from_dict, to_dict
from codec.container import FINGERPRINT_BYTES, Codes, Header
from codec.errors import CodecError, install
from codec.pretrained import ALIAS, DEFAULT_MODEL, ModelError, find_model
from codec.runtime import graphs, streams
from codec.runtime.network import codebook_state, count_quantizers
from codec.runtime.weights import Floats, Weights
from codec.windows import Context, overlapping

WINDOW_FRAMES = 1024  # new frames per window, as in codec/model.py
MOST_CHANNELS = 64  # more than this, and more than there are samples, is taken for a transposed waveform


class OnnxCodec:
    """A trained model run by ONNX Runtime; the graphs are built from its ``config.json`` and ``model.safetensors``.

    Codes and audio are those of ``Codec`` but for rounding, which may turn a code where two are equally near.

    Attributes:
        config: the architecture.
        name: of the model, as stored in ``.codes`` files.
        bits: 32 or 8, of the inner matrix products.
    """

    def __init__(self, config: CodecConfig, weights: Weights, name: str, bits: int, num_threads: int | None) -> None:
        self.config, self.name = config, name
        self.bits, self._weights, self._num_threads = bits, weights, num_threads

    @classmethod
    def from_pretrained(
        cls, model: str | Path = DEFAULT_MODEL, bits: int = 32, num_threads: int | None = None
    ) -> OnnxCodec:
        """Load a model: the name of one inside the package, a folder, or a hub id ``owner/name[@revision]``.

        Args:
            bits: 32, or 8: the inner matrix products take activations rounded to 8 bits, which is faster and changes some
                codes; speech sounds the same.
            num_threads: per operator; by default ONNX Runtime's own choice.

        Raises:
            ModelError: no such model, its files cannot be used, or onnxruntime is missing; says what to do.
        """
        if bits not in (32, 8):
            raise CodecError(f"bits must be 32 or 8, not {bits!r}")
        folder = find_model(model)
        try:
            config = from_dict(CodecConfig, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{folder / 'config.json'}: {error}") from None
        if config.quantizer.kind not in ("simvq", "residual_simvq"):
            raise ModelError(f"{folder} has the quantizer {config.quantizer.kind}, which runs with torch only")
        if config.decoder.look_ahead is not None:
            raise ModelError(f"{folder} has decoder.look_ahead {config.decoder.look_ahead}, which runs with torch only")
        _onnxruntime()  # before the long work
        by_folder = Path(model).is_dir() or str(model) == ALIAS
        name = folder.resolve().name if by_folder else str(model)
        return cls(config, Weights(folder / "model.safetensors"), name, bits, num_threads)

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Of the waveforms inside, in Hz."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def num_quantizers(self) -> int:
        """Stages K: the most codes a frame can have."""
        return count_quantizers(self.config)

    @property
    def codebook_size(self) -> int:
        """Entries V of each stage's codebook."""
        return self.config.quantizer.codebook_size

    @property
    def bitrate(self) -> float:
        """With all quantizers, in bit/s: ``frame_rate * num_quantizers * log2(codebook_size)``."""
        return self.frame_rate * self.num_quantizers * float(np.log2(self.codebook_size))

    @cached_property
    def fingerprint(self) -> str:
        """That of ``Codec.fingerprint``."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config, retired=True), sort_keys=True).encode())
        for tensor in codebook_state(self.config, self._weights):
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        return digest.hexdigest()

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of ``num_samples`` at the model's sample rate; the last one may be partly filled."""
        return -(-num_samples // self.hop_length)

    def header(self, num_samples: int, sample_rate: int, num_quantizers: int | None = None) -> Header:
        """What a ``.codes`` file says of codes of this model; arguments as of ``Codec.header``."""
        return Header(
            model=self.name,
            fingerprint=self.fingerprint[: 2 * FINGERPRINT_BYTES],
            sample_rate=self.sample_rate,
            original_sample_rate=sample_rate,
            num_samples=num_samples,
            hop_length=self.hop_length,
            num_quantizers=_checked_count(num_quantizers, self.num_quantizers),
            codebook_size=self.codebook_size,
        )

    # ---- use ------------------------------------------------------------------------------------------------------

    def encode(
        self,
        waveform: NDArray[np.floating[Any]],
        sample_rate: int,
        num_quantizers: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Codes:
        """Codes int64 ``[B, K, N]`` of a float waveform ``[B, C, T]`` or ``[T]``; all as of ``Codec.encode``.

        Raises:
            CodecError: a shape, type, rate, length or number of quantizers that cannot be, NaN, or a peak beyond 8.
        """
        count = _checked_count(num_quantizers, self.num_quantizers)
        waveform = _checked_waveform(waveform)
        rate, lengths = _checked_rate(sample_rate), _checked_lengths(lengths, *waveform.shape)
        items = []
        for item, length in zip(waveform, lengths, strict=True):
            samples = resample(item[:length], rate, self.sample_rate)
            items.append(np.concatenate(list(self.encode_blocks([samples], count)), axis=1))
        frames = max(item.shape[1] for item in items)
        return np.stack([np.pad(item, [(0, 0), (0, frames - item.shape[1])]) for item in items])

    def decode(
        self, codes: Codes, num_quantizers: int | None = None, lengths: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Waveform float32 ``[B, 1, T]`` of codes int64 ``[B, k, N]``; all as of ``Codec.decode``.

        Raises:
            CodecError: a shape or type that cannot be, or a code outside ``0 <= code < codebook_size``.
        """
        batch, stages, frames = self._checked_codes(codes, "[B, K, N]").shape
        count = _checked_count(num_quantizers, stages)
        lengths = _checked_lengths(lengths, batch, frames * self.hop_length)
        audio = []
        for item, length in zip(codes[:, :count], lengths, strict=True):
            waveform = np.concatenate(list(self.decode_blocks([item[:, : self.num_frames(length)]])))
            audio.append(np.pad(waveform[:length], (0, max(lengths) - length)))
        return np.stack(audio)[:, None]

    def encode_blocks(self, blocks: Iterable[Floats], num_quantizers: int | None = None) -> Iterator[Codes]:
        """Codes ``[K, n]``, window by window, of one waveform of any length given in blocks ``[T]`` at the model's rate.

        Together exactly what :meth:`encode` gives for the whole; memory is that of one window and one block.

        Raises:
            CodecError: when its turn comes, a block that ``encode`` would refuse.
        """
        count, hop, context = _checked_count(num_quantizers, self.num_quantizers), self.hop_length, self._contexts[0]
        frames = _whole_frames((_checked_block(block) for block in blocks), hop)
        for window, before, new in overlapping(frames, WINDOW_FRAMES, context, hop, _join):
            codes = self._encoder.run(["codes"], {"waveform": window[None, None]})[0]
            yield codes[0, :count, before : before + new]

    def decode_blocks(self, blocks: Iterable[Codes]) -> Iterator[NDArray[np.float32]]:
        """Waveform ``[t]``, window by window, of the codes of one item given in blocks ``[k, n]``; see encode_blocks.

        Raises:
            CodecError: when its turn comes, a block that ``decode`` would refuse.
        """
        hop, context = self.hop_length, self._contexts[1]
        checked = (self._checked_codes(block, "[k, n]") for block in blocks)
        for window, before, new in overlapping(checked, WINDOW_FRAMES, context, 1, _join):
            unused = [(0, self.num_quantizers - len(window)), (0, 0)]
            codes = np.pad(window.astype(np.int64), unused, constant_values=-1)  # -1: no code in this stage
            waveform = self._decoder.run(["waveform"], {"codes": codes[None]})[0]
            yield waveform[0, 0, before * hop : (before + new) * hop]

    def encoder_graph(self) -> bytes:
        """An ONNX file: ``waveform`` float ``[B, 1, T]`` -> ``codes`` int64 ``[B, K, N]``."""
        return graphs.encoder_graph(self.config, self._weights, self.bits)

    def decoder_graph(self) -> bytes:
        """An ONNX file: ``codes`` int64 ``[B, K, N]``, -1 where one is left out -> ``waveform`` float ``[B, 1, T]``."""
        return graphs.decoder_graph(self.config, self._weights, self.bits)

    def streaming_graphs(self) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
        """Encoder and decoder with state (``codec/runtime/streams.py``), each with its delay in frames and in samples."""
        arguments = self.config, self._weights, self.bits
        return streams.streaming_encoder_graph(*arguments), streams.streaming_decoder_graph(*arguments)

    @cached_property
    def _encoder(self) -> Any:
        return self._session(self.encoder_graph())

    @cached_property
    def _decoder(self) -> Any:
        return self._session(self.decoder_graph())

    @cached_property
    def _contexts(self) -> tuple[Context, Context]:
        return graphs.encoder_context(self.config), graphs.decoder_context(self.config)

    def _session(self, graph: bytes) -> Any:
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors: warnings would stand among a command's own lines
        if self._num_threads is not None:
            options.intra_op_num_threads = self._num_threads
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def _checked_codes(self, codes: Codes, shape: str) -> Codes:
        """As they are, if they can be this model's; ``shape`` is the expected one."""
        if not isinstance(codes, np.ndarray) or codes.dtype not in (np.int64, np.int32):
            raise CodecError(f"codes must be an array, int64 {shape}, not {_kind(codes)}")
        if codes.ndim != shape.count(",") + 1:
            raise CodecError(f"codes must be int64 {shape}, not {_kind(codes)}")
        if not 1 <= codes.shape[-2] <= self.num_quantizers:
            raise CodecError(f"codes have {codes.shape[-2]} stages; this model has 1 to {self.num_quantizers}")
        if codes.size == 0:
            raise CodecError("codes are empty")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise CodecError(f"codes must be from 0 to {self.codebook_size - 1}; are they of another model?")
        return codes


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ModelError(f"to run models without torch, onnxruntime is needed: {install('onnx')}") from None
    return onnxruntime


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts, axis=-1)


def _whole_frames(blocks: Iterable[Floats], hop_length: int) -> Iterator[Floats]:
    """The blocks, followed by zeros up to a whole number of frames."""
    total = 0
    for block in blocks:
        total += len(block)
        yield block
    if total % hop_length:
        yield np.zeros(-total % hop_length, np.float32)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _checked_waveform(waveform: NDArray[np.floating[Any]]) -> Floats:
    """As float32 mono ``[B, T]``."""
    if not isinstance(waveform, np.ndarray) or waveform.dtype.kind != "f" or waveform.ndim not in (1, 3):
        raise CodecError(f"waveform must be a float array [B, C, T] or [T] in [-1, 1], not {_kind(waveform)}")
    waveform = waveform[None, None] if waveform.ndim == 1 else waveform
    if waveform.size == 0:
        raise CodecError("waveform is empty")
    channels, samples = waveform.shape[1:]
    if channels > MOST_CHANNELS and channels > samples:
        raise CodecError(
            f"waveform {list(waveform.shape)} would be {channels} channels of {samples} samples; if it is [B, T, C], give "
            "waveform.transpose(0, 2, 1)"
        )
    _check_peak(waveform)
    return waveform.astype(np.float32).mean(axis=1)


def _checked_block(block: Floats) -> Floats:
    """As float32 ``[T]``."""
    if not isinstance(block, np.ndarray) or block.dtype.kind != "f" or block.ndim != 1:
        raise CodecError(f"a block must be a float array [T] in [-1, 1], not {_kind(block)}")
    _check_peak(block)
    return block.astype(np.float32)


def _check_peak(waveform: NDArray[np.floating[Any]]) -> None:
    peak = max(-float(waveform.min(initial=0)), float(waveform.max(initial=0)))
    if not np.isfinite(peak):
        raise CodecError("waveform holds NaN or infinity")
    if peak > LARGEST_PEAK:
        raise CodecError(f"waveform must be in [-1, 1], but reaches {peak:g}; divide 16-bit values by 32768")


def _checked_rate(sample_rate: int) -> int:
    whole = isinstance(sample_rate, Real) and float(sample_rate).is_integer()
    if not whole or not RATES[0] <= sample_rate <= RATES[1]:
        raise CodecError(f"sample_rate must be from {RATES[0]} to {RATES[1]} Hz, a whole number, not {sample_rate!r}")
    return int(sample_rate)


def _checked_lengths(lengths: Sequence[int] | None, batch: int, longest: int) -> list[int]:
    if lengths is None:
        return [longest] * batch
    whole = all(isinstance(length, (int, np.integer)) and 1 <= length <= longest for length in lengths)
    if len(lengths) != batch or not whole:
        raise CodecError(f"lengths must be {batch} whole numbers from 1 to {longest}, not {lengths!r}")
    return [int(length) for length in lengths]


def _checked_count(asked: int | None, most: int) -> int:
    if asked is None:
        return most
    if not isinstance(asked, (int, np.integer)) or not 1 <= asked <= most:
        raise CodecError(f"num_quantizers must be a whole number from 1 to {most}, not {asked!r}")
    return int(asked)
