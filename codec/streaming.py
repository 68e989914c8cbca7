"""Networks that take a batch of signals chunk by chunk, with explicit state."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from codec.audio import LARGEST_PEAK
from codec.config import whole_number
from codec.errors import CodecError
from codec.layers import Layer, exact

if TYPE_CHECKING:
    from typing_extensions import Self

    from codec.autoencoder import Decoder, Encoder
    from codec.quantizers import Quantizer


FOREVER = 2**40  # frames of a row whose end is not known yet
MOST_ROWS = 2**16  # of a batch, far beyond any use


class _Stream:
    """What a network remembers of a batch of signals that arrive chunk by chunk.

    Every layer holds the last inputs that it will need again (its left context and its look-ahead), so nothing is computed
    twice, and gives its outputs ``delay`` frames late. Rows may start and end at different times: a row's frames are
    numbered from its own start, and what a layer gives outside of a row is set to zero, which is the padding that the
    whole signal would have had there.

    Attributes:
        state: everything that changes, by name: a plain dictionary of tensors.
        valid: ``[B, n]``, which entries of the last output belong to their row.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size = whole_number("batch_size", batch_size, 1, MOST_ROWS)
        self.valid = torch.zeros(batch_size, 0, dtype=torch.bool)
        self.state = {
            "age": torch.zeros(batch_size, 1, dtype=torch.int64, device=device),  # frames since each row's start
            "total": torch.full((batch_size, 1), FOREVER, device=device),  # frames of each row
            "flushed": torch.zeros((), dtype=torch.bool),
        }

    @property
    def device(self) -> torch.device:
        return self.state["age"].device

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state, to save or to go back to."""
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a state of a stream of the same model and batch size."""

        def shapes(tensors: dict[str, Tensor]) -> dict[str, object]:  # samples of a frame begun may be of any number
            return {
                name: (tensor.dtype, tensor.shape[: 2 if name == "rest" else None]) for name, tensor in tensors.items()
            }

        fits = isinstance(state, dict) and all(isinstance(tensor, Tensor) for tensor in state.values())
        if not fits or shapes(state) != shapes(self.state):
            raise CodecError("the state is of another model, or of another batch size")
        self.state = {name: tensor.clone().to(self.device) for name, tensor in state.items()}

    def to(self, device: str | torch.device) -> Self:
        """Move the state; the model moves by itself."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        return self

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Begin anew, in these rows or in all of them.

        Raises:
            CodecError: no such row; or samples that make no whole frame yet are waiting in the rows that go on.
        """
        chosen = list(range(self.batch_size)) if rows is None else self._whole("rows", rows, self.batch_size - 1)
        everything = set(chosen) == set(range(self.batch_size))
        if self.state["flushed"] and not everything:
            raise CodecError("the stream was flushed: reset all rows")
        if "rest" in self.state:
            if everything:
                self.state["rest"] = self.state["rest"][..., :0]
            elif self.state["rest"].shape[-1]:
                raise CodecError("single rows are reset between whole frames only: push the rest of this frame first")
        for name, tensor in self.state.items():
            if name not in ("flushed", "rest"):
                value = FOREVER if name == "total" else 0
                tensor.index_fill_(1 if name == "sums" else 0, torch.tensor(chosen, device=self.device), value)
        self.state["flushed"] = torch.zeros((), dtype=torch.bool)

    @staticmethod
    def _whole(name: str, values: Any, most: int) -> list[int]:
        """Whole numbers of any library, as ints."""
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, list | tuple):
            raise CodecError(f"{name} must be a list of whole numbers, not {values!r}")
        return [whole_number(name, value, 0, most) for value in values]

    def _check_open(self) -> None:
        if self.state["flushed"]:
            raise CodecError("the stream was flushed: reset it before the next chunk")

    def _index(self, count: int, delay: int, per_frame: int = 1) -> Tensor:
        """Numbers ``[B, count]`` in their rows of what a layer gives now, ``per_frame`` to a frame and ``delay`` late."""
        return self.state["age"] * per_frame - delay + torch.arange(count, device=self.device)

    def _inside(self, index: Tensor, per_frame: int = 1) -> Tensor:
        return (index >= 0) & (index < self.state["total"] * per_frame)

    def _trimmed(self, output: Tensor, valid: Tensor) -> Tensor:
        """``output [B, C, n]`` from the first to the last place that any row has."""
        places = valid.any(dim=0).nonzero().flatten()
        first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        self.valid = valid[:, first:end]
        return output[..., first:end]


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _layers(*stages: nn.Module) -> Iterator[Layer]:
    """The layers of sequences, in their order."""
    for layer in itertools.chain.from_iterable(cast(Iterable[nn.Sequential], stages)):
        assert isinstance(layer, Layer)
        yield layer


class StreamingEncoder(_Stream):
    """Samples in, codes out; made by :meth:`codec.model.Codec.streaming_encoder`.

    Attributes:
        delay: frames by which codes lag behind the samples.
        look_ahead: the same in samples.
    """

    def __init__(self, encoder: Encoder, quantizer: Quantizer, batch_size: int, num_quantizers: int, hop: int) -> None:
        device = encoder.output.weight.device
        super().__init__(batch_size, device)
        self.encoder, self.quantizer, self.num_quantizers, self.hop_length = encoder, quantizer, num_quantizers, hop
        self.delay, per_frame = 0, hop
        self._layers: list[tuple[str, Layer, int, int]] = []  # with outputs per frame, and delay
        self.state["rest"] = torch.zeros(batch_size, 1, 0, device=device)  # samples that are no whole frame yet
        for number, layer in enumerate(_layers(*encoder.stages)):
            wait = -self.delay % layer.stride  # until what comes late comes in whole strides
            held = layer.left + layer.delay * layer.stride + wait
            self.delay = (self.delay + wait) // layer.stride + layer.delay
            per_frame //= layer.stride
            self.state[f"layer_{number}"] = torch.zeros(batch_size, held, layer.channels, device=device)
            self._layers.append((f"layer_{number}", layer, per_frame, self.delay))
        self.look_ahead = self.delay * hop

    @torch.no_grad()
    def push(self, samples: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Codes int64 ``[B, K, n]`` that are final now; n may be 0, and -1 stands where a row has no frame.

        Args:
            samples: float ``[B, 1, T]`` in [-1, 1] at the model's rate, the next of every row; any T.
            lengths: ``[B]``, how many of them belong to each row; a row with fewer than T ends there, and what is pushed
                to it later is passed over, until it is reset.

        Raises:
            CodecError: another shape or type, NaN, or the stream was flushed; the state is as before.
        """
        self._check_open()
        fits = isinstance(samples, Tensor) and samples.dim() == 3 and samples.is_floating_point()
        if not fits or samples.shape[:2] != (self.batch_size, 1):
            raise CodecError(
                f"samples must be a float tensor [B, 1, T] with B = {self.batch_size}, not {_kind(samples)}"
            )
        if not bool(samples.isfinite().all()):
            raise CodecError("samples hold NaN or infinity")
        if bool((samples.abs() > LARGEST_PEAK).any()):
            raise CodecError(
                f"samples must be in [-1, 1], but reach beyond {LARGEST_PEAK:g}; divide 16-bit values by 32768"
            )
        count = samples.shape[-1]
        if lengths is not None and len(lengths := self._whole("lengths", lengths, count)) != self.batch_size:
            raise CodecError(f"lengths must be {self.batch_size} whole numbers from 0 to {count}, not {lengths}")
        in_float32 = exact(self.encoder.output.weight)
        samples = samples.to(self.device, torch.float32)
        waiting = self.state["rest"].shape[-1]
        if lengths is not None:
            ends = torch.tensor(lengths, device=self.device)[:, None]
            samples = samples * (torch.arange(count, device=self.device) < ends)[:, None]
            frames = self.state["age"] - (-(ends + waiting) // self.hop_length)
            ending = (ends < count) & (self.state["total"] == FOREVER)
            self.state["total"] = torch.where(ending, frames, self.state["total"])
        joined = torch.cat([self.state["rest"], samples], dim=-1)
        new = joined.shape[-1] // self.hop_length
        self.state["rest"] = joined[..., new * self.hop_length :]
        if new == 0:
            self.valid = self.valid[:, :0]
            return torch.zeros(self.batch_size, self.num_quantizers, 0, dtype=torch.int64, device=self.device)
        with in_float32:
            return self._advance(joined[..., : new * self.hop_length], new)

    def flush(self) -> Tensor:
        """End every row where it stands; the rest of the codes ``[B, K, n]``."""
        missing = -self.state["rest"].shape[-1] % self.hop_length
        codes = self.push(
            self.state["rest"].new_zeros(self.batch_size, 1, missing + self.delay * self.hop_length + 1),
            [0] * self.batch_size,
        )
        self.state["flushed"] = torch.ones((), dtype=torch.bool)
        self.state["rest"] = self.state["rest"][..., :0]
        return codes

    def _advance(self, samples: Tensor, new: int) -> Tensor:
        inside = self._inside(self._index(new * self.hop_length, 0, self.hop_length), self.hop_length)
        x = samples.transpose(1, 2) * inside[..., None]
        for name, layer, per_frame, delay in self._layers:
            x, self.state[name] = layer.push(x, self.state[name])
            x = x * self._inside(self._index(new * per_frame, delay, per_frame), per_frame)[..., None]
        latents = self.encoder.output(self.encoder.norm(x)).transpose(1, 2)
        codes = self.quantizer(latents, self.num_quantizers).codes
        valid = self._inside(self._index(new, self.delay))
        self.state["age"] = self.state["age"] + new
        return self._trimmed(torch.where(valid[:, None], codes, -1), valid)


class StreamingDecoder(_Stream):
    """Codes in, samples out; made by :meth:`codec.model.Codec.streaming_decoder`.

    Attributes:
        delay: frames by which the blocks lag; samples lag by ``offset`` more, the part of a window before its frame.
        look_ahead: both together, in samples.
    """

    def __init__(self, decoder: Decoder, quantizer: Quantizer, batch_size: int, num_quantizers: int) -> None:
        weight = decoder.input.weight
        super().__init__(batch_size, weight.device)
        self.decoder, self.quantizer, self.num_quantizers = decoder, quantizer, num_quantizers
        self.hop_length, self.offset = decoder.head.hop_length, decoder.head.offset
        self.delay = 0
        self._layers: list[tuple[str, Layer, int]] = []
        for number, block in enumerate(_layers(decoder.blocks)):
            self.delay += block.delay
            held = torch.zeros(batch_size, block.left + block.delay, block.channels, device=weight.device)
            self.state[f"layer_{number}"] = held
            self._layers.append((f"layer_{number}", block, self.delay))
        self.look_ahead = self.delay * self.hop_length + self.offset
        rest = decoder.head.n_fft - self.hop_length
        self.state["sums"] = weight.new_zeros(2, batch_size, rest)

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """Samples float ``[B, 1, t]`` that are final now; t may be 0, and rows that have none there hold zeros.

        Args:
            codes: int64 ``[B, K, n]``, the next frames of every row; K as the stream was made for. -1 in all stages of a
                frame says that the row has none: it has not begun yet, or has ended (as StreamingEncoder gives them).

        Raises:
            CodecError: another shape or type, codes that the model does not have, a row that goes on after its end, or
                the stream was flushed; the state is as before.
        """
        self._check_open()
        fits = isinstance(codes, Tensor) and codes.dim() == 3 and codes.dtype == torch.int64
        if not fits or codes.shape[:2] != (self.batch_size, self.num_quantizers):
            shape = f"[B, K, n] with B = {self.batch_size} and K = {self.num_quantizers}"
            raise CodecError(f"codes must be an int64 tensor {shape}, not {_kind(codes)}")
        count = codes.shape[-1]
        in_float32 = exact(self.decoder.input.weight)
        codes = codes.to(self.device)
        there = codes[:, 0] >= 0  # [B, n]
        size = self.quantizer.codebook_size
        if not bool(torch.where(there[:, None], (codes >= 0) & (codes < size), codes == -1).all()):
            raise CodecError(f"codes must be from 0 to {size - 1}, or -1 in all stages; are they of another model?")
        if count == 0:
            self.valid = self.valid[:, :0]
            return torch.zeros(self.batch_size, 1, 0, device=self.device)
        age, total = self._with_bounds(there, count)
        self.state["age"], self.state["total"] = age, total
        with in_float32:
            return self._advance(codes.clamp(min=0), count)

    def flush(self) -> Tensor:
        """End every row where it stands; the rest of the samples ``[B, 1, t]``."""
        missing = self.delay - (-self.offset // self.hop_length)
        samples = self.push(torch.full((self.batch_size, self.num_quantizers, missing + 1), -1, device=self.device))
        self.state["flushed"] = torch.ones((), dtype=torch.bool)
        return samples

    def _with_bounds(self, there: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Age and total ``[B, 1]`` of rows that may begin or end within this chunk."""
        age, total = self.state["age"], self.state["total"]
        place = torch.arange(count, device=self.device)
        first = torch.where(there, place, count).amin(dim=1, keepdim=True)
        waiting = (age == 0) & (total == FOREVER)
        age = torch.where(waiting, age - first, age)
        index = age + place  # [B, n]
        gone = ~there & (index >= 0) & (index < total)
        end = torch.where(gone, index, FOREVER).amin(dim=1, keepdim=True)
        total = torch.minimum(total, end)
        again = (there & (index >= total)).any(dim=1)
        if bool(again.any()):
            raise CodecError(f"row {int(again.nonzero()[0])} has ended: reset it before its next frame")
        return age, total

    def _advance(self, codes: Tensor, new: int) -> Tensor:
        x = self.decoder.input(self.quantizer.decode(codes).transpose(1, 2))
        x = x * self._inside(self._index(new, 0))[..., None]
        for name, block, delay in self._layers:
            x, self.state[name] = block.push(x, self.state[name])
            x = x * self._inside(self._index(new, delay))[..., None]
        index = self._index(new, self.delay)
        samples, self.state["sums"] = self.decoder.head.push_frames(
            self.decoder.norm(x), index, self.state["total"], self.state["sums"]
        )
        late = self.delay * self.hop_length + self.offset
        valid = self._inside(self._index(new * self.hop_length, late, self.hop_length), self.hop_length)
        self.state["age"] = self.state["age"] + new
        return self._trimmed((samples * valid)[:, None], valid)
