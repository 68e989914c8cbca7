"""Chunk by chunk as all at once: streams of codes and of samples, rows that come and go, mistakes that harm nothing."""

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from loading import LOOKS
from torch import Tensor

from codec import Codec, CodecConfig
from codec.base import FOREVER
from codec.config import DecoderConfig
from codec.errors import CodecError
from codec.streaming import StreamingDecoder, StreamingEncoder

LENGTH = 16000  # 200 frames of the tiny model
CONFIGS = LOOKS | {
    "deeper": {"decoder": DecoderConfig(width=16, depth=5, n_fft=160)},
    "the window alone": {"decoder": DecoderConfig(width=16, depth=5, n_fft=320, look_ahead=2)},
}


@pytest.fixture(scope="module", params=CONFIGS)
def codec(request: pytest.FixtureRequest, tiny_config: CodecConfig) -> Codec:
    torch.manual_seed(3)
    model = Codec(replace(tiny_config, **CONFIGS[request.param])).eval()
    model.quantizer.initialize(model.encoder(speech(0)[None, None]).detach())
    return model


def speech(seed: int, length: int = LENGTH) -> Tensor:
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(seed)).cumsum(0).sin()


def cuts(length: int, longest: int, seed: int) -> list[int]:
    """Random places to cut at, so that chunks are at most so long; some are empty."""
    steps = torch.randint(0, longest, (4 * length,), generator=torch.Generator().manual_seed(seed))
    return [place for place in steps.cumsum(0).tolist() if place < length]


def pushed(stream: StreamingEncoder | StreamingDecoder, values: Tensor, places: list[int]) -> Tensor:
    chunks = [stream.push(chunk) for chunk in values.tensor_split(places, dim=-1)]
    return torch.cat([*chunks, stream.flush()], dim=-1)


@pytest.mark.parametrize(("length", "longest"), [(3000, 60), (LENGTH - 37, 700), (LENGTH, 9000), (81, 60)])
def test_any_chunks_give_what_the_whole_gives(codec: Codec, length: int, longest: int) -> None:
    waveform = speech(1, length)
    codes, places = codec.encode(waveform, codec.sample_rate), cuts(length, longest, seed=length)
    assert torch.equal(pushed(codec.streaming_encoder(), waveform[None, None], places), codes)
    samples = pushed(codec.streaming_decoder(), codes, cuts(codes.shape[-1], max(longest // 80, 2), seed=1))
    assert torch.allclose(samples, codec.decode(codes), atol=1e-5)


def test_nothing_waits_longer_than_the_look_ahead(codec: Codec) -> None:
    hop, waveform = codec.hop_length, speech(2)[None, None]
    encoder, decoder = codec.streaming_encoder(), codec.streaming_decoder()
    codes = encoder.push(waveform)
    assert codes.shape[-1] == LENGTH // hop - encoder.delay
    assert decoder.push(codes).shape[-1] == (codes.shape[-1] - decoder.delay) * hop - decoder.offset
    if codec.config.causal:
        assert encoder.delay == decoder.delay == decoder.offset == 0
    if codec.config.encoder.look_ahead is not None:
        assert encoder.delay == codec.encoder_context.right == codec.config.encoder.look_ahead
    if codec.config.decoder.look_ahead is not None:
        assert decoder.look_ahead <= codec.config.decoder.look_ahead * hop


def test_rows_begin_and_end_by_themselves(codec: Codec) -> None:
    """Row 0 is one long signal; row 1 a short one, then after a reset another."""
    long, first, second = speech(4), speech(5, 4000 - 50), speech(6, 8000)
    ignored = torch.full((LENGTH - 4000 - 8000 + 50,), torch.nan)  # after the end is passed over
    row = torch.cat([first, ignored, second])
    batch = torch.stack([long, row])[:, None]
    encoder = codec.streaming_encoder(batch_size=2)
    outputs = [encoder.push(batch[..., :4000], [4000, len(first)]), encoder.push(batch[..., 4000:8000])]
    encoder.reset(range(1, 2))
    outputs += [encoder.push(batch[..., 8000:]), encoder.flush()]
    codes = torch.cat(outputs, dim=-1)
    assert torch.equal(codes[0], codec.encode(long, codec.sample_rate)[0])
    ends = [codec.encode(part, codec.sample_rate)[0] for part in (first, second)]
    assert torch.equal(codes[1][:, codes[1, 0] >= 0], torch.cat(ends, dim=-1))

    decoder = codec.streaming_decoder(batch_size=2)
    middle = 90  # frames: the first signal of row 1 has ended there, and its last sample is out
    outputs = [(decoder.push(codes[..., :middle])[:, 0], decoder.valid)]
    decoder.reset([1])
    outputs += [(decoder.push(codes[..., middle:])[:, 0], decoder.valid), (decoder.flush()[:, 0], decoder.valid)]
    samples, there = (torch.cat(parts, dim=-1) for parts in zip(*outputs, strict=True))
    assert torch.allclose(samples[0][there[0]], codec.decode(codes[:1])[0, 0], atol=1e-5)
    expected = torch.cat([codec.decode(part[None])[0, 0] for part in ends])
    assert torch.allclose(samples[1][there[1]], expected, atol=1e-5)
    assert not samples[~there].any()

    with pytest.raises(CodecError, match="every row has ended"):  # by the flush
        encoder.push(batch)
    with pytest.raises(CodecError, match="goes on after its end"):
        decoder.push(codes)
    encoder.reset([1]), decoder.reset([1])
    codes = torch.cat([encoder.push(first.expand(2, 1, -1)), encoder.flush()], dim=-1)
    assert (codes[0] == -1).all() and torch.equal(codes[1][:, codes[1, 0] >= 0], ends[0])
    samples, there = decoder.push(codes)[:, 0], decoder.valid
    assert torch.allclose(samples[1][there[1]], codec.decode(ends[0])[0, 0, : there.sum()], atol=1e-5)


def test_rows_begin_anew_within_a_frame(codec: Codec) -> None:
    """Whatever the others wait for; what is final before comes, too."""
    signals, stream = torch.stack([speech(10 + row) for row in range(3)]), codec.streaming_encoder(batch_size=3)
    starts, given = [0, 0, 0], [torch.zeros(3, 0, dtype=torch.int64)] * 3
    for number, (start, stop) in enumerate(pairwise([0, *cuts(LENGTH, 700, seed=3), LENGTH])):
        if number % 5 == 3:
            rows = [number % 3, (number // 3) % 3]
            stream.reset(rows)
            for row in rows:
                starts[row], given[row] = start, torch.zeros(3, 0, dtype=torch.int64)
        codes = [stream.push(signals[:, None, start:stop])]
        codes += [stream.flush()] if stop == LENGTH else []
        for row, own in enumerate(torch.cat(codes, dim=-1)):
            given[row] = torch.cat([given[row], own[:, own[0] >= 0]], dim=-1)
            expected = codec.encode(signals[row, None, None, starts[row] :], codec.sample_rate)[0]
            count, whole = given[row].shape[-1], (stop - starts[row]) // codec.hop_length
            assert torch.equal(given[row], expected[:, :count])
            assert count >= (expected.shape[-1] if stop == LENGTH else whole - stream.delay - 1)


def test_a_state_holds_no_more_than_it_says(codec: Codec) -> None:
    """Not the activations of the whole last chunk; and what was made in inference mode is reset outside of it."""
    encoder, decoder = codec.streaming_encoder(), codec.streaming_decoder()
    with torch.inference_mode():
        decoder.push(encoder.push(speech(1, 8010)[None, None]))
    for stream in (encoder, decoder):
        assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in stream.state.values())
        stream.reset()
        assert stream.state["total"].item() == FOREVER


def test_a_state_can_be_kept_copied_and_gone_back_to(codec: Codec) -> None:
    waveform = speech(7)[None, None]
    stream = codec.streaming_encoder(num_quantizers=2)
    stream.push(waveform[..., :5000])
    state, twin = stream.state_dict(), codec.streaming_encoder(num_quantizers=2)
    rest = torch.cat([stream.push(waveform[..., 5000:]), stream.flush()], dim=-1)
    twin.load_state_dict(state)
    for again in (twin, copy.copy(twin)):
        assert torch.equal(torch.cat([again.push(waveform[..., 5000:]), again.flush()], dim=-1), rest)
    stream.reset()
    assert torch.equal(pushed(stream, waveform, []), codec.encode(waveform, codec.sample_rate, 2))


CODES = torch.zeros(1, 3, 5, dtype=torch.int64)
BAD_SAMPLES: list[tuple[Any, Any, str]] = [
    (torch.zeros(3, 1, 80), None, "B = 2"),
    (torch.zeros(2, 2, 80), None, r"\[B, 1, T\]"),
    (torch.tensor([0.0, torch.nan]).expand(1, 80, 2).permute(2, 0, 1), None, "NaN"),
    (torch.full((2, 1, 80), 32767.0), None, r"in \[-1, 1\], but"),
    (np.zeros((2, 1, 80), np.int16), None, r"float tensor.*not int16 \[2, 1, 80\]"),
    (torch.zeros(2, 1, 80), [80], "lengths must be 2"),
]
BAD_CODES: list[tuple[Any, str]] = [
    (CODES[:, :2], "K = 3"),
    (CODES.float(), "must be integers"),
    (CODES + 32, "from 0 to 31"),
    (CODES.tolist(), "must be integers.*not list"),
    (torch.tensor([0, -1, 0]).view(1, 3, 1), "-1 in all stages"),
    (torch.tensor([-1, 0]).expand(1, 3, 2), "goes on after its end"),
]


def test_bad_chunks_leave_the_state_as_it_was(codec: Codec) -> None:
    encoder, decoder = codec.streaming_encoder(batch_size=2), codec.streaming_decoder()
    encoder.push(speech(8, 1000).expand(2, 1, -1))
    decoder.push(torch.zeros(1, 3, 7, dtype=torch.int64))
    before = encoder.state_dict(), decoder.state_dict()
    for samples, lengths, message in BAD_SAMPLES:
        with pytest.raises(CodecError, match=message):
            encoder.push(samples, lengths)
    for codes, message in BAD_CODES:
        with pytest.raises(CodecError, match=message):
            decoder.push(codes)
    for stream, kept in zip((encoder, decoder), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in stream.state.items())


def test_no_such_batch_and_no_such_state(codec: Codec) -> None:
    with pytest.raises(CodecError, match="batch_size must be"):
        codec.streaming_decoder(2**40)
    with pytest.raises(CodecError, match="rows must be"):
        codec.streaming_encoder().reset([1])
    for other in (codec.streaming_decoder(), codec.streaming_encoder(2)):
        with pytest.raises(CodecError, match="of another model"):
            codec.streaming_encoder().load_state_dict(other.state_dict())


def test_half_precision_never_gives_other_codes(codec: Codec) -> None:
    """Inside an autocast all is computed as outside of it; weights of half precision are refused."""
    waveform = speech(9)[None, None]
    codes, latents = codec.encode(waveform, codec.sample_rate), codec.latents(waveform, codec.sample_rate)
    audio = codec.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(waveform, codec.sample_rate), codes)
        assert torch.equal(codec.latents(waveform, codec.sample_rate), latents)
        assert torch.equal(codec.decode(codes), audio)
        assert torch.equal(pushed(codec.streaming_encoder(), waveform, [4000]), codes)
        assert torch.allclose(pushed(codec.streaming_decoder(), codes, [50]), audio, atol=1e-5)
    encoder, decoder = codec.streaming_encoder(), codec.streaming_decoder()
    for cast in ("half", "bfloat16", "double"):
        other = getattr(copy.deepcopy(codec), cast)()
        encode = partial(other.encode, sample_rate=codec.sample_rate), other.streaming_encoder().push
        decode = other.decode, other.streaming_decoder().push
        for call, value in [*((call, waveform) for call in encode), *((call, codes) for call in decode)]:
            with pytest.raises(CodecError, match=r"weights are torch\.\w+, which would give other codes"):
                call(value)
    assert torch.equal(pushed(encoder, waveform, []), codes) and decoder.push(codes).shape[-1]
