"""Codes as tokens of a language model: one sequence of ids, or one sequence per stage with the later stages delayed.

Codes here are int64 ``[..., K, N]``, as ``Codec.encode`` gives them: K stages of ``codebook_size`` codes, N frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codec.errors import CodecError


def flatten(codes: Tensor, codebook_size: int, first_id: int = 0) -> Tensor:
    """One sequence, frame by frame and within a frame stage by stage.

    Args:
        codes: int64 ``[..., K, N]``.
        codebook_size: codes of a stage.
        first_id: the id of code 0 of the first stage; those below it are the language model's own.

    Returns:
        Ids, int64 ``[..., N * K]``: ``first_id + k * codebook_size + code`` for stage k, from 0. Every stage has its own,
        since the same code means another thing in each.

    Raises:
        CodecError: not codes of stages of that size.
    """
    _check_integers(codes, "codes", "[..., K, N]", 2)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise CodecError(f"codes must be from 0 to {codebook_size - 1}; are they of another model?")
    return (codes + _starts(codes.shape[-2], codebook_size, first_id, codes.device)[:, None]).mT.flatten(-2)


def unflatten(tokens: Tensor, num_quantizers: int, codebook_size: int, first_id: int = 0) -> Tensor:
    """Inverse of :func:`flatten`.

    Args:
        tokens: ids, int64 ``[..., N * K]``.
        num_quantizers: K, the stages of a frame in the sequence.
        codebook_size, first_id: as for :func:`flatten`.

    Returns:
        Codes, int64 ``[..., K, N]``.

    Raises:
        CodecError: part of a frame, or an id that is no code of the stage whose place it takes, as a language model may
            write one; the message names the first place.
    """
    _check_integers(tokens, "tokens", "[..., N * K]", 1)
    if tokens.shape[-1] % num_quantizers:
        raise CodecError(f"{tokens.shape[-1]} tokens are not whole frames of {num_quantizers}")
    frames = tokens.unflatten(-1, (tokens.shape[-1] // num_quantizers, num_quantizers))
    codes = frames - _starts(num_quantizers, codebook_size, first_id, tokens.device)
    wrong = ((codes < 0) | (codes >= codebook_size)).flatten(-2)
    if wrong.any():
        place = torch.nonzero(wrong)[0].tolist()
        stage = place[-1] % num_quantizers
        low = first_id + stage * codebook_size
        ids = f"ids of stage {stage + 1} of {num_quantizers} are {low} to {low + codebook_size - 1}"
        raise CodecError(f"token {place} is {tokens[tuple(place)].item()}, but {ids}")
    return codes.mT.contiguous()


def delay(codes: Tensor, fill: int) -> Tensor:
    """Stage k moved k frames to the right: a model that writes all stages at once then knows the coarser of each frame.

    It is the delay pattern of Copet et al. 2023 (arXiv 2306.05284).

    Args:
        codes: int64 ``[..., K, N]``.
        fill: what stands where a stage has no code: before its first and after its last. An id that is no code, as
            ``codebook_size``, keeps the two apart.

    Returns:
        int64 ``[..., K, N + K - 1]``.

    Raises:
        CodecError: not codes of that shape.
    """
    _check_integers(codes, "codes", "[..., K, N]", 2)
    *batch, num_quantizers, frames = codes.shape
    delayed = codes.new_full((*batch, num_quantizers, frames + num_quantizers - 1), fill)
    for k in range(num_quantizers):
        delayed[..., k, k : k + frames] = codes[..., k, :]
    return delayed


def undelay(delayed: Tensor) -> Tensor:
    """Inverse of :func:`delay`; whatever stands in the places of ``fill`` is left out.

    Args:
        delayed: int64 ``[..., K, N + K - 1]``.

    Returns:
        int64 ``[..., K, N]``: the frames that have all their stages.

    Raises:
        CodecError: not of that shape.
    """
    _check_integers(delayed, "delayed", "[..., K, N + K - 1]", 2)
    count, steps = delayed.shape[-2:]
    frames = steps - count + 1
    if frames < 0:
        raise CodecError(f"{count} delayed stages take at least {count - 1} steps, not {steps}")
    return torch.stack([delayed[..., k, k : k + frames] for k in range(count)], dim=-2)


def _starts(num_quantizers: int, codebook_size: int, first_id: int, device: torch.device) -> Tensor:
    """The id of code 0 of every stage, int64 ``[K]``."""
    return first_id + codebook_size * torch.arange(num_quantizers, device=device)


def _check_integers(ids: Tensor, name: str, shape: str, least: int) -> None:
    if ids.dtype != torch.int64 or ids.dim() < least or 0 in ids.shape[-least:-1]:
        raise CodecError(f"{name} must be int64 {shape}, not {ids.dtype} {list(ids.shape)}")
