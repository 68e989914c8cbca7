"""Networks that take a batch of signals chunk by chunk, with explicit state.

Signals may come and go, as the calls of a server do::

    encoder, decoder = model.streaming_encoder(8), model.streaming_decoder(8)
    encoder.push(torch.zeros(8, 1, 1), [0] * 8)     # rows without a signal are ended ...
    encoder.reset([3]), decoder.reset([3])          # ... until one begins in row 3
    samples = decoder.push(encoder.push(chunk, lengths))  # a row ends where its length is below that of the chunk
    own = samples[3, 0, decoder.valid[3]]           # what is final of row 3

``valid`` is bool ``[B, n]``: which entries of the last output belong to their row. The last codes and samples of a row come
out while other rows go on. When all rows have ended, ``decoder.push(encoder.flush())`` and ``decoder.flush()`` give the rest,
and ``reset()`` begins anew. All rows advance together: if the next samples of one row are late, all rows wait, as a shorter
length would end the row. A reset row loses what it still holds; a decoder's row holds nothing more once all samples of its
frames have come out. Use a stream in one thread only, and reset it after an interrupt within ``push``. ``look_ahead`` is how
many samples the output lags behind the input.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from codec.autoencoder import Decoder, Encoder, Layer, float32_inference
from codec.base import FOREVER, MOST_ROWS, as_array, checked_lengths, kind_of
from codec.config import lag, whole_number
from codec.errors import CodecError
from codec.level import check_peak
from codec.quantizers import Quantizer

Stream = TypeVar("Stream", bound="_Stream")


def as_tensor(values: Any, integers: bool) -> Tensor | None:
    """A tensor or an array of any float type as float32, or of any integer type as int64; None for everything else."""
    if not isinstance(values, Tensor):
        array = as_array(values, integers)
        return None if array is None else torch.from_numpy(array)
    if integers:
        return values.long() if "int" in str(values.dtype) else None
    return values.float() if values.is_floating_point() else None


class _Stream:
    """What a network remembers of a batch of signals that arrive chunk by chunk.

    Every layer holds the last inputs that it will need again (its left context and its look-ahead), so nothing is computed
    twice, and its outputs come ``delay`` frames late. Rows may start and end at different times: a row's frames are
    numbered from its own start, and outputs of a layer outside of a row are set to zero, which is the padding that the
    whole signal would have had there.

    Attributes:
        state: everything that changes, by name: a plain dictionary of tensors, the batch first.
        valid: ``[B, n]``, which entries of the last output belong to their row.
        delay: frames by which the last layer's output is late.
    """

    def __init__(
        self, quantizer: Quantizer, layers: Sequence[Layer], weight: Tensor, per_frame: int, batch: int, count: int
    ) -> None:
        self.batch_size = batch = whole_number("batch_size", batch, 1, MOST_ROWS)
        self.quantizer, self.num_quantizers = quantizer, count
        self.valid = torch.zeros(batch, 0, dtype=torch.bool)
        self.state = {
            "age": weight.new_zeros(batch, 1, dtype=torch.int64),  # frames since each row's start; below 0 before it
            "total": weight.new_full((batch, 1), FOREVER, dtype=torch.int64),  # frames of each row
        }
        self._layers: list[tuple[Layer, int, int]] = []  # each with its outputs per frame and its delay
        self.delay = 0
        for layer in layers:
            held, self.delay = lag(layer.left, layer.right, layer.stride, self.delay)
            self.state[f"layer_{len(self._layers)}"] = weight.new_zeros(batch, held, layer.channels)
            per_frame //= layer.stride
            self._layers.append((layer, per_frame, self.delay))

    @property
    def device(self) -> torch.device:
        return self.state["age"].device

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state, to save or to go back to."""
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a state of a stream of the same model and batch size."""
        shapes, own = ({name: tensor.shape for name, tensor in each.items()} for each in (state, self.state))
        if shapes != own:
            raise CodecError("the state is of another model, or of another batch size")
        self.state = {name: tensor.clone().to(self.device) for name, tensor in state.items()}

    def to(self: Stream, device: str | torch.device) -> Stream:
        """Move the state; move the model separately."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        return self

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Begin anew in these rows (default: in all); CodecError: no such row."""
        rows = range(self.batch_size) if rows is None else rows
        chosen = [whole_number("rows", row, 0, self.batch_size - 1) for row in rows]
        # a copy: what was made in inference mode cannot be written to outside of it, and another stream may share it
        self.state = self.state_dict()
        for name, tensor in self.state.items():
            tensor[chosen] = FOREVER if name == "total" else 0

    def _checked_chunk(self, values: Any, integers: bool, rows: int, expected: str) -> Tensor:
        """A chunk ``[B, rows, n]`` as float32 or int64, on the device of the state."""
        self.state = dict(self.state)  # a ``copy.copy`` of the stream keeps its own
        chunk = as_tensor(values, integers)
        if chunk is None or chunk.dim() != 3 or chunk.shape[:2] != (self.batch_size, rows):
            raise CodecError(f"{expected} with B = {self.batch_size}, not {kind_of(values)}")
        return chunk.to(self.device)

    def _valid_mask(self, frames: int, delay: int, per_frame: int = 1) -> Tensor:
        """Which of a layer's next outputs ``[B, frames * per_frame]``, ``delay`` of them late, belong to their row."""
        index = self.state["age"] * per_frame - delay + torch.arange(frames * per_frame, device=self.device)
        return (index >= 0) & (index < self.state["total"] * per_frame)

    def _through_layers(self, x: Tensor, frames: int) -> Tensor:
        mask = functools.cache(functools.partial(self._valid_mask, frames))  # most layers share theirs
        for number, (layer, per_frame, delay) in enumerate(self._layers):
            name = f"layer_{number}"
            x, self.state[name] = layer.push(x, self.state[name])
            x = x * mask(delay, per_frame)[..., None]
        return x

    def _advance_and_trim(self, output: Tensor, valid: Tensor, frames: int) -> Tensor:
        """Count the new frames, set ``valid``, and cut ``output [B, C, n]`` to the places where any row has something."""
        self.state["age"] = self.state["age"] + frames
        places = valid.any(dim=0).nonzero().flatten().tolist() or [0, -1]
        self.valid = valid[:, places[0] : places[-1] + 1]
        return output[..., places[0] : places[-1] + 1]


class StreamingEncoder(_Stream):
    """Samples in, codes out; made by :meth:`codec.model.Codec.streaming_encoder`.

    Attributes:
        look_ahead: samples by which codes lag behind the input: ``delay`` in samples.
    """

    def __init__(self, encoder: Encoder, quantizer: Quantizer, batch_size: int, num_quantizers: int, hop: int) -> None:
        weight = encoder.output.weight.detach()
        super().__init__(quantizer, encoder.layers, weight, hop, batch_size, num_quantizers)
        self.encoder, self.hop_length, self.look_ahead = encoder, hop, self.delay * hop
        self.state["rest"] = weight.new_zeros(self.batch_size, 1, 2 * hop)  # the last samples of every row; see reset
        self.state["waiting"] = torch.zeros_like(self.state["age"])  # how many of them are in no whole frame yet

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Begin anew in these rows (default: in all). Where the other rows wait for the end of a frame, these join them with
        the next frame, so that their output comes up to a frame later. No row ever waits with two full frames of samples.
        """
        super().reset(rows)
        age, waiting = self.state["age"], self.state["waiting"]
        new = (age == 0) & (waiting == 0)
        if not new.all() and waiting[~new].min() > 0:  # the first frame of new rows comes after one of zeros
            waiting[new], age[new] = self.hop_length, -1

    def push(self, samples: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Codes int64 ``[B, K, n]`` that are final now; n may be 0, and -1 stands where a row has no frame.

        Args:
            samples: float ``[B, 1, T]`` in [-1, 1] at the model's rate, the next of every row; any T.
            lengths: ``[B]``, how many of them belong to each row; a row with fewer than T ends there, and ignores what is
                pushed later, until it is reset.

        Raises:
            CodecError: another shape or type, NaN, or without ``lengths`` a stream whose rows have all ended, as after
                flush; the state is as before.
        """
        if lengths is None and bool((self.state["total"] < FOREVER).all()):
            raise CodecError("every row has ended: reset the stream before the next chunk")
        samples = self._checked_chunk(samples, False, 1, "samples must be a float tensor [B, 1, T]")
        count, hop, rest, waiting = samples.shape[-1], self.hop_length, self.state["rest"], self.state["waiting"]
        lengths = checked_lengths(lengths, self.batch_size, count, least=0)
        ends = torch.tensor(lengths, device=self.device)[:, None]
        own = (torch.arange(count, device=self.device) < ends) & (self.state["total"] == FOREVER)
        samples = torch.where(own[:, None], samples, 0)
        check_peak(samples)
        with float32_inference(self.encoder.output.weight):
            joined = torch.cat([rest, samples], dim=-1)
            frames = self.state["age"] - (-(ends + waiting) // hop)  # of a row that ends in this chunk
            self.state["total"] = torch.minimum(self.state["total"], torch.where(ends < count, frames, FOREVER))
            new = (int(waiting.min()) + count) // hop
            self.state["waiting"] = waiting + count - new * hop
            self.state["rest"] = joined[..., count:].clone()  # a view would hold all of it
            if not new:
                return self._advance_and_trim(ends.new_zeros(self.batch_size, self.num_quantizers, 0), own[:, :0], 0)
            places = rest.shape[-1] - waiting + torch.arange(new * hop, device=self.device)  # of each row's frames
            x = self._through_layers(joined.transpose(1, 2).gather(1, places[..., None]), new)
            latents = self.encoder.output(self.encoder.norm(x)).transpose(1, 2)
            codes, valid = self.quantizer(latents, self.num_quantizers).codes, self._valid_mask(new, self.delay)
            return self._advance_and_trim(torch.where(valid[:, None], codes, -1), valid, new)

    def flush(self) -> Tensor:
        """End every row where it stands; the rest of the codes ``[B, K, n]``."""
        waiting = self.state["waiting"]
        frames = self.delay - (-int(waiting.max()) // self.hop_length)
        missing = frames * self.hop_length - int(waiting.min()) + 1
        return self.push(self.state["rest"].new_zeros(self.batch_size, 1, missing), [0] * self.batch_size)


class StreamingDecoder(_Stream):
    """Codes in, samples out; made by :meth:`codec.model.Codec.streaming_decoder`.

    Attributes:
        delay: frames that the network waits for.
        offset: samples by which the waveform lags in addition: the part of a window before its frame.
        look_ahead: both together, in samples.
    """

    def __init__(self, decoder: Decoder, quantizer: Quantizer, batch_size: int, num_quantizers: int) -> None:
        weight, head = decoder.input.weight.detach(), decoder.head
        super().__init__(quantizer, decoder.layers, weight, 1, batch_size, num_quantizers)
        self.decoder, self.hop_length, self.offset = decoder, head.hop_length, head.offset
        self.look_ahead = self.delay * self.hop_length + self.offset
        self.state["sums"] = weight.new_zeros(self.batch_size, 2, head.n_fft - self.hop_length)

    def push(self, codes: Tensor) -> Tensor:
        """Samples float ``[B, 1, t]`` that are final now; t may be 0, and a row holds zeros where it has no samples.

        Args:
            codes: integers ``[B, K, n]``, the next frames of every row; K is that of the stream. -1 in all stages of a
                frame, as StreamingEncoder gives it, means that the row has not begun yet, or has ended.

        Raises:
            CodecError: another shape or type, codes that the model does not have, or a row that goes on after its end;
                the state is as before.
        """
        expected = f"codes must be integers [B, K, n], K = {self.num_quantizers},"
        codes = self._checked_chunk(codes, True, self.num_quantizers, expected)
        new, hop = codes.shape[-1], self.hop_length
        present = codes[:, 0] >= 0  # [B, n]
        size = self.quantizer.codebook_size
        if not torch.where(present[:, None], (codes >= 0) & (codes < size), codes == -1).all():
            raise CodecError(f"codes must be from 0 to {size - 1}, or -1 in all stages; are they of another model?")
        with float32_inference(self.decoder.input.weight):
            if not new:
                return self._advance_and_trim(self.state["sums"][:, :1, :0], present, 0)
            place = torch.arange(new, device=self.device)
            first = torch.where(present, place, new).amin(dim=1, keepdim=True)
            age = torch.where(self.state["age"] == 0, -first, self.state["age"])  # a row begins with its first frame
            index = age + place  # [B, n]
            end = torch.where((index >= 0) & ~present, index, FOREVER).amin(dim=1, keepdim=True)
            total = torch.minimum(self.state["total"], end)
            if (present & (index >= total)).any():
                raise CodecError("a row goes on after its end: reset it before its next frame")
            self.state["age"], self.state["total"] = age, total
            x = self.decoder.input(self.quantizer.decode(codes.clamp(min=0)).transpose(1, 2))
            x = self._through_layers(x * self._valid_mask(new, 0)[..., None], new)
            sums, exists = self.state["sums"], self._valid_mask(new, self.delay)
            samples, self.state["sums"] = self.decoder.head.push_frames(self.decoder.norm(x), exists, sums)
            valid = self._valid_mask(new, self.look_ahead, hop)
            return self._advance_and_trim((samples * valid)[:, None], valid, new)

    def flush(self) -> Tensor:
        """End every row where it stands; the rest of the samples ``[B, 1, t]``."""
        missing = self.delay - (-self.offset // self.hop_length)
        return self.push(torch.full((self.batch_size, self.num_quantizers, missing + 1), -1, device=self.device))
