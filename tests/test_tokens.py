"""Codes to token ids and back: known answers, round trips, what a language model may write, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec import CodecError
from codec.tokens import TokenLayout, clean, delay, flatten, resync, undelay, unflatten

CODES = np.array([[0, 1, 2], [9, 8, 7]])  # 2 stages of 10 codes, 3 frames
TOKENS = [0, 19, 1, 18, 2, 17]
Drawn = tuple[TokenLayout, NDArray[Any]]


@st.composite
def layouts_and_codes(draw: st.DrawFn, least_stages: int = 1, least_frames: int = 0) -> Drawn:
    layout = TokenLayout(draw(st.integers(least_stages, 5)), draw(st.integers(1, 40)), draw(st.integers(0, 9)))
    frames = draw(st.integers(least_frames, 6))
    values = st.lists(st.integers(0, layout.codebook_size - 1), min_size=frames, max_size=frames)
    codes = [draw(values) for _ in range(layout.num_quantizers)]
    return layout, np.array(codes, dtype=np.int64).reshape(layout.num_quantizers, frames)


def test_known_answers() -> None:
    assert flatten(CODES, 10).tolist() == TOKENS
    assert flatten(CODES, 10, first_id=5).tolist() == [5, 24, 6, 23, 7, 22]
    assert delay(CODES, fill=10).tolist() == [[0, 1, 2, 10], [10, 9, 8, 7]]
    layout = TokenLayout(2, 10, first_id=5)
    assert layout.special_ids == {"begin": 25, "end": 26, "pad": 27} and layout.vocab_size == 28
    assert layout.to_tokens(CODES).tolist() == [25, 5, 24, 6, 23, 7, 22, 26]


@given(layouts_and_codes(), st.integers(0, 3), st.booleans(), st.sampled_from([None, "int64", "<i4", ">i4", ">u2"]))
def test_every_round_trip(drawn: Drawn, pads: int, begun: bool, kind: str | None) -> None:
    """Tensors give tensors, and arrays in any byte order give arrays, of int64."""
    (layout, array), tensors = drawn, kind is None
    codes: Any = torch.from_numpy(array.astype(np.int16)) if tensors else array.astype(kind)
    sizes = layout.num_quantizers, layout.codebook_size, layout.first_id
    tokens, wrapped = flatten(codes, *sizes[1:]), layout.to_tokens(codes)
    specials = list(layout.special_ids.values())
    assert len({*tokens.tolist(), *specials}) == len(set(tokens.tolist())) + 3
    assert max(wrapped) < layout.vocab_size and min(wrapped) >= layout.first_id
    written = np.pad(np.asarray(wrapped)[0 if begun else 1 :], (0, pads), constant_values=layout.special_ids["pad"])
    written = torch.from_numpy(written) if tensors else written
    for back in (
        unflatten(tokens, *sizes),
        *(resync(tokens, *sizes, invalid=policy) for policy in ("refuse", "drop", "mask")),
        *(layout.to_codes(written, policy) for policy in ("refuse", "drop", "mask")),
        undelay(delay(codes, fill=-1)),
        *(clean(codes, layout.codebook_size, policy) for policy in ("refuse", "drop", "mask")),
    ):
        assert isinstance(back, torch.Tensor if tensors else np.ndarray)
        np.testing.assert_array_equal(np.asarray(back), array, strict=True)
    batch = np.stack([array, array[:, ::-1]])[None]  # [1, 2, K, N]
    assert layout.to_tokens(batch).shape == (1, 2, array.size + 2)
    for back in (unflatten(flatten(batch, *sizes[1:]), *sizes), undelay(delay(batch, fill=-1))):
        np.testing.assert_array_equal(back, batch)


@given(layouts_and_codes(least_stages=2, least_frames=1), st.data())
def test_a_missing_token_costs_its_frame_and_an_id_that_is_no_code_nothing(drawn: Drawn, data: st.DataObject) -> None:
    layout, codes = drawn
    tokens = layout.to_tokens(codes)
    place = data.draw(st.integers(1, len(tokens) - 2))
    frame = (place - 1) // layout.num_quantizers
    written, masked = np.delete(tokens, place), codes.copy()
    masked[:, frame] = -1
    np.testing.assert_array_equal(layout.to_codes(written, "drop"), np.delete(codes, frame, axis=1))
    np.testing.assert_array_equal(layout.to_codes(written, "mask"), masked)
    spurious = data.draw(st.sampled_from([-100, layout.first_id - 1, layout.special_ids["pad"], layout.vocab_size]))
    written = np.insert(tokens, place, spurious)
    np.testing.assert_array_equal(layout.to_codes(written, "drop"), codes)
    with pytest.raises(CodecError):
        layout.to_codes(written)


@given(layouts_and_codes(least_frames=1), st.data())
def test_a_spurious_token_costs_its_frame(drawn: Drawn, data: st.DataObject) -> None:
    """In a stage's own place it cannot be told from the right one; the other frames are as they were all the same."""
    layout, codes = drawn
    tokens = flatten(codes, layout.codebook_size, layout.first_id)
    place = data.draw(st.integers(0, len(tokens)))
    spurious = data.draw(st.integers(0, layout.special_ids["begin"] - 1))
    frames = layout.to_codes(np.insert(tokens, place, spurious), "drop").T.tolist()
    frame, inside = divmod(place, layout.num_quantizers)
    before, after = codes.T[:frame].tolist(), codes.T[frame + (inside > 0) :].tolist()
    assert frames[: len(before)] == before and frames[len(frames) - len(after) :] == after
    assert len(frames) <= codes.shape[1] + (layout.num_quantizers == 1)


def test_masked_frames_keep_the_times() -> None:
    text = 1  # an id below first_id
    assert resync(np.array([5, 15, 6, text, 7, 17]), 2, 10, 5, "mask").tolist() == [[0, -1, 2], [0, -1, 2]]
    assert resync(np.array([3, text, 4]), 1, 10, 2, "mask").tolist() == [[1, -1, 2]]
    assert resync(np.array([text] * 4), 2, 10, 5, "mask").tolist() == [[-1, -1], [-1, -1]]
    parallel = np.array([[0, 10, 2], [3, 4, 5]])
    assert clean(parallel, 10, "mask").tolist() == [[0, -1, 2], [3, -1, 5]]
    assert clean(parallel, 10, "drop").tolist() == [[0, 2], [3, 5]]
    late_end = np.pad(delay(CODES, fill=10), ((0, 0), (0, 2)), constant_values=10)
    assert clean(undelay(late_end), 10, "drop").tolist() == CODES.tolist()
    assert undelay(delay(CODES, fill=10)[:, :3]).tolist() == CODES[:, :2].tolist(), "after three of its four steps"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flatten(CODES, 9), "from 0 to 8"),
        (lambda: flatten(CODES.astype(float), 10), "codes must be integers .*, not float64"),
        (lambda: flatten(CODES[0], 10), r"\[3\]"),
        (lambda: unflatten(np.arange(5), 2, 10), "5 tokens are not whole frames of 2"),
        (lambda: unflatten(torch.tensor([[0, 11], [0, 4]]), 2, 10), r"\[1, 1\] is 4, but ids of stage 2 of 2 are 10"),
        (lambda: unflatten(np.array([5, 15, 4, 15]), 2, 10, 5), r"\[2\] is 4, but ids of stage 1 of 2 are 5 to 14"),
        (lambda: resync(np.zeros((1, 4), dtype=int), 2, 10), r"integers \[L\], not int64 \[1, 4\]"),
        (lambda: resync(np.array(TOKENS), 2, 10, invalid="keep"), "refuse, mask or, for one item .*, drop; not 'keep'"),
        (lambda: delay(np.zeros((0, 3), dtype=int), 1), r"\[0, 3\]"),
        (lambda: undelay(np.zeros((4, 2), dtype=int)), "at least 3 steps, not 2"),
        (lambda: TokenLayout(3, 10).to_tokens(CODES), "codes have 2 stages, the layout has 3"),
    ],
)
def test_what_is_no_code_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        call()
