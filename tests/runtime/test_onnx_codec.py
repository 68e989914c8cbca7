"""OnnxCodec gives what Codec gives, without torch, whatever the length; and says in one line what is wrong."""

import dataclasses
import itertools
import pickle
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import ASSETS, LOOKS, SPEECH, Speech, python

from codec import Codec, CodecConfig
from codec.base import WINDOW_FRAMES
from codec.config import QuantizerConfig
from codec.errors import CodecError
from codec.pretrained import ModelError, shipped_models
from codec.runtime import OnnxCodec

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", params=shipped_models())
def pair(request: pytest.FixtureRequest) -> tuple[Codec, OnnxCodec]:
    return Codec.from_pretrained(request.param), OnnxCodec.from_pretrained(request.param, num_threads=1)


# ---- equal to torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speech", [*SPEECH.values(), ASSETS / "example.wav"], ids=lambda p: p.stem, indirect=True)
def test_speech(pair: tuple[Codec, OnnxCodec], speech: Speech) -> None:
    """The clip's own rate, its exact length, and every number of quantizers from 1."""
    codec, onnx = pair
    samples, rate = speech
    reference = codec.encode(torch.from_numpy(samples), rate)
    codes = onnx.encode(samples, rate)
    assert codes.dtype == np.int64 and codes.shape == tuple(reference.shape)
    assert np.mean(codes != reference.numpy()) <= 0.0005  # that rounding may turn
    for count in {1, codec.num_quantizers}:
        audio = onnx.decode(reference.numpy(), num_quantizers=count)
        assert audio.dtype == np.float32
        np.testing.assert_allclose(audio, codec.decode(reference, num_quantizers=count).numpy(), atol=1e-4)


@pytest.mark.slow
def test_eight_bits_keep_the_audio_close(pair: tuple[Codec, OnnxCodec], speech: Speech) -> None:
    """Codes of the first stage are mostly the same; audio of the same codes differs by less than -30 dB."""
    samples, rate = speech
    exact, rounded = pair[1], OnnxCodec.from_pretrained(pair[0].name, bits=8)
    codes = exact.encode(samples, rate)
    assert np.mean(rounded.encode(samples, rate, 1) != codes[:, :1]) < 0.15
    audio = exact.decode(codes)
    assert np.square(rounded.decode(codes) - audio).sum() < 1e-3 * np.square(audio).sum()


SHAPES = LOOKS | {
    "no projections": {"latent_dim": 4},  # the codebook's own width
    "diagonal": {"quantizer": QuantizerConfig("simvq", 1, 32, 4, map="diagonal", map_bias=False)},
    "tiles": {"quantizer": QuantizerConfig("simvq", 1, 9000, 4)},  # searched in several tiles
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bits", [32, 8])
def test_every_shape_of_model(
    tiny_config: CodecConfig, changes: dict[str, object], bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight is random, scales and biases too."""
    torch.manual_seed(1)
    model = Codec(dataclasses.replace(tiny_config, **changes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path, bits)
    monkeypatch.chdir(tmp_path.parent)
    codec, onnx = Codec.from_pretrained(tmp_path), OnnxCodec.from_pretrained(tmp_path.name, num_threads=1)
    signal = 0.3 * np.sin(np.arange(2 * WINDOW_FRAMES * 80 + 9000) ** 1.1 / 50).astype(np.float32)  # three windows
    reference = codec.encode(torch.from_numpy(signal), 16000)
    assert np.mean(onnx.encode(signal, 16000) != reference.numpy()) <= 0.002  # random tables lie close together
    monkeypatch.chdir("/")
    copied = pickle.loads(pickle.dumps(onnx))  # as for other processes
    np.testing.assert_allclose(copied.decode(reference.numpy()), codec.decode(reference).numpy(), atol=1e-4)
    for fact in ("name", "config", "fingerprint", "look_aheads", "num_parameters"):
        assert getattr(onnx, fact) == getattr(codec, fact)


def test_the_nearest_of_equal_codes_is_the_first(tiny_config: CodecConfig, tmp_path: Path) -> None:
    """A table that holds each code twice, the second time in another tile: never the second."""
    codec = Codec(dataclasses.replace(tiny_config, quantizer=QuantizerConfig("simvq", 1, 8192, 4)))
    basis = codec.state_dict()["quantizer.basis"]
    basis[4096:] = basis[:4096]
    codec.save_pretrained(tmp_path)
    signal = np.random.default_rng(0).normal(size=8000).astype(np.float32).clip(-1, 1)
    assert OnnxCodec.from_pretrained(tmp_path).encode(signal, 16000).max() < 4096


# ---- shapes, lengths, blocks ----------------------------------------------------------------------------------------


def test_nothing_is_written_or_sent(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime reports what it runs, it first leaves a number for this machine in these folders."""
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI", "GITHUB_ACTIONS"):  # it is silent on build machines
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    encode = "OnnxCodec.from_pretrained(sys.argv[1]).encode(numpy.zeros(999, 'float32'), 16000)"
    done = python(f"import sys, numpy; from codec.runtime import OnnxCodec; {encode}", tiny_model_folder)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_that_of_a_window_for_each_thread(tiny_model_folder: Path, threads: int) -> None:
    """The first codes come before the signal has ended, and nothing is read that can wait."""
    onnx, read = OnnxCodec.from_pretrained(tiny_model_folder, num_threads=threads), itertools.count()
    endless = (np.zeros(WINDOW_FRAMES * onnx.hop_length, np.float32) for _ in read)
    assert next(iter(onnx.encode_blocks(endless, 2))).shape == (2, WINDOW_FRAMES)
    assert next(read) <= threads + 4


@pytest.mark.parametrize("bits", [32, 8])
def test_two_threads_give_the_same(tiny_model_folder: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And work at once, on windows of a long item and on items of a batch."""
    one, two = (OnnxCodec.from_pretrained(tiny_model_folder, bits, threads) for threads in (1, 2))
    frames = [WINDOW_FRAMES * 5 // 2, WINDOW_FRAMES // 4]  # a window and three of the rest; one
    lengths = [count * one.hop_length - 7 for count in [*frames, *frames[1:] * 3]]
    noise = np.random.default_rng(0).normal(size=(len(lengths), 1, max(lengths))) * np.hanning(max(lengths))
    waveform = (0.2 * noise).astype(np.float32)
    codes = one.encode(waveform, 16000, lengths=lengths)
    audio = one.decode(codes, lengths=lengths)
    both = threading.Barrier(2, timeout=60)
    for name in ("_encoded", "_decoded"):
        compute = getattr(two, name)
        monkeypatch.setattr(two, name, lambda window, compute=compute: both.wait() + 1 and compute(window))
    np.testing.assert_array_equal(two.encode(waveform, 16000, lengths=lengths), codes)
    np.testing.assert_array_equal(two.decode(codes, lengths=lengths), audio)


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_are_refused(tiny_config: CodecConfig, tmp_path: Path) -> None:
    """Another quantizer at once, a codebook when it is needed; ``tests/test_weights.py`` has what the reader refuses."""
    quantizer = QuantizerConfig("residual_vq", 2, 16, 4)
    Codec(dataclasses.replace(tiny_config, quantizer=quantizer)).save_pretrained(tmp_path / "vq")
    with pytest.raises(ModelError, match="the quantizer residual_vq, which runs with torch only"):
        OnnxCodec.from_pretrained(tmp_path / "vq")
    codec = Codec(tiny_config)
    codec.quantizer.stages[1].basis.data.fill_(1e20)  # type: ignore[operator, union-attr]
    codec.save_pretrained(tmp_path / "own")
    with pytest.raises(ModelError, match="the codebook of stage 2 is too large"):
        OnnxCodec.from_pretrained(tmp_path / "own").encode(np.ones(400, np.float32), 16000)


def test_arguments_that_cannot_be(tiny_model_folder: Path) -> None:
    """The checks are those of Codec (``tests/test_model.py``); here is what arrays have of their own."""
    onnx, load = OnnxCodec.from_pretrained(tiny_model_folder), partial(OnnxCodec.from_pretrained, tiny_model_folder)
    samples, codes = np.zeros(100, np.float32), np.zeros((1, 3, 5), np.int64)
    for use, message in (
        *((partial(onnx.encode, x, 16000), "a float array") for x in (samples.astype(np.int16), torch.zeros(100))),
        *((partial(onnx.decode, x), "codes must be an integer array") for x in (codes / 2, torch.from_numpy(codes))),
        (partial(onnx.encode, samples, 16000, exact=False), "exact=False need torch"),
        (partial(onnx.decode, codes, exact=False), "exact=False need torch"),
        (partial(onnx.encode, samples, 16000, refine_steps=2), "refine_steps and exact=False need torch"),
        (partial(load, bits=4), "bits must be 32 or 8, not 4"),
        (partial(load, num_threads=0), "num_threads must be"),
    ):
        with pytest.raises(CodecError, match=message):
            use()
