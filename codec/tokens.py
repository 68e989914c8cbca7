"""Codes as tokens of a language model, as numpy arrays or torch tensors; functions return int64 of the same kind.

Codes are integers ``[..., K, N]``, as ``Codec.encode`` gives them: K stages of ``codebook_size`` codes, N frames. A language
model writes them in one of three patterns, which are the same with one stage:

- interleaved, :func:`flatten`: N * K steps of one id; every stage has its own ids. A code can depend on all before it.
- parallel, the codes as they are: N steps of K codes, which depend on earlier frames only and not on each other.
- delayed, :func:`delay`: N + K - 1 steps of K codes; a code can depend on the coarser ones of its own frame, too.

In the output of a language model, ``invalid`` says what to do with a frame that is not complete: "refuse" raises an error,
"drop" leaves it out and moves later frames up, "mask" makes all its codes -1, which ``Codec.decode`` refuses and which ends a
row of a streaming decoder. All functions raise CodecError for arrays that are not integers of the
right shape.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError

if TYPE_CHECKING:
    from torch import Tensor

Ids = TypeVar("Ids", "Tensor", "NDArray[Any]")
Invalid = Literal["refuse", "drop", "mask"]


@dataclass(frozen=True)
class TokenLayout:
    """The vocabulary of interleaved codes: code c of stage k, from 0, is ``first_id + k * codebook_size + c``.

    Begin, end and pad follow the last code. For parallel or delayed codes, take one stage: each has such a vocabulary.
    """

    num_quantizers: int
    codebook_size: int
    first_id: int = 0

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids that are no codes, by name: begin, end and pad."""
        stop = self.first_id + self.num_quantizers * self.codebook_size
        return {"begin": stop, "end": stop + 1, "pad": stop + 2}

    @property
    def vocab_size(self) -> int:
        """One more than the last id; ids below ``first_id``, of text for example, are counted too."""
        return self.special_ids["pad"] + 1

    def to_tokens(self, codes: Ids) -> Ids:
        """Begin, the codes ``[..., K, N]`` as :func:`flatten` gives them, end: ``[..., N * K + 2]``."""
        values = _array(codes, "codes", "[..., K, N]")
        if values.shape[-2] != self.num_quantizers:
            raise CodecError(f"codes have {values.shape[-2]} stages, the layout has {self.num_quantizers}")
        begin, end, _ = self.special_ids.values()
        edges = [(0, 0)] * (values.ndim - 2) + [(1, 1)]
        ids = flatten(values, self.codebook_size, self.first_id)
        return _like(np.pad(ids, edges, constant_values=(begin, end)), codes)

    def to_codes(self, tokens: Ids, invalid: Invalid = "refuse") -> Ids:
        """Codes ``[K, N]`` of one sequence ``[L]`` that a language model has written, without its prompt.

        Begin may be missing; the codes stop at the first end, or where only pads follow. Any other id that is no
        code of its place is ``invalid``. Errors count places from the first id after begin.
        """
        begin, end, pad = self.special_ids.values()
        ids = _array(tokens, "tokens", "[L]")
        ids = ids[int(ids[:1].tolist() == [begin]) : np.append(ids, end).tolist().index(end)]
        ids = ids[: np.flatnonzero(np.append(True, ids != pad))[-1]]
        return _like(resync(ids, self.num_quantizers, self.codebook_size, self.first_id, invalid), tokens)


def flatten(codes: Ids, codebook_size: int, first_id: int = 0) -> Ids:
    """Interleaved tokens ``[..., N * K]`` of codes ``[..., K, N]``: frame by frame, and in a frame stage by stage.

    Every stage has its own ids, see :class:`TokenLayout`. CodecError: a code not from 0 to ``codebook_size - 1``.
    """
    values = clean(_array(codes, "codes", "[..., K, N]"), codebook_size)
    *batch, count, frames = values.shape
    first = first_id + codebook_size * np.arange(count)  # of each stage
    return _like((values + first[:, None]).swapaxes(-1, -2).reshape(*batch, frames * count), codes)


def unflatten(tokens: Ids, num_quantizers: int, codebook_size: int, first_id: int = 0) -> Ids:
    """Inverse of :func:`flatten`: codes ``[..., K, N]`` of tokens ``[..., N * K]``.

    CodecError: only part of a frame at the end, or an id that is no code of the stage at its place.
    """
    count, size = num_quantizers, codebook_size
    ids = _array(tokens, "tokens", "[..., N * K]")
    *batch, length = ids.shape
    if length % count:
        raise CodecError(f"{length} tokens are not whole frames of {count}")
    stages, codes = np.divmod(ids.reshape(*batch, length // count, count) - first_id, size)
    for place in np.argwhere((stages != np.arange(count)).reshape(ids.shape)).tolist():
        low = first_id + place[-1] % count * size
        allowed = f"ids of stage {place[-1] % count + 1} of {count} are {low} to {low + size - 1}"
        raise CodecError(f"token {place} is {ids[tuple(place)]}, but {allowed}")
    return _like(codes.swapaxes(-1, -2), tokens)


def resync(tokens: Ids, num_quantizers: int, codebook_size: int, first_id: int = 0, invalid: Invalid = "drop") -> Ids:
    """Codes ``[K, N]`` of one whole interleaved sequence ``[L]`` in which tokens are missing, wrong or too many.

    A frame is K codes of stage 0, 1, ..., K - 1 in a row; ids that are no codes may be between them. So a missing or extra
    token costs only its own frame. Two faults cannot be detected: a wrong code of the right stage, and K missing tokens in a
    row, the tail of one frame and the head of the next, which leave one frame of two.

    With "mask", n tokens without a whole frame become ``round(n / K)`` frames of -1; "refuse" does as :func:`unflatten`.
    """
    if invalid == "refuse":
        return unflatten(tokens, num_quantizers, codebook_size, first_id)
    count, size = num_quantizers, codebook_size
    ids, order = _array(tokens, "tokens", "[L]"), np.arange(count)
    places = np.flatnonzero((ids >= first_id) & (ids < first_id + count * size))
    stages, codes = np.divmod(ids[places] - first_id, size)
    windows = np.lib.stride_tricks.sliding_window_view(np.append(stages, 0 * order - 1), count)
    frames = np.flatnonzero((windows == order).all(axis=-1))[:, None] + order  # [N, K], which of the codes
    begins, ends = np.append(places[frames[:, 0]], len(ids)), np.append(0, places[frames[:, -1]] + 1)
    lost = (2 * (begins - ends) + count) // (2 * count)  # frames before each and after the last
    masked = np.full((count, len(frames) + lost.sum()), -1, np.int64)
    masked[:, np.arange(len(frames)) + lost[:-1].cumsum()] = codes[frames].T
    return _like(clean(masked, size, invalid), tokens)


def clean(codes: Ids, codebook_size: int, invalid: Invalid = "refuse") -> Ids:
    """Parallel or undelayed codes ``[..., K, N]``, bad frames treated as ``invalid`` says; "drop" takes ``[K, N]``."""
    values = _array(codes, "codes", "[..., K, N]")
    whole = np.all((values >= 0) & (values < codebook_size), axis=-2, keepdims=True)  # [..., 1, N]
    if invalid == "refuse" and not whole.all():
        raise CodecError(f"codes must be from 0 to {codebook_size - 1}; are they of another model?")
    if invalid not in get_args(Invalid) or (invalid == "drop" and values.ndim != 2):
        raise CodecError(f"invalid must be refuse, mask or, for one item [K, N], drop; not {invalid!r}")
    return _like(values[:, whole[0]] if invalid == "drop" else np.where(whole, values, -1), codes)


def delay(codes: Ids, fill: int) -> Ids:
    """Stage k moved k frames to the right, as Copet et al. 2023 (arXiv 2306.05284): ``[..., K, N] -> [..., K, N + K - 1]``.

    ``fill`` is put where a stage has no code, at both ends; take an id that is no code, such as ``codebook_size``.
    """
    values = _array(codes, "codes", "[..., K, N]")
    *batch, count, frames = values.shape
    delayed = np.full((*batch, count, frames + count - 1), fill, np.int64)
    for k in range(count):
        delayed[..., k, k : k + frames] = values[..., k, :]
    return _like(delayed, codes)


def undelay(delayed: Ids) -> Ids:
    """Inverse of :func:`delay`, ``[..., K, N + K - 1] -> [..., K, N]``: the frames that have all their stages."""
    values = _array(delayed, "delayed", "[..., K, N + K - 1]")
    count, steps = values.shape[-2:]
    frames = steps - count + 1
    if frames < 0:
        raise CodecError(f"{count} delayed stages take at least {count - 1} steps, not {steps}")
    return _like(np.stack([values[..., k, k : k + frames] for k in range(count)], axis=-2), delayed)


def _array(ids: Any, name: str, shape: str) -> NDArray[np.int64]:
    """A copy of ``ids`` as int64; a CodecError if they are not integers of that shape. ``...`` is any number of axes."""
    array, axes = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids), shape.count(",") + ("..." not in shape)
    array = array if array.size else array.astype(np.int64)  # an empty list, which is float64
    fits = array.ndim >= axes if "..." in shape else array.ndim == axes
    if array.dtype.kind not in "iu" or not fits or 0 in array.shape[-axes:-1]:
        raise CodecError(f"{name} must be integers {shape}, not {array.dtype} {list(array.shape)}")
    return array.astype(np.int64)


def _like(array: NDArray[Any], ids: Any) -> Any:
    """The array as it is, or as a tensor on the device of ``ids`` if these are a tensor."""
    return sys.modules["torch"].from_numpy(array).contiguous().to(ids.device) if hasattr(ids, "cpu") else array
