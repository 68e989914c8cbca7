"""Codes to token ids and back: known answers, round trips, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codec.tokens import delay, flatten, undelay, unflatten

CODES = torch.tensor([[0, 1, 2], [9, 8, 7]])  # 2 stages of 10 codes, 3 frames


def test_known_answers() -> None:
    assert flatten(CODES, 10).tolist() == [0, 19, 1, 18, 2, 17]
    assert flatten(CODES, 10, first_id=5).tolist() == [5, 24, 6, 23, 7, 22]
    assert delay(CODES, fill=10).tolist() == [[0, 1, 2, 10], [10, 9, 8, 7]]


@pytest.mark.parametrize("shape", [(8, 5), (1, 5), (3, 8, 5), (2, 3, 4, 1), (4, 0), (2, 4, 0)])
def test_what_was_flattened_or_delayed_comes_back(shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 1024, shape, generator=torch.Generator().manual_seed(0))
    tokens = flatten(codes, 1024, first_id=3)
    stages, frames = shape[-2:]
    assert tokens.shape == (*shape[:-2], stages * frames)
    assert torch.equal(unflatten(tokens, stages, 1024, first_id=3), codes)
    if codes.numel():
        assert tokens.min() >= 3 and tokens.max() < 3 + stages * 1024
    delayed = delay(codes, fill=-1)
    assert delayed.shape == (*shape[:-1], frames + stages - 1)
    assert (delayed == -1).sum() == math.prod(shape[:-2]) * stages * (stages - 1)
    assert torch.equal(undelay(delayed), codes)


def test_one_stage_is_left_as_it_is() -> None:
    codes = CODES[:1]
    assert torch.equal(flatten(codes, 10), codes[0]) and torch.equal(delay(codes, fill=10), codes)


def test_frames_without_all_their_stages_are_left_out() -> None:
    """A sequence that was stopped early, after three of its four steps."""
    assert undelay(delay(CODES, fill=10)[:, :3]).tolist() == CODES[:, :2].tolist()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: flatten(CODES, 9), "from 0 to 8"),
        (lambda: flatten(CODES - 1, 10), "from 0 to 9"),
        (lambda: flatten(CODES.float(), 10), "codes must be int64"),
        (lambda: flatten(CODES[0], 10), r"\[3\]"),
        (lambda: unflatten(torch.arange(5), 2, 10), "5 tokens are not whole frames of 2"),
        (
            lambda: unflatten(torch.tensor([0, 11, 12, 1]), 2, 10),
            r"token \[2\] is 12, but ids of stage 1 of 2 are 0 to 9",
        ),
        (
            lambda: unflatten(torch.tensor([[0, 11], [0, 4]]), 2, 10),
            r"token \[1, 1\] is 4, but ids of stage 2 of 2 are 10 to 19",
        ),
        (
            lambda: unflatten(torch.tensor([4, 10]), 2, 10, first_id=5),
            r"token \[0\] is 4, but ids of stage 1 of 2 are 5 to 14",
        ),
        (lambda: delay(torch.zeros(0, 3, dtype=torch.int64), 1), r"\[0, 3\]"),
        (lambda: undelay(torch.zeros(4, 2, dtype=torch.int64)), "at least 3 steps, not 2"),
    ],
)
def test_what_is_no_code_is_named(call: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
