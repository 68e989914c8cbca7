"""What codecs on torch and on ONNX Runtime have in common: checks, batches, windows, facts about the model.

It works on tensors and numpy arrays alike, by methods and functions of the same name in both, and does not import torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from codec.audio import resample
from codec.config import RATES, CodecConfig, Reach, reach, to_dict, whole_number
from codec.container import FINGERPRINT_BYTES, FORMER, MOST_DB, ContainerError, Header
from codec.errors import CodecError
from codec.level import check_peak, factor, gain_of
from codec.workers import in_threads

FOREVER = 2**40  # frames of a stream's row whose end is not known yet
MOST_ROWS = 2**16  # of a stream, far beyond any use
FEW_CHANNELS = 8  # a first axis of more is not taken for the channels of [C, T]
WINDOW_FRAMES = 1024  # new frames per window: long signals run window by window, short ones in one piece

Signal = TypeVar("Signal", bound=Any)  # numpy's array or torch's tensor


class CodecBase(Generic[Signal]):
    """A trained codec. What a subclass must provide stands at the end: its library's arrays, and how windows are computed."""

    config: CodecConfig
    name: str  # of the model, as stored in .codes files
    num_quantizers: int  # stages K, the most codes a frame can have
    codebook_size: int  # entries V of each stage's codebook

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms inside, in Hz."""
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
    def bitrate(self) -> float:
        """Bitrate of all quantizers in bit/s: ``frame_rate * num_quantizers * log2(codebook_size)``."""
        return self.bitrate_of(self.num_quantizers)

    def bitrate_of(self, num_quantizers: int) -> float:
        """Bitrate of the first ``num_quantizers`` quantizers in bit/s; a CodecError if there are fewer."""
        return self.frame_rate * self._checked_count(num_quantizers) * float(np.log2(self.codebook_size))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the configuration and of the codebooks' stored tensors.

        Two models with the same fingerprint give every code the same meaning. The configuration counts without
        ``look_ahead``, and ``first_decoder``, where there is one, counts in place of ``decoder``.
        """
        raise NotImplementedError

    def _fingerprint_of(self, tensors: Iterable[NDArray[Any]]) -> str:
        """The fingerprint of a model with these codebook tensors."""
        values = to_dict(self.config, retired=True)
        values["decoder"] = values.pop("first_decoder", values["decoder"])
        for part in (values["encoder"], values["decoder"]):
            part.pop("look_ahead", None)  # it changes when codes are written or heard, not what they mean
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for tensor in tensors:
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        return digest.hexdigest()

    @property
    def encoder_context(self) -> Reach:
        """How many frames of the waveform before and after its own a code depends on."""
        return reach(itertools.chain(*self.config.encoder_layers()))

    @property
    def decoder_context(self) -> Reach:
        """How many frames of codes before and after its own a frame of the waveform depends on."""
        return reach(self.config.decoder_layers())

    @property
    def look_aheads(self) -> tuple[int, int]:
        """By how many samples the encoder's and the decoder's streams lag behind their input."""
        return self.streaming_encoder().look_ahead, self.streaming_decoder().look_ahead

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of ``num_samples`` at the model's sample rate; the last one may be partly filled."""
        return -(-int(num_samples) // self.hop_length)

    def header(
        self, num_samples: int | None, sample_rate: int, num_quantizers: int | None = None, gain_db: float = 0.0
    ) -> Header:
        """The header of a file of this model's codes, for ``codec.container.write``; CodecError: an impossible value.

        Args:
            num_samples: length of what was encoded, per channel, at its own rate; None while it is not known.
            sample_rate: of what was encoded, in Hz.
            num_quantizers: stages of the codes; default all.
            gain_db: the gain with which they were encoded.
        """
        return Header(
            model=self.name,
            fingerprint=self.fingerprint[: 2 * FINGERPRINT_BYTES],
            sample_rate=self.sample_rate,
            original_sample_rate=sample_rate,
            num_samples=num_samples,
            hop_length=self.hop_length,
            num_quantizers=self._checked_count(num_quantizers),
            codebook_size=self.codebook_size,
            gain_db=gain_db,
        )

    def check(self, header: Header, advice: str = "") -> None:
        """Raise a ContainerError, which ends with the ``advice``, if another model made the codes of this ``header``."""
        if not self.fingerprint.startswith(header.fingerprint):
            raise ContainerError(
                f"made with another model: the file says {header.model!r}, fingerprint {header.fingerprint}; "
                f"this is {self.name!r}, fingerprint {self.fingerprint[: 2 * FINGERPRINT_BYTES]}; "
                + (advice or f"load {FORMER.get(header.fingerprint, 'the one that it names')}")
            )

    # ---- use ------------------------------------------------------------------------------------------------------

    def gain_of(
        self,
        waveform: Signal | NDArray[Any],
        sample_rate: int,
        lengths: Signal | list[int] | None = None,
    ) -> list[float]:
        """The ``gain_db`` of each item ``[B]``: see :func:`codec.level.gain_of`; arguments and errors as encode."""
        items, rate = self._mono_items(waveform, sample_rate, lengths)
        return [gain_of([self.to_numpy(item)], rate) for item in items]

    def encode(
        self,
        waveform: Signal | NDArray[Any],
        sample_rate: int,
        num_quantizers: int | None = None,
        lengths: Signal | list[int] | None = None,
        gain_db: float | list[float] = 0.0,
        exact: bool = True,
        refine_steps: int = 0,
    ) -> Signal:
        """Codes int64 ``[B, K, N]`` of a waveform; N is ``num_frames`` of its length at the model's rate,
        ``ceil(T * codec.sample_rate / sample_rate)``.

        Every item is computed by itself, long ones in windows of a fixed size: its codes are, bit for bit, the same
        whatever it was batched with, and the networks' memory does not grow with its length.

        Args:
            waveform: float in [-1, 1], ``[B, C, T]``, ``[C, T]`` (C <= 8) or ``[T]``; channels are mixed down.
            sample_rate: of the waveform, in Hz; another one than the model's is resampled.
            num_quantizers: stages to use, 1 to ``codec.num_quantizers``; default all.
            lengths: ``[B]``, samples of each item that count, where a batch of unequal items was padded at the end. The
                codes of a shorter item are followed by zeros.
            gain_db: by how many dB the waveform, or each item, is louder than what is encoded. :meth:`gain_of` measures it,
                so that codes do not depend on the volume, and decode takes it; 0 encodes the waveform as it is.
            exact: False computes all items together, with torch only; it fills a GPU, and on a CPU gains nothing. Rounding
                differs, which changes a code where two are equally near.
            refine_steps: how many times the latents are moved to bring the decoded sound nearer to the waveform, with torch
                only (:mod:`codec.refine`). 15 bring it much nearer at the same bitrate, and take about as long as the
                speech lasts. The codes suit this decoder and number of stages best; others gain, too.

        Raises:
            CodecError: a shape, type, rate, length or number of quantizers that cannot be, such as more channels than
                samples (``[B, T, C]``); NaN in the waveform, or a peak beyond 8 (integers not scaled to [-1, 1]).
        """
        items = self._items_at_model_rate(waveform, sample_rate, lengths)
        items = [item * factor(-gain) for item, gain in zip(items, _checked_gains(gain_db, len(items)), strict=True)]
        count = self._checked_count(num_quantizers)
        if not exact:
            if refine_steps:
                raise CodecError("refine_steps go with exact=True")
            return self._encoded_at_once(items, count)
        codes = list(self._codes_by_window(count, refine_steps, *([item] for item in items)))
        sizes = [self.num_frames(len(item)) for item in items]
        return self._batch(self._into_items(codes, sizes))

    def decode(
        self,
        codes: Signal | NDArray[Any],
        num_quantizers: int | None = None,
        lengths: Signal | list[int] | None = None,
        gain_db: float | list[float] = 0.0,
        exact: bool = True,
    ) -> Signal:
        """Waveform float ``[B, 1, T]`` at the model's sample rate, ``T = N * hop_length`` unless ``lengths`` are given.

        Args:
            codes: integers ``[B, k, N]`` or ``[k, N]``; any prefix of the model's stages decodes.
            num_quantizers: use only the first so many of them.
            lengths: ``[B]``, samples of each item at the model's rate, not at that of what was encoded: frames beyond them
                are not decoded, whatever pads them, and shorter waveforms are followed by zeros up to the longest.
            gain_db: by how many dB the waveform, or each item, is to be raised: what encode was given.
            exact: see :meth:`encode`.

        Raises:
            CodecError: a shape or type that cannot be, or a code outside ``0 <= code < codebook_size``.
        """
        codes = codes[None] if getattr(codes, "ndim", 0) == 2 else codes
        codes = self._checked(codes, "codes", "[B, K, N]", integers=True)
        batch, most, frames = codes.shape
        count = self._checked_count(num_quantizers, most)
        samples = checked_lengths(lengths, batch, frames * self.hop_length)
        sizes = [self.num_frames(length) for length in samples]
        items = [self._checked_codes(c[:, :size], "[k, n]")[:count] for c, size in zip(codes, sizes, strict=True)]
        gains = _checked_gains(gain_db, batch)
        if exact:
            windows = self._compute_windows(self._decoded, ([item] for item in items), self.decoder_context, 1)
            audio = self._into_items([window[None] for window in windows], [size * self.hop_length for size in sizes])
        else:
            audio = list(self._decoded_at_once(items))
        audio = [item[:, :length] * factor(gain) for item, length, gain in zip(audio, samples, gains, strict=True)]
        return self._batch(audio)

    def encode_blocks(
        self, blocks: Iterable[Signal | NDArray[Any]], num_quantizers: int | None = None, refine_steps: int = 0
    ) -> Iterator[Signal]:
        """Codes ``[K, n]``, window by window, of one waveform of any length given in blocks ``[T]`` at the model's rate.

        Together exactly what :meth:`encode` gives for the whole, which would refuse what is refused here, each block in its
        turn; memory is that of one window, or one for each thread, and one block.
        """
        return self._codes_by_window(self._checked_count(num_quantizers), refine_steps, blocks)

    def decode_blocks(self, blocks: Iterable[Signal | NDArray[Any]]) -> Iterator[Signal]:
        """Waveform ``[t]``, window by window, of the codes of one item given in blocks ``[k, n]``; see encode_blocks."""
        checked = self._each_block(blocks, lambda block: self._checked_codes(block, "[k, n]"))
        return self._compute_windows(self._decoded, [checked], self.decoder_context, 1)

    def _mono_items(self, waveform: Any, sample_rate: int, lengths: Any) -> tuple[list[Signal], int]:
        """Every item of a batch as float32 ``[T]``, without its padding, and the sample rate.

        The samples themselves are checked later, block by block.
        """
        shape: tuple[int, ...] = getattr(waveform, "shape", ())
        if len(shape) == 1 or (len(shape) == 2 and shape[0] <= FEW_CHANNELS):
            waveform = waveform[(None,) * (3 - len(shape))]
        others = f", or [T], or [C, T] of at most {FEW_CHANNELS} channels"
        waveform = self._checked(waveform, "waveform", "[B, C, T]", others)
        batch, channels, samples = waveform.shape
        if channels > samples:
            raise CodecError(f"waveform has {channels} channels of {samples} samples; give waveform.swapaxes(-1, -2)")
        rate = whole_number("sample_rate", sample_rate, *RATES)
        sizes = checked_lengths(lengths, batch, samples)
        # not mean(): it adds many channels in an order that depends on the length, and a batch would change its items
        mix = sum((waveform[:, channel] for channel in range(1, channels)), waveform[:, 0]) / channels
        return [item[:size] for item, size in zip(mix, sizes, strict=True)], rate

    def _items_at_model_rate(self, waveform: Any, sample_rate: int, lengths: Any = None) -> list[Signal]:
        """The items of :meth:`_mono_items`, resampled to the model's rate."""
        items, rate = self._mono_items(waveform, sample_rate, lengths)
        if rate == self.sample_rate:
            return items
        return [self._array(resample(self.to_numpy(item), rate, self.sample_rate), integers=False) for item in items]

    def _codes_by_window(self, count: int, refine_steps: int, *items: Any) -> Iterator[Signal]:
        """Codes ``[K, n]``, window by window, of one item after another, each in blocks ``[T]``."""
        checked = (self._each_block(blocks, self._checked_block) for blocks in items)
        if not refine_steps:
            frames = self._compute_windows(self._encoded, checked, self.encoder_context, self.hop_length)
            return (self._codes_of(each, count) for each in frames)
        # a code changes the sound as far as the decoder reaches, and that sound depends on codes as far away again
        around = self.decoder_context.left + self.decoder_context.right
        context = Reach(self.encoder_context.left + around, self.encoder_context.right + around)
        refined = partial(self._refined, count=count, steps=refine_steps)
        return self._compute_windows(refined, checked, context, self.hop_length)

    def _finite(self, values: Signal) -> Signal:
        """The output of a network; a CodecError if it holds NaN or infinity."""
        if not self._library.isfinite(values).all():
            raise CodecError("the model gives NaN or infinity: its latents or its weights cannot be right")
        return values

    def _compute_windows(
        self, compute: Callable[[Signal], Signal], items: Iterable[Iterable[Signal]], context: Reach, unit: int
    ) -> Iterator[Signal]:
        """What ``compute`` gives for the new frames of every window of every item, in their order."""
        per_frame = self.hop_length // unit  # values that a frame has in the output

        def new_frames(window: tuple[Signal, int, int]) -> Signal:
            signal, before, count = window
            return self._finite(compute(signal))[..., before * per_frame : (before + count) * per_frame]

        windows = itertools.chain.from_iterable(self._cut_windows(blocks, context, unit) for blocks in items)
        return in_threads(new_frames, windows, self._num_threads)

    def _cut_windows(self, blocks: Iterable[Signal], context: Reach, unit: int) -> Iterator[tuple[Signal, int, int]]:
        """Yield ``(window, before, count)``: frames ``before`` to ``before + count`` of each window are new.

        Windows have ``WINDOW_FRAMES`` new frames, however the blocks are cut, and ``context`` on both sides, less at the
        ends of the signal. If a subclass has a ``_divisor`` d, the last frames, at most ``d * WINDOW_FRAMES``, are divided
        evenly into windows of at most ``WINDOW_FRAMES / d``, so that a short signal, too, has several. Window shapes, and
        so the rounding of everything computed on them, depend on the signal's length alone.

        Args:
            blocks: pieces of the signal along the last axis, of any lengths; zeros fill up the last frame.
            unit: elements per frame along the last axis.
        """
        held: Signal | None = None  # the signal from frame ``start`` on, the first that is still needed
        start = done = 0  # ``done`` new frames were in the windows so far
        last = self._divisor * WINDOW_FRAMES
        for block in itertools.chain(blocks, [None]):
            if block is not None:
                held = block if held is None else self._library.concatenate([held, block], -1)
            elif held is not None:
                held = self._padded(held, -held.shape[-1] % unit)
            else:
                return
            total = start + held.shape[-1] // unit
            while done < total if block is None else done + last + context.right < total:
                rest, size = total - done, -(-WINDOW_FRAMES // self._divisor)
                count = WINDOW_FRAMES if rest > last else -(-rest // -(-rest // size))
                stop = min(done + count + context.right, total)
                yield held[..., : (stop - start) * unit], done - start, count
                done += count
                keep = max(done - context.left, 0)
                held, start = held[..., (keep - start) * unit :], keep
            held = self._library.concatenate([held], -1)  # a copy, as the caller may fill the same array again

    def _into_items(self, parts: list[Signal], sizes: list[int]) -> list[Signal]:
        """Parts, joined and divided anew into items of these sizes."""
        joined, ends = self._library.concatenate(parts, -1), itertools.accumulate(sizes)
        return [joined[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _batch(self, items: list[Signal]) -> Signal:
        """Items ``[..., n]`` as a batch, shorter ones followed by zeros."""
        length = max(item.shape[-1] for item in items)
        return self._library.stack([self._padded(item, length - item.shape[-1]) for item in items])

    # ---- checks -------------------------------------------------------------------------------------------------

    def _checked_count(self, asked: int | None, most: int | None = None) -> int:
        """The number of quantizers ``asked`` for, by default ``most`` (by default all of the model)."""
        most = self.num_quantizers if most is None else most
        return most if asked is None else whole_number("num_quantizers", asked, 1, most)

    def _checked_codes(self, values: Any, shape: str) -> Signal:
        """The codes as int64; a CodecError if they are not of this ``shape``, or cannot be this model's."""
        codes = self._checked(values, "codes", shape, integers=True)
        if codes.shape[-2] > self.num_quantizers:
            raise CodecError(f"codes have {codes.shape[-2]} stages; this model takes 1 to {self.num_quantizers}")
        if codes.shape[-1] and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise CodecError(f"codes must be from 0 to {self.codebook_size - 1}; are they of another model?")
        return codes

    def _checked(self, values: Any, name: str, shape: str, others: str = "", integers: bool = False) -> Signal:
        """The values as float32 or int64; a CodecError if not of the ``shape``, which it names with the ``others``."""
        array, axes = self._array(values, integers=integers), shape.strip("[]").split(", ")
        sizes = () if array is None else tuple(array.shape)
        if len(sizes) != len(axes) or any(a.isdigit() and a != str(b) for a, b in zip(axes, sizes, strict=True)):
            kind = f"{'an integer' if integers else 'a float'} {self._noun} {shape}{others}"
            unscaled = not integers and "int" in str(getattr(values, "dtype", ""))
            advice = "; divide 16-bit values by 32768" if unscaled else ""
            raise CodecError(f"{name} must be {kind}, not {kind_of(values)}{advice}")
        if 0 in sizes and len(sizes) == 3:  # a block may be empty
            raise CodecError(f"{name} must not be empty")
        return array

    def _checked_block(self, values: Any) -> Signal:
        """A block as float32 ``[T]``; a CodecError if it cannot be part of a waveform."""
        block = self._checked(values, "a block", "[T]")
        check_peak(block)
        return block

    def _each_block(self, blocks: Iterable[Any], check: Callable[[Any], Signal]) -> Iterator[Signal]:
        """The checked blocks of an iterable; a single array is refused, as its rows would be taken for blocks."""
        if hasattr(blocks, "shape"):
            raise CodecError(f"blocks must be a list or another iterable of {self._noun}s, not {kind_of(blocks)}")
        return map(check, blocks)

    # ---- what a subclass provides ---------------------------------------------------------------------------------

    _library: Any  # numpy or torch
    _noun: str  # what it calls an array
    _num_threads = 1  # windows computed side by side
    _divisor = 1  # see _cut_windows
    _array: Callable[..., Any]  # values as float32, or int64 if ``integers``; None if they are none of these
    to_numpy: Callable[[Signal], NDArray[Any]]  # what this codec gives, as an array
    _padded: Callable[[Signal, int], Signal]  # with so many zeros behind the last axis
    _encoded: Callable[[Signal], Signal]  # what the encoder makes [..., n] of a window [T]
    _codes_of: Callable[[Signal, int], Signal]  # of what _encoded gave the codes [K, n], for K
    _refined: Callable[..., Signal]  # of a window [T] the codes [K, n], for ``count`` = K and ``steps``
    _decoded: Callable[[Signal], Signal]  # the waveform [T] of a window of codes [k, n]
    _encoded_at_once: Callable[[list[Signal], int], Signal]  # codes [B, K, N] of items [T], all computed together
    _decoded_at_once: Callable[[list[Signal]], Signal]  # the waveform [B, 1, T] of items [k, n], likewise

    @property
    def num_parameters(self) -> int:
        """Number of weights that training changes; tables that stay as they were drawn do not count."""
        raise NotImplementedError

    def streaming_encoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> Any:
        """Encodes a batch of signals chunk by chunk; together the codes of :meth:`encode`, but for rounding.

        Signals of a ``Codec`` may come and go: ``help("codec.streaming")``. Those of an ``OnnxCodec`` begin and end together.

        Streams keep the level of what is pushed. Where a gain is known ahead (``g = gain_of(earlier, rate)[0]``), push
        ``chunk * 10 ** (-g / 20)``, and multiply what is decoded by ``10 ** (g / 20)``.
        """
        raise NotImplementedError

    def streaming_decoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> Any:
        """Decodes a batch of codes chunk by chunk; together the waveform of :meth:`decode`, but for rounding."""
        raise NotImplementedError


def as_array(values: Any, integers: bool) -> NDArray[Any] | None:
    """A numpy array of any float type as float32, or of any integer type as int64; None for everything else."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in ("iu" if integers else "f"):
        return None
    return values.astype(np.int64 if integers else np.float32)


def kind_of(value: Any) -> str:
    """What an error message says of a value: the type and shape of an array, or its class."""
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def checked_lengths(lengths: Any, batch: int, longest: int, least: int = 1) -> list[int]:
    """Lengths of the items of a batch as ints; None stands for the ``longest`` in each."""
    if lengths is None:
        return [longest] * batch
    if len(lengths) != batch:
        raise CodecError(f"lengths must be {batch} whole numbers, one for each item, not {len(lengths)}")
    return [whole_number("lengths", length, least, longest) for length in lengths]


def _checked_gains(gain_db: Any, batch: int) -> list[float]:
    """Gains as a list with one for each item."""
    gains = np.asarray(gain_db.tolist() if hasattr(gain_db, "tolist") else gain_db, float)
    if gains.shape not in ((), (batch,)) or not (abs(gains) <= MOST_DB).all():
        allowed = f"from {-MOST_DB:g} to {MOST_DB:g}, or one for each of {batch} items"
        raise CodecError(f"gain_db must be a number {allowed}, not {gain_db!r}")
    return np.broadcast_to(gains, batch).tolist()
