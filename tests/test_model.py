"""The codec as a whole: shapes, exactness over batches and windows, context, loading and saving."""

import copy
import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import codec.autoencoder
import codec.base
from codec import CodecError
from codec.autoencoder import ConvNeXtBlock, Linear
from codec.config import CodecConfig, DecoderConfig, EncoderConfig, QuantizerConfig, Reach
from codec.model import Codec
from codec.pretrained import ModelError

ENCODER = EncoderConfig(strides=(4, 5, 4), widths=(8, 12, 16), depths=(1, 1, 2))
QUANTIZER = QuantizerConfig(num_quantizers=3, codebook_size=50, codebook_dim=4)
DECODER = DecoderConfig(width=16, depth=2, n_fft=320)
BOTH_SIDES = CodecConfig(8000, 16, False, ENCODER, QUANTIZER, DECODER)
CONFIGS = {"both_sides": BOTH_SIDES, "causal": dataclasses.replace(BOTH_SIDES, causal=True)}


def make(config: CodecConfig) -> Codec:
    torch.manual_seed(0)
    model = Codec(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(1.0)  # blocks count in full, so that a wrong context would show
        model.quantizer.initialize(model.encoder(noise(1, 8000)))
    return model


SMALL = Codec(CONFIGS["causal"])


def noise(batch: int, samples: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> Codec:
    return make(CONFIGS[request.param])


def test_bitrates_of_a_codebook_whose_size_is_no_power_of_two(model: Codec) -> None:
    assert model.bitrate == model.bitrate_of(3) == pytest.approx(100 * 3 * 5.643856)
    assert model.bitrate_of(1) == pytest.approx(564.3856)


def test_forward_reaches_every_parameter(model: Codec) -> None:
    output = model.train()(noise(2, 800))
    assert output.commitment_loss is not None and output.codebook_loss is not None
    (output.waveform.square().mean() + output.commitment_loss.mean() + output.codebook_loss.mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    model.zero_grad()
    assert model(noise(2, 800), quantize=False).codes is None
    model.eval()


def test_windows_leave_no_seam_and_latents_lie_between(model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short windows give what one window over the whole gives, so the declared context is wide enough."""
    x = noise(2, 80 * 100 + 13)
    codes, latents = model.encode(x, 8000), model.latents(x, 8000)
    audio = model.decode(codes)
    assert latents.shape == (2, 16, 101)
    for size in (1024, 7, 32):
        monkeypatch.setattr(codec.base, "WINDOW_FRAMES", size)
        assert torch.equal(model.encode(x, 8000), codes)
        torch.testing.assert_close(model.latents(x, 8000), latents, atol=2e-6, rtol=1e-4)
        assert torch.equal(model.quantizer(model.latents(x, 8000)).codes, codes)
        for decoded in (model.decode(codes), model.decode_latents(model.quantizer.decode(codes))):
            torch.testing.assert_close(decoded, audio, atol=2e-6, rtol=1e-4)
    assert not torch.equal(model.decode_latents(latents.double()), audio)  # quantization loses something


@pytest.mark.parametrize("product", [None, getattr(torch.ops.mkldnn, "_linear_pointwise", None)])
@pytest.mark.parametrize("rows", [1, 15, 16, 100])
def test_a_linear_layer_is_torchs_however_computed(rows: int, product: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of order in memory as well; with gradients, and in half precision where that is asked for."""
    layer, x = Linear(24, 40), torch.randn(24, 1, rows).permute(1, 2, 0)
    expected, calls = torch.nn.functional.linear(x, layer.weight, layer.bias), []
    counted = product and (lambda *args: calls.append(len(args[0])) or product(*args))
    monkeypatch.setattr(codec.autoencoder, "ONEDNN", counted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        assert calls == [128] * (rows >= 16 and product is not None)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
    assert torch.autograd.gradcheck(layer, x.double().requires_grad_(), fast_mode=True)


@given(
    pieces=st.lists(st.integers(0, 40), max_size=8),
    size=st.integers(1, 9),
    context=st.builds(Reach, st.integers(0, 12), st.integers(0, 12)),
    unit=st.integers(1, 3),
    divisor=st.integers(1, 3),
)
def test_windows_hold_every_frame_once(pieces: list[int], size: int, context: Reach, unit: int, divisor: int) -> None:
    """With its context, however the signal comes in; it is filled up with zeros."""
    frames = -(-sum(pieces) // unit)
    signal = torch.arange(1, sum(pieces) + 1)
    padded = torch.cat([signal, signal.new_zeros(frames * unit - len(signal))])
    done, ending = 0, set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec.base, "WINDOW_FRAMES", size)
        patch.setattr(Codec, "_divisor", divisor)
        for window, before, count in SMALL._cut_windows(signal.split(pieces), context, unit):
            if frames - done > divisor * size:
                assert count == size
            else:
                ending.add(count)
            first, last = max(done - context.left, 0), min(done + count + context.right, frames)
            assert before == done - first
            assert torch.equal(window, padded[first * unit : last * unit])
            done += count
    assert done == frames and max(ending, default=0) - min(ending, default=0) <= 1
    assert max(ending, default=1) <= -(-size // divisor)


def test_pieces_of_a_block_are_its_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec.autoencoder, "HIDDEN_ELEMENTS", 2000)
    block, x = ConvNeXtBlock(16, Reach(3, 3), scale=0.5), torch.randn(1, 90, 16)
    with torch.no_grad():
        pieces = block(x)
    torch.testing.assert_close(pieces, block(x))


@pytest.mark.parametrize("frames", [1, 2, 3, 11, 20])
def test_use_equals_the_training_forward_pass(model: Codec, frames: int) -> None:
    """However few the frames: small matrix products round otherwise than large ones."""
    x = noise(1, 80 * frames)
    with torch.no_grad():
        latents, output, codes = model.encoder(x), model(x), model.encode(x, 8000)
    assert torch.equal(codes, output.codes)
    assert torch.equal(model.quantizer(latents).quantized, model.quantizer.decode(codes))
    torch.testing.assert_close(model.decode(codes), output.waveform, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_an_item_does_not_depend_on_its_batch(model: Codec, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit where it is computed alone, but for rounding where all items are computed at once, 5 frames by 5."""
    monkeypatch.setattr("codec.model.FRAMES_AT_ONCE", 20)
    lengths = [500, 80, 1333, 1]
    batch = torch.full((4, 1, 1333), 0.7)  # whatever the padding holds
    for i, length in enumerate(lengths):
        batch[i, :, :length] = noise(1, length, seed=i)
    codes = model.encode(batch, 8000, lengths=lengths, exact=exact)
    padded = torch.where(torch.arange(17) * model.hop_length < torch.tensor(lengths)[:, None, None], codes, -1)
    audio = model.decode(padded, lengths=lengths, exact=exact)
    assert audio.shape == (4, 1, 1333) and codes.shape == (4, 3, 17)
    for i, length in enumerate(lengths):
        alone = model.encode(batch[i : i + 1, :, :length], 8000)
        frames = model.num_frames(length)
        assert torch.equal(codes[i, :, :frames], alone[0]) and not codes[i, :, frames:].any()
        difference = audio[i, :, :length] - model.decode(alone)[0, :, :length]
        assert difference.abs().max() <= (0 if exact else 1e-5) and not audio[i, :, length:].any()


def test_codes_follow_the_signal_not_its_level(model: Codec) -> None:
    """To the bit for powers of two; each item of a batch has its own gain, and its level comes back."""
    signal = noise(1, 4000)[0, 0]
    scales, lengths = [1.0, 0.5, 2**-9, 0.1], [4000, 4000, 4000, 4000]
    batch = torch.stack([scale * signal for scale in scales])[:, None]
    gains = model.gain_of(batch, 8000, lengths)
    codes = model.encode(batch, 8000, lengths=lengths, gain_db=gains)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    assert (codes[0] != codes[3]).float().mean() < 0.01
    assert not torch.equal(codes[0], model.encode(batch, 8000)[2])
    audio = model.decode(codes, gain_db=gains)
    torch.testing.assert_close(audio[2] * 2**9, audio[0])
    assert torch.equal(audio[0], model.decode(codes[:1], gain_db=gains[0])[0])
    assert torch.equal(model.decode(codes, gain_db=torch.zeros(4)), model.decode(codes))


MONO, SHORT, CODES = torch.zeros(1, 1, 800), torch.zeros(80), torch.zeros(1, 3, 9, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(9, 800), 8000), r"of at most 8 channels, not torch.float32 \[9, 800\]"),
        (lambda m: m.encode(np.zeros(800, np.int16), 8000), "float tensor .*not int16 .*; divide 16-bit values"),
        (lambda m: m.encode([0.0] * 800, 8000), "float tensor .*, not list"),
        (lambda m: m.encode(torch.zeros(800, dtype=torch.complex64), 8000), "float tensor"),
        (lambda m: m.encode(torch.zeros(1, 24000, 2), 8000), r"24000 channels of 2 samples.*swapaxes\(-1, -2\)"),
        (lambda m: m.encode(torch.zeros(0), 8000), "empty"),
        (lambda m: m.encode(MONO, 0), "sample_rate must be from 1000 to 768000"),
        (lambda m: m.encode(MONO, 8000, num_quantizers=4), "from 1 to 3"),
        (lambda m: m.encode(MONO, 8000, lengths=[801]), "from 1 to 800"),
        (lambda m: m.encode(MONO, 8000, gain_db=[0.0, 0.0]), "from -200 to 200, or one for each of 1 items"),
        (lambda m: m.decode(CODES, gain_db=float("nan")), "gain_db must be .*, not nan"),
        (lambda m: m.gain_of(torch.full((800,), 32767.0), 8000), "reaches 32767; divide"),
        (lambda m: m.decode(np.zeros((1, 4, 9), int)), "4 stages; this model takes 1 to 3"),
        (lambda m: m.decode(CODES + 50), "from 0 to 49"),
        (lambda m: m.decode(np.full((3, 9), 2**63, np.uint64)), "from 0 to 49"),
        (lambda m: m.decode(np.zeros((3, 9))), r"not float64 \[1, 3, 9\]"),
        (lambda m: m.decode(CODES[0, :, 0]), r"not torch.int64 \[3\]"),
        (lambda m: m.decode(CODES, num_quantizers=1.5), "whole number from 1 to 3"),
        (lambda m: m.decode(CODES, lengths=[1, 2]), "1 whole numbers"),
        (lambda m: list(m.encode_blocks([SHORT, SHORT.short()])), "float tensor"),
        (lambda m: list(m.encode_blocks([SHORT, torch.full((80,), 3e38)])), "reaches 3e"),
        (lambda m: list(m.encode_blocks([SHORT], num_quantizers=0)), "from 1 to 3"),
        (lambda m: list(m.encode_blocks(SHORT[None])), "blocks must be a list"),
        (lambda m: list(m.decode_blocks([CODES[0] + 50])), "from 0 to 49"),
        (lambda m: list(m.decode_blocks(CODES)), "blocks must be a list"),
        (lambda m: list(m.decode_blocks([CODES])), r"an integer tensor \[k, n\]"),
        (lambda m: m.encode(SHORT, 16000, refine_steps=2, exact=False), "refine_steps go with exact=True"),
        (lambda m: m.decode_latents(torch.zeros(16, 9)), r"tensor \[B, 16, N\], not torch.float32 \[16, 9\]"),
        (lambda m: m.decode_latents(torch.full((1, 16, 9), torch.nan)), "gives NaN"),
        (lambda m: m(torch.full((1, 1, 800), torch.nan)), "NaN"),
        (lambda m: m(torch.zeros(1, 800)), r"float tensor \[B, 1, T\], not torch.float32 \[1, 800\]"),
        (lambda m: m(MONO, num_quantizers=0), "from 1 to 3"),
        (lambda m: m.header(800, 8000, 4), "from 1 to 3"),
        (lambda m: m.check(Codec(BOTH_SIDES).header(800, 8000)), "another model: .*; load the one that it names"),
        (lambda m: m.bitrate_of(4), "from 1 to 3"),
        (lambda m: Codec("speech-24khz"), "takes a CodecConfig, not 'speech-24khz'"),
        (lambda m: Codec.from_pretrained("someone/something"), "hub"),
        (lambda m: m.save_pretrained("x", bits="8"), "bits must be 32, 16 or 8"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[Codec], object], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        call(SMALL)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_waveforms_as_loaders_give_them(model: Codec, channels: int) -> None:
    """Channels first without a batch, of numpy, in other float types, their rate a number without dimensions."""
    x = torch.randn(channels, 801, generator=torch.Generator().manual_seed(1)) * 0.1
    codes = model.encode(x[None], 8000)
    assert torch.equal(model.encode(x, torch.tensor(8000)), codes)
    assert torch.equal(model.encode(x.numpy(), np.int32(8000)), codes)
    assert torch.equal(model.encode(x.numpy()[None, :, ::-1][..., ::-1].astype(">f8"), 8000.0), codes)
    frozen = x.numpy()
    frozen.flags.writeable = False
    assert torch.equal(model.encode(frozen, 8000), codes) and torch.equal(model.encode(x, 8000, lengths=[801]), codes)
    assert torch.equal(model.latents(x.double(), 8000), model.latents(x[None], 8000))
    mono = (sum(x) / channels).numpy()
    same = torch.empty(267)
    filled_again = (same.copy_(torch.from_numpy(part)) for part in mono.reshape(3, 267))
    for blocks in ([mono[:300], mono[300:]], [torch.from_numpy(mono).double()], filled_again):
        assert torch.equal(torch.cat(list(model.encode_blocks(blocks)), dim=-1), codes[0])
    with torch.no_grad():
        assert torch.equal(model(x[:1, None].double()).waveform, model(x[:1, None]).waveform)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_codes_of_every_integer_type(model: Codec, dtype: str) -> None:
    codes = torch.randint(0, 50, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    audio, array = model.decode(codes), codes.numpy().astype(dtype)
    assert torch.equal(model.decode(array), audio) and torch.equal(model.decode(array[0]), audio[:1])
    assert torch.equal(model.decode(codes.to(getattr(torch, dtype))), audio)
    assert torch.equal(torch.cat(list(model.decode_blocks([array[0][:, :3], array[0][:, 3:]]))), audio[0, 0])


# ---- files ------------------------------------------------------------------------------------------------------------


def test_save_and_load_give_an_equal_model(model: Codec, tmp_path: Path) -> None:
    """Inside and outside inference mode, whatever torch's defaults, without drawing random numbers."""
    model.save_pretrained(tmp_path / "m")
    waveform, before = noise(1, 801), torch.get_rng_state()
    codes = model.encode(waveform, 8000)
    with torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                loaded = Codec.from_pretrained(tmp_path / "m")
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(loaded.encode(waveform, 8000), codes)
    assert loaded.config == model.config and loaded.fingerprint == model.fingerprint and not loaded.training
    assert torch.equal(loaded.encode(waveform, 8000), codes) and torch.equal(loaded.decode(codes), model.decode(codes))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_fingerprint_follows_what_codes_mean(model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make(model.config)
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1.0)
    assert other.fingerprint == model.fingerprint
    with torch.no_grad():
        other.quantizer.codebook_state()[1].add_(1e-3)
    changed = other.fingerprint
    assert changed != model.fingerprint and copy.deepcopy(other).fingerprint == changed
    other.load_state_dict(model.state_dict())
    assert other.fingerprint == make(model.config).fingerprint
    assert copy.deepcopy(other).bfloat16().fingerprint != model.fingerprint
    assert other.half().fingerprint != model.fingerprint
    assert make(dataclasses.replace(model.config, sample_rate=16000)).fingerprint != model.fingerprint
    deeper = dataclasses.replace(model.config.decoder, depth=model.config.decoder.depth + 1)
    for first_decoder in (None, model.config.decoder):
        other = make(dataclasses.replace(model.config, decoder=deeper, first_decoder=first_decoder))
        other.quantizer.load_state_dict(model.quantizer.state_dict())
        assert (other.fingerprint == model.fingerprint) == (first_decoder is not None)
    fingerprint = model.fingerprint
    monkeypatch.delattr(hashlib, "sha256")
    assert model.fingerprint == fingerprint  # not computed again


def test_hub_ids_are_fetched_by_revision_and_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(CONFIGS["causal"]).save_pretrained(tmp_path / "snapshot")
    hub = Mock(snapshot_download=Mock(return_value=str(tmp_path / "snapshot")))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert Codec.from_pretrained("owner/name@refs/pr/2").name == "owner/name@refs/pr/2"
    names = ["config.json", "model.safetensors"]
    hub.snapshot_download.assert_called_once_with("owner/name", revision="refs/pr/2", allow_patterns=names)
    (tmp_path / "snapshot/model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not a model folder: it lacks model.safetensors"):
        Codec.from_pretrained("owner/name")
    hub.snapshot_download.side_effect = ConnectionError("no connection\nand more")
    with pytest.raises(ModelError, match=r"'owner/gone', and the hub does not give it either: no connection$"):
        Codec.from_pretrained("owner/gone")


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "meta"])
def test_devices_that_cannot_be_used_are_named(tiny_model_folder: Path, device: Any) -> None:
    with pytest.raises(ModelError, match=r"device .*cannot be used here: .*; use --device cpu"):
        Codec.from_pretrained(tiny_model_folder, device)
