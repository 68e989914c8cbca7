"""Codec: waveform to codes and back, loading and saving."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.audio import LARGEST_PEAK, resample
from codec.autoencoder import Decoder, Encoder
from codec.config import RATES, CodecConfig, from_dict, to_dict, whole_number
from codec.container import FINGERPRINT_BYTES, Header
from codec.errors import CodecError
from codec.files import as_path, read_json, write_json
from codec.layers import exact
from codec.pretrained import ALIAS, DEFAULT_MODEL, ModelError, find_model, refused
from codec.quantizers import build_quantizer
from codec.streaming import StreamingDecoder, StreamingEncoder
from codec.weights import Bits, Outline, load_weights, save_weights
from codec.windows import overlapping

MOST_CHANNELS = 64  # more than this, and more than there are samples, is taken for a transposed waveform
FEW_CHANNELS = 8  # a first axis of more is not taken for the channels of [C, T]
WINDOW_FRAMES = 1024  # new frames per window: long signals run window by window, short ones in one piece


@dataclass
class CodecOutput:
    """What the training forward pass returns; codes and losses are None without quantization.

    Attributes:
        waveform: ``[B, 1, T]``, as long as the input.
        latents: ``[B, D, N]``, before quantization.
        codes: int64 ``[B, K, N]``.
        commitment_loss, codebook_loss: ``[B, K]``; see QuantizerOutput.
    """

    waveform: Tensor
    latents: Tensor
    codes: Tensor | None = None
    commitment_loss: Tensor | None = None
    codebook_loss: Tensor | None = None


class Codec(nn.Module):
    """A neural speech codec: convolutional encoder, (residual) SimVQ, decoder.

    ``Codec.from_pretrained()`` gives the model inside the package; ``Codec(config)`` a new one with random weights. Worker
    processes must be spawned, not forked: a forked child of a process in which torch has run on threads hangs. Codes and
    audio are computed in float32, also inside an autocast; after ``half()`` or ``bfloat16()`` only ``forward`` works.

    Attributes:
        config: the architecture.
        name: of the model, as stored in ``.codes`` files.
    """

    def __init__(self, config: CodecConfig, name: str = "unnamed") -> None:
        super().__init__()
        if not isinstance(config, CodecConfig):
            raise CodecError(f"Codec takes a CodecConfig, not {config!r}; Codec.from_pretrained takes a name")
        self.config, self.name = config, name
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.decoder = Decoder(config)
        self._hashed: tuple[list[Tensor], list[object], str] = [], [], ""  # see fingerprint

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
    def num_quantizers(self) -> int:
        """Stages K: the most codes a frame can have."""
        return self.quantizer.num_quantizers

    @property
    def codebook_size(self) -> int:
        """Entries V of each stage's codebook."""
        return self.quantizer.codebook_size

    @property
    def bitrate(self) -> float:
        """Bitrate of all quantizers in bit/s: ``frame_rate * num_quantizers * log2(codebook_size)``."""
        return self.bitrate_of(self.num_quantizers)

    def bitrate_of(self, num_quantizers: int) -> float:
        """Bitrate of the first ``num_quantizers`` quantizers in bit/s.

        Raises:
            CodecError: the model has fewer.
        """
        count = self._checked_count(num_quantizers, self.num_quantizers)
        return self.frame_rate * count * float(np.log2(self.codebook_size))

    @property
    def num_parameters(self) -> int:
        """Number of weights that training changes; tables that stay as they were drawn do not count."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the configuration, but for ``decoder.look_ahead``, and of the codebooks' tensors.

        Two models with one fingerprint give a code the same meaning. The tensors are taken as stored, not as computed
        (``C``, ``W``, ``b`` and the projection out rather than their product), so that no rounding of another machine
        changes it. It is computed again only after one of them was written to.
        """
        tensors = [tensor.detach() for tensor in self.quantizer.codebook_state()]
        # torch counts the writes to a tensor; not to one that was made in inference mode, which is hashed each time
        writes = [object() if tensor.is_inference() else tensor._version for tensor in tensors]
        hashed, hashed_writes, _ = self._hashed  # holds the tensors, so that no other one can take their places
        if writes != hashed_writes or any(a.data_ptr() != b.data_ptr() for a, b in zip(tensors, hashed, strict=True)):
            values = to_dict(self.config, retired=True)
            values["decoder"].pop("look_ahead", None)  # the same codes, heard earlier: two decoders may share them
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
            for tensor in tensors:
                digest.update(np.ascontiguousarray(tensor.cpu().numpy(), dtype="<f4").tobytes())
            self._hashed = tensors, writes, digest.hexdigest()
        return self._hashed[-1]

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of ``num_samples`` at the model's sample rate; the last one may be partly filled."""
        return -(-whole_number("num_samples", num_samples, 0, 2**64 - 1) // self.hop_length)

    def header(self, num_samples: int | None, sample_rate: int, num_quantizers: int | None = None) -> Header:
        """What a ``.codes`` file says of codes of this model, for ``codec.container.write``; CodecError if it cannot be.

        Args:
            num_samples: length of what was encoded, per channel, at its own rate; None while it is not known.
            sample_rate: of what was encoded, in Hz.
            num_quantizers: stages of the codes; default all.
        """
        return Header(
            model=self.name,
            fingerprint=self.fingerprint[: 2 * FINGERPRINT_BYTES],
            sample_rate=self.sample_rate,
            original_sample_rate=sample_rate,
            num_samples=num_samples,
            hop_length=self.hop_length,
            num_quantizers=self._checked_count(num_quantizers, self.num_quantizers),
            codebook_size=self.codebook_size,
        )

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(
        self,
        waveform: Tensor,
        quantize: bool = True,
        num_quantizers: int | None = None,
        quantizer_dropout: float = 0.0,
    ) -> CodecOutput:
        """Reconstruct ``[B, 1, T]`` in one piece, with gradients; errors as for encode and decode, which are for use.

        Args:
            waveform: float in [-1, 1] at the model's sample rate.
            quantize: False passes the latents on as they are (autoencoder warm-up).
            num_quantizers: use the first so many stages; default all.
            quantizer_dropout: share of the items that use a random number of stages (residual quantizers).
        """
        waveform = _floats(waveform, "waveform", "[B, 1, T]").to(self.encoder.output.weight.dtype)
        if not torch.compiler.is_compiling():
            _checked_block(waveform.flatten())
        num_quantizers = self._checked_count(num_quantizers, self.num_quantizers)
        length = waveform.shape[-1]
        latents = self.encoder(F.pad(waveform, (0, -length % self.hop_length)))
        if not quantize:
            return CodecOutput(self.decoder(latents)[..., :length], latents)
        output = self.quantizer(latents, num_quantizers, quantizer_dropout)
        return CodecOutput(
            waveform=self.decoder(output.quantized)[..., :length],
            latents=latents,
            codes=output.codes,
            commitment_loss=output.commitment_loss,
            codebook_loss=output.codebook_loss,
        )

    # ---- use ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        waveform: Tensor,
        sample_rate: int,
        num_quantizers: int | None = None,
        lengths: Tensor | list[int] | None = None,
    ) -> Tensor:
        """Codes int64 ``[B, K, N]`` of a waveform; N is ``num_frames`` of its length at the model's rate.

        Every item is computed by itself, long ones in windows of a fixed size: its codes are, bit for bit, the same
        whatever it was batched with, and memory does not grow with its length.

        Args:
            waveform: float in [-1, 1], ``[B, C, T]``, ``[C, T]`` (C <= 8) or ``[T]``, a tensor or array; mixed down.
            sample_rate: of the waveform, in Hz; another one than the model's is resampled.
            num_quantizers: stages to use, 1 to ``codec.num_quantizers``; default all.
            lengths: ``[B]``, samples of each item that count, where a batch of unequal items was padded at the end. The
                codes of a shorter item are followed by zeros.

        Raises:
            CodecError: a shape, type, rate, length or number of quantizers that cannot be, such as more than 64 channels
                of fewer samples (``[B, T, C]``); NaN in the waveform, or a peak beyond 8 (integers not scaled to [-1, 1]).
        """
        items = self._items(waveform, sample_rate, lengths)
        codes = [torch.cat(list(self.encode_blocks([item], num_quantizers)), dim=-1) for item in items]
        frames = max(item.shape[-1] for item in codes)
        return torch.stack([F.pad(item, (0, frames - item.shape[-1])) for item in codes])

    @torch.no_grad()
    def latents(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Latents float ``[B, D, N]`` of a waveform, not quantized; ``encode`` gives the quantizer's codes of these.

        Arguments and errors as for :meth:`encode`, and the same windows. Without gradients; see :meth:`forward`.
        """
        items = self._items(waveform, sample_rate)
        return torch.cat([torch.cat(list(self._latent_windows([item])), dim=-1) for item in items])

    @torch.no_grad()
    def decode(
        self, codes: Tensor, num_quantizers: int | None = None, lengths: Tensor | list[int] | None = None
    ) -> Tensor:
        """Waveform float ``[B, 1, T]`` at the model's sample rate, ``T = N * hop_length`` unless ``lengths`` are given.

        Args:
            codes: integers ``[B, k, N]`` or ``[k, N]``, tensor or array; any prefix of the model's stages decodes.
            num_quantizers: use only the first so many of them.
            lengths: ``[B]``, samples of each item: frames beyond them are not decoded, and shorter waveforms are followed
                by zeros up to the longest.

        Raises:
            CodecError: a shape or type that cannot be, or a code outside ``0 <= code < codebook_size``.
        """
        codes = self._checked_codes(codes[None] if getattr(codes, "ndim", 0) == 2 else codes, "[B, K, N]")
        batch, most, frames = codes.shape
        count = self._checked_count(num_quantizers, most)
        samples = _checked_lengths(lengths, batch, frames * self.hop_length)
        audio = []
        for item, length in zip(codes[:, :count], samples, strict=True):
            waveform = torch.cat(list(self.decode_blocks([item[:, : self.num_frames(length)]])))
            audio.append(F.pad(waveform[:length], (0, max(samples) - length)))
        return torch.stack(audio).unsqueeze(1)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Waveform float ``[B, 1, T]``, ``T = N * hop_length``, of any latents float ``[B, D, N]``, quantized or not.

        ``decode(codes)`` is ``decode_latents(quantizer.decode(codes))``, window by window.

        Raises:
            CodecError: another shape or type.
        """
        latents = _floats(latents, "latents", f"[B, {self.config.latent_dim}, N]")
        audio = [torch.cat(list(self._waveform_windows([item], Tensor.float))) for item in latents]
        return torch.stack(audio).unsqueeze(1)

    @torch.no_grad()
    def encode_blocks(self, blocks: Iterable[Tensor], num_quantizers: int | None = None) -> Iterator[Tensor]:
        """Codes ``[K, n]``, window by window, of one waveform of any length given in blocks ``[T]`` at the model's rate.

        Together exactly what :meth:`encode` gives for the whole; memory is that of one window and one block.

        Raises:
            CodecError: when its turn comes, a block that ``encode`` would refuse.
        """
        count = self._checked_count(num_quantizers, self.num_quantizers)
        for latents in self._latent_windows(blocks):
            with exact(self.encoder.output.weight):
                codes = self.quantizer(latents, count).codes[0]
            yield codes

    @torch.no_grad()
    def decode_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Waveform ``[t]``, window by window, of the codes of one item given in blocks ``[k, n]``; see encode_blocks.

        Raises:
            CodecError: when its turn comes, a block that ``decode`` would refuse.
        """
        checked = _each(blocks, lambda block: self._checked_codes(block, "[k, n]"))
        yield from self._waveform_windows(checked, self.quantizer.decode)

    def _items(self, waveform: Tensor, sample_rate: int, lengths: Tensor | list[int] | None = None) -> list[Tensor]:
        """Every item of a batch as float32 ``[T]`` at the model's rate, without its padding."""
        mono, rate = _checked_waveform(waveform), whole_number("sample_rate", sample_rate, *RATES)
        items = [item[:length] for item, length in zip(mono, _checked_lengths(lengths, *mono.shape), strict=True)]
        if rate == self.sample_rate:
            return items
        return [torch.from_numpy(resample(item.cpu().numpy(), rate, self.sample_rate)) for item in items]

    def _latent_windows(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents ``[1, D, n]``, window by window, of one waveform in blocks ``[T]``."""
        hop, context = self.hop_length, self.encoder.context
        frames = _whole_frames(_each(blocks, _checked_block), hop)
        for window, before, count in overlapping(frames, WINDOW_FRAMES, context, hop, _join):
            with exact(self.encoder.output.weight):
                latents = self.encoder(window.to(self.device)[None, None])
            yield latents[..., before : before + count]

    def _waveform_windows(self, blocks: Iterable[Tensor], to_latents: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Waveform ``[t]``, window by window, of one item's codes or latents in blocks ``[..., n]``."""
        hop = self.hop_length
        for window, before, count in overlapping(blocks, WINDOW_FRAMES, self.decoder.context, 1, _join):
            with exact(self.decoder.input.weight):
                waveform = self.decoder(to_latents(window.to(self.device)[None]))
            if not waveform.isfinite().all():
                raise CodecError("the model gives NaN or infinity: its latents or its weights cannot be right")
            yield waveform[0, 0, before * hop : (before + count) * hop]

    def streaming_encoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> StreamingEncoder:
        """Encodes a batch of signals chunk by chunk; together the codes of :meth:`encode`, but for rounding."""
        count = self._checked_count(num_quantizers, self.num_quantizers)
        return StreamingEncoder(self.encoder, self.quantizer, batch_size, count, self.hop_length)

    def streaming_decoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> StreamingDecoder:
        """Decodes a batch of codes chunk by chunk; together the waveform of :meth:`decode`, but for rounding."""
        count = self._checked_count(num_quantizers, self.num_quantizers)
        return StreamingDecoder(self.decoder, self.quantizer, batch_size, count)

    def _checked_codes(self, codes: Tensor, shape: str) -> Tensor:
        """The codes as int64, if they can be this model's and of this ``shape``."""
        if isinstance(codes, np.ndarray) and codes.dtype.kind in "iu":
            codes = torch.from_numpy(codes.astype(np.int64))
        if not isinstance(codes, Tensor) or codes.ndim != shape.count(",") + 1 or "int" not in str(codes.dtype):
            raise CodecError(f"codes must be int64 {shape}, not {_kind(codes)}")
        codes = codes.long()
        if not 1 <= codes.shape[-2] <= self.num_quantizers:
            raise CodecError(f"codes have {codes.shape[-2]} stages; this model has 1 to {self.num_quantizers}")
        if codes.numel() == 0:
            raise CodecError("codes are empty")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise CodecError(f"codes must be from 0 to {self.codebook_size - 1}; are they of another model?")
        return codes

    def _checked_count(self, asked: int | None, most: int) -> int:
        """A number of quantizers that was asked for; ``most`` by default."""
        return most if asked is None else whole_number("num_quantizers", asked, 1, most)

    # ---- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, model: str | Path = DEFAULT_MODEL, device: str | torch.device = "cpu") -> Codec:
        """Load a model in eval mode: the name of one inside the package, a folder, or a hub id ``owner/name[@revision]``.

        Raises:
            ModelError: no such model or device, or its files cannot be used; says what to do.
        """
        folder = find_model(model)
        by_folder = Path(model).is_dir() or str(model) == ALIAS
        try:
            config = from_dict(CodecConfig, read_json(folder / "config.json"))
            with Outline():
                codec = cls(config, name=folder.resolve().name if by_folder else str(model))
        except CodecError as error:
            raise refused(folder / "config.json", error) from None
        load_weights(codec, folder / "model.safetensors")
        return _on_device(codec, device).eval()

    def save_pretrained(self, folder: str | Path, bits: Bits = 32) -> None:
        """Write ``config.json`` and ``model.safetensors``; from_pretrained reads them back to an equal model.

        Args:
            folder: made if need be; a model in it is replaced.
            bits: of a stored weight of encoder and decoder, 32, 16 or 8 (matrices; whole numbers times a step for each
                row). They are rounded once; what is loaded is float32 again. The quantizer keeps its values, as codes keep
                their meaning: below 32, a random basis that was drawn in 8 bits takes these.

        Raises:
            CodecError: ``folder`` is a file, or ``bits`` none of these.
            OSError: it cannot be written to.
        """
        folder = as_path(folder)
        if folder.exists() and not folder.is_dir():
            raise CodecError(f"{folder} is a file; save_pretrained takes a folder")
        if bits not in get_args(Bits):
            raise CodecError(f"bits must be 32, 16 or 8, not {bits!r}")
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.state_dict(), folder / "model.safetensors", bits)
        write_json(folder / "config.json", to_dict(self.config), indent=2)


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=-1)


def _whole_frames(blocks: Iterable[Tensor], hop_length: int) -> Iterator[Tensor]:
    """The blocks, followed by zeros up to a whole number of frames."""
    total, block = 0, torch.zeros(0)
    for block in blocks:
        total += block.shape[-1]
        yield block
    if total % hop_length:
        yield block.new_zeros(-total % hop_length)


def _floats(values: Any, name: str, shape: str) -> Tensor:
    """A float tensor of a shape such as ``[B, 1, T]``; a numpy array becomes one."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = torch.from_numpy(values.astype(np.float32))
    axes = shape.strip("[]").split(", ")
    fits = isinstance(values, Tensor) and values.is_floating_point() and values.ndim == len(axes)
    if not fits or any(axis.isdigit() and axis != str(size) for axis, size in zip(axes, values.shape, strict=True)):
        raise CodecError(f"{name} must be a float tensor {shape}, not {_kind(values)}")
    if 0 in values.shape and len(axes) > 1:  # a block may be empty
        raise CodecError(f"{name} is empty")
    return values


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else type(value).__name__


def _checked_waveform(waveform: Any) -> Tensor:
    """As float32 mono ``[B, T]``; its values are checked later, block by block."""
    shape = list(getattr(waveform, "shape", ()))
    if len(shape) == 1 or (len(shape) == 2 and (shape[0] == 1 or shape[0] <= FEW_CHANNELS < shape[1])):
        waveform = waveform[(None,) * (3 - len(shape))]
    name = f"waveform in [-1, 1], unless it is [T] or [C, T] of at most {FEW_CHANNELS} channels,"
    waveform = _floats(waveform, name, "[B, C, T]")
    _, channels, samples = waveform.shape
    if channels > MOST_CHANNELS and channels > samples:
        raise CodecError(f"{channels} channels of {samples} samples? If it is [B, T, C], give waveform.transpose(1, 2)")
    return waveform.float().mean(dim=1)


def _each(blocks: Any, check: Callable[[Any], Tensor]) -> Iterator[Tensor]:
    """The checked blocks of an iterable; not a single tensor, whose rows would pass for blocks."""
    if isinstance(blocks, (Tensor, np.ndarray)) or not isinstance(blocks, Iterable):
        raise CodecError(f"blocks must be several tensors, such as a list of them, not {_kind(blocks)}")
    first = None
    for block in map(check, blocks):
        first = block if first is None else first
        if block.shape[:-1] != first.shape[:-1]:
            raise CodecError(f"a block {list(block.shape)} follows one {list(first.shape)}")
        yield block


def _checked_block(block: Any) -> Tensor:
    """As float32 ``[T]``."""
    block = _floats(block, "a block in [-1, 1]", "[T]")
    peak = max(abs(float(extreme)) for extreme in torch.aminmax(block)) if block.numel() else 0.0
    if not math.isfinite(peak):
        raise CodecError("waveform holds NaN or infinity")
    if peak > LARGEST_PEAK:
        raise CodecError(f"waveform must be in [-1, 1], but reaches {peak:g}; divide 16-bit values by 32768")
    return block.float()


def _checked_lengths(lengths: Any, batch: int, longest: int) -> list[int]:
    """As integers; all of them the longest by default."""
    if lengths is None:
        return [longest] * batch
    values = lengths.tolist() if hasattr(lengths, "tolist") else lengths  # tensors and arrays
    if not isinstance(values, list | tuple) or len(values) != batch:
        raise CodecError(f"lengths must be {batch} whole numbers from 1 to {longest}, not {values!r}")
    return [whole_number("lengths", length, 1, longest) for length in values]


def _on_device(codec: Codec, device: str | torch.device) -> Codec:
    try:
        torch.zeros(1, device=device).item()  # some devices can be named but not used
        return codec.to(device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = " ".join(str(error).split(". ")[0].split("\n")[0].split())
        reason = "there is no such kind" if reason.startswith("Expected one of") else reason  # torch names two dozen
        raise ModelError(f"device {device} cannot be used here: {reason}; use --device cpu") from None
