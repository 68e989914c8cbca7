"""Codec: waveform to codes and back, loading and saving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from codec.autoencoder import Decoder, Encoder, float32_inference
from codec.base import WINDOW_FRAMES, CodecBase
from codec.config import CodecConfig, to_dict
from codec.errors import CodecError
from codec.files import atomic_write, write_json
from codec.level import check_peak
from codec.pretrained import DEFAULT_MODEL, ModelError, read_model
from codec.quantizers import build_quantizer
from codec.refine import refine
from codec.streaming import StreamingDecoder, StreamingEncoder, as_tensor
from codec.weights import Bits, Outline, load_weights, save_weights

FRAMES_AT_ONCE = 2**15  # of all rows of a batch together: bounds the memory where it is computed as one (exact=False)


@dataclass
class CodecOutput:
    """What the training forward pass returns; codes and losses are None without quantization."""

    waveform: Tensor  # [B, 1, T], as long as the input
    latents: Tensor  # [B, D, N], before quantization
    quantized: Tensor  # [B, D, N], what is decoded; without quantization the latents themselves
    codes: Tensor | None = None  # int64 [B, K, N]
    commitment_loss: Tensor | None = None  # [B, K]; see QuantizerOutput
    codebook_loss: Tensor | None = None


class Codec(nn.Module, CodecBase[Tensor]):
    """A neural speech codec: convolutional encoder, (residual) SimVQ, decoder.

    ``Codec.from_pretrained()`` gives the model inside the package; ``Codec(config)`` a new one with random weights.
    Waveforms and codes are tensors or numpy arrays; what methods return are tensors, with gradients only from ``forward``
    and ``embed``. Begin with ``help(Codec.encode)``, ``help(Codec.decode)`` and ``help(Codec.gain_of)``.

    Codes and audio are computed in float32, also inside an autocast, and refused after ``half()`` or ``bfloat16()``. Keep
    torch's defaults, TF32 off and ``torch.set_float32_matmul_precision`` at "highest": others may change codes. ``forward``,
    for training, has the precision of the autocast around it: its codes can differ from those of ``encode``.

    Spawn worker processes: where torch has run on threads, a forked child hangs. Workers of a DataLoader may be forked as
    well, but not started by "forkserver", which cannot send so many tensors.
    """

    _library, _noun = torch, "tensor"
    _array = staticmethod(as_tensor)

    def __init__(self, config: CodecConfig, name: str = "unnamed") -> None:
        super().__init__()
        if not isinstance(config, CodecConfig):
            raise CodecError(f"Codec takes a CodecConfig, not {config!r}; Codec.from_pretrained takes a name")
        self.config, self.name = config, name
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config.quantizer, config.latent_dim)
        self.num_quantizers, self.codebook_size = self.quantizer.num_quantizers, self.quantizer.codebook_size
        self.decoder = Decoder(config)

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        state = self.quantizer.codebook_state()
        arrays = (tensor.detach().cpu().float().numpy() for tensor in state)
        return self.quantizer.kept("fingerprint", state, lambda: self._fingerprint_of(arrays))

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(
        self,
        waveform: Tensor,
        quantize: bool = True,
        num_quantizers: int | None = None,
        quantizer_dropout: float = 0.0,
    ) -> CodecOutput:
        """Reconstruct ``[B, 1, T]`` in one piece, with gradients, for training; errors as for encode and decode.

        Args:
            waveform: float in [-1, 1] at the model's sample rate.
            quantize: False passes the latents on as they are (autoencoder warm-up).
            num_quantizers: use the first so many stages; default all.
            quantizer_dropout: share of the items that use a random number of stages (residual quantizers).
        """
        waveform = self._checked(waveform, "waveform", "[B, 1, T]")
        if not torch.compiler.is_compiling():
            check_peak(waveform)
        num_quantizers = self._checked_count(num_quantizers)
        length = waveform.shape[-1]
        latents = self.encoder(F.pad(waveform, (0, -length % self.hop_length)))
        if not quantize:
            return CodecOutput(self.decoder(latents)[..., :length], latents, latents)
        output = self.quantizer(latents, num_quantizers, quantizer_dropout)
        waveform = self.decoder(output.quantized)[..., :length]
        losses = output.commitment_loss, output.codebook_loss
        return CodecOutput(waveform, latents, output.quantized, output.codes, *losses)

    # ---- use ------------------------------------------------------------------------------------------------------

    def latents(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Latents float ``[B, D, N]`` of a waveform, not quantized: as :meth:`encode` at a gain of 0, and its errors."""
        items = self._items_at_model_rate(waveform, sample_rate)
        checked = ([self._checked_block(item)] for item in items)
        windows = self._compute_windows(self._encoded, checked, self.encoder_context, self.hop_length)
        return torch.cat(self._into_items([*windows], [self.num_frames(len(item)) for item in items]))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Waveform float ``[B, 1, T]``, ``T = N * hop_length``, of any latents float ``[B, D, N]``, quantized or not.

        No gradients pass; use ``codec.decoder(latents)`` for that, which computes all at once and rounds differently.
        ``decode(codes)`` is ``decode_latents(quantizer.decode(codes))``, window by window. CodecError: another shape or type.
        """
        latents = self._checked(latents, "latents", f"[B, {self.config.latent_dim}, N]")
        windows = self._compute_windows(self._decoded_latents, ([item] for item in latents), self.decoder_context, 1)
        return torch.cat(list(windows)).view(len(latents), 1, -1)

    def embed(self, codes: Tensor) -> Tensor:
        """Vectors ``[B, D, N]`` of codes ``[B, k, N]``, summed over their stages, with gradient to the codebooks."""
        return self.quantizer.embed(self._checked_codes(codes, "[B, K, N]").to(self.device))

    def streaming_encoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> StreamingEncoder:
        count = self._checked_count(num_quantizers)
        return StreamingEncoder(self.encoder, self.quantizer, batch_size, count, self.hop_length)

    def streaming_decoder(self, batch_size: int = 1, num_quantizers: int | None = None) -> StreamingDecoder:
        return StreamingDecoder(self.decoder, self.quantizer, batch_size, self._checked_count(num_quantizers))

    # ---- what CodecBase needs --------------------------------------------------------------------------------------

    def _encoded(self, window: Tensor) -> Tensor:
        """Latents ``[1, D, n]`` of a window ``[T]``."""
        with float32_inference(self.encoder.output.weight):
            return self.encoder(window.to(self.device)[None, None])

    def _codes_of(self, frames: Tensor, count: int) -> Tensor:
        with float32_inference(self.encoder.output.weight):
            return self.quantizer(frames, count).codes[0]

    def _refined(self, window: Tensor, count: int, steps: int) -> Tensor:
        latents, waveform = self._finite(self._encoded(window)), window.to(self.device)[None]
        with float32_inference(self.decoder.input.weight):
            return refine(latents, waveform, self.sample_rate, self.quantizer, self.decoder, count, steps)[0]

    def _decoded(self, codes: Tensor) -> Tensor:
        with float32_inference(self.decoder.input.weight):
            return self._decoded_latents(self.quantizer.decode(codes.to(self.device)[None])[0])

    def _decoded_latents(self, latents: Tensor) -> Tensor:
        with float32_inference(self.decoder.input.weight):
            return self.decoder(latents.to(self.device)[None])[0, 0]

    def _encoded_at_once(self, items: list[Tensor], count: int) -> Tensor:
        """Encode all items together, by a stream whose rows end where the items end."""
        batch = self._batch(items)[:, None]  # [B, 1, T]
        stream, size = self.streaming_encoder(len(items), count), self._frames_at_once(len(items)) * self.hop_length
        codes = [
            stream.push(chunk, [min(max(len(item) - i * size, 0), chunk.shape[-1]) for item in items])
            for i, chunk in enumerate(batch.split(size, dim=-1))
        ]
        return torch.cat([*codes, stream.flush()], dim=-1).clamp(min=0)  # the stream says -1 after a row's end

    def _decoded_at_once(self, items: list[Tensor]) -> Tensor:
        frames = max(item.shape[-1] for item in items)
        codes = torch.stack([F.pad(item, (0, frames - item.shape[-1]), value=-1) for item in items])  # [B, k, N]
        stream = self.streaming_decoder(*codes.shape[:2])
        parts = codes.split(self._frames_at_once(len(items)), dim=-1)
        return self._finite(torch.cat([*map(stream.push, parts), stream.flush()], dim=-1))

    @staticmethod
    def _frames_at_once(rows: int) -> int:
        return max(1, min(WINDOW_FRAMES, FRAMES_AT_ONCE // rows))

    def to_numpy(self, signal: Tensor) -> NDArray[Any]:
        """A tensor that this codec returned, as a numpy array."""
        return signal.detach().cpu().numpy()

    def _padded(self, signal: Tensor, count: int) -> Tensor:
        return F.pad(signal, (0, count))

    # ---- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(cls, model: str | Path = DEFAULT_MODEL, device: str | torch.device = "cpu") -> Codec:
        """Load a model in eval mode: the name of one inside the package, a folder, or a hub id ``owner/name[@revision]``.

        Raises:
            ModelError: no such model or device, or its files cannot be used; says what to do.
        """
        folder, config, name = read_model(model)
        try:
            with torch.device("cpu"), Outline():  # whatever torch's default device is
                codec = cls(config, name)
        except CodecError as error:
            raise ModelError(f"{folder / 'config.json'} cannot be used: {error}") from None
        load_weights(codec, folder / "model.safetensors")
        try:
            torch.zeros(1, device=device).item()  # some devices can be named but not used
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ModelError(f"device {device} cannot be used here: {reason}; use --device cpu") from None
        return codec.to(device).eval()

    def save_pretrained(self, folder: str | Path, bits: Bits = 32, base: str | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; from_pretrained reads them back to an equal model.

        Args:
            folder: made if need be; a model in it is replaced.
            bits: 32, 16 or 8 for each weight of encoder and decoder in the file (8: matrices as whole numbers times one
                step per row); loaded, they are float32 again. The quantizer keeps its values, as codes keep their meaning.
            base: a shipped model; tensors equal to those of its file are left out, and read from there at loading.

        Raises:
            CodecError: ``bits`` has another value.
            OSError: ``folder`` is a file, or cannot be written to.
        """
        if bits not in get_args(Bits):
            raise CodecError(f"bits must be 32, 16 or 8, not {bits!r}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # both are written before one is replaced: a full disk leaves no mixture of two models
        with atomic_write(folder / "config.json") as path:
            write_json(path, to_dict(self.config), indent=2)
            save_weights(self.state_dict(), folder / "model.safetensors", bits, base)
