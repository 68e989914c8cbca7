"""Graphs with state give, chunk by chunk, what the whole signal gives: codes and samples, late by a fixed number."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import LOOKS
from numpy.typing import NDArray

from codec import Codec, CodecConfig
from codec.errors import CodecError
from codec.runtime import OnnxCodec
from codec.runtime.export import export_main

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
UNKNOWN = 2**40


class Stream:
    """A batch of signals through a graph with state."""

    def __init__(self, graph: Path, batch: int) -> None:
        onnx.checker.check_model(onnx.load(graph), full_check=True)
        self.session = onnxruntime.InferenceSession(graph)
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.state = {
            entry.name: np.zeros([size if isinstance(size, int) else batch for size in entry.shape], kinds[entry.type])
            for entry in self.session.get_inputs()
            if entry.name not in ("waveform", "codes")
        }
        self.state["total"] += UNKNOWN

    def push(self, signal: NDArray[Any]) -> NDArray[Any]:
        name = "waveform" if signal.dtype == np.float32 else "codes"
        names = [entry.name for entry in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, {name: signal, **self.state}), strict=True))
        self.state |= {key.removeprefix("next_"): value for key, value in outputs.items() if key.startswith("next_")}
        return outputs["codes" if name == "waveform" else "waveform"]


@pytest.mark.parametrize("changes", LOOKS.values(), ids=LOOKS)
def test_chunks_make_the_whole(tiny_config: CodecConfig, changes: dict[str, Any], tmp_path: Path) -> None:
    """Two signals of different lengths, in chunks of one frame and more."""
    model, out = tmp_path / "model", tmp_path / "out"
    Codec(dataclasses.replace(tiny_config, **changes)).save_pretrained(model)
    assert export_main([str(model), str(out), "--streaming"]) == 0
    facts = json.loads((out / "config.json").read_text())
    whole = OnnxCodec.from_pretrained(model)
    hop, totals = whole.hop_length, np.array([[40], [31]])
    waveform = np.random.default_rng(0).normal(size=(2, 1, 40 * hop)).astype(np.float32).clip(-1, 1)
    waveform *= np.arange(40 * hop) < totals[:, None] * hop
    codes = np.full((2, 3, 40), -1)
    for row, (total,) in enumerate(totals):
        codes[row, :, :total] = whole.encode(waveform[row, :, : total * hop][None], 16000)[0]

    def pushed(stream: Stream, signal: NDArray[Any], unit: int) -> NDArray[Any]:
        """Everything that comes out; the rows' totals are told before the first signal ends."""
        outputs, start = [], 0
        for size in (1, 2, 7, 1, 20, 9, *[4] * 10):
            if start >= 11:
                stream.state["total"] = totals
            outputs.append(stream.push(signal[..., start * unit : (start + size) * unit]))
            start += size
        return np.concatenate(outputs, axis=-1)

    padded = np.pad(waveform, [(0, 0), (0, 0), (0, 40 * hop)])
    streamed = pushed(Stream(out / "encoder_stream.onnx", 2), padded, hop)
    delay = facts["encoder_stream"]["delay_frames"]
    assert delay == Codec(whole.config).streaming_encoder().delay
    np.testing.assert_array_equal(streamed[..., delay : delay + 40], codes)
    assert (streamed[..., :delay] == -1).all() and (streamed[..., delay + 40 :] == -1).all()

    padded = np.pad(codes, [(0, 0), (0, 0), (0, 40)], constant_values=-1)
    audio = pushed(Stream(out / "decoder_stream.onnx", 2), padded, 1)
    late = facts["decoder_stream"]["delay_samples"]
    for row, (total,) in enumerate(totals):
        reference = whole.decode(codes[row, :, :total][None])[0]
        np.testing.assert_allclose(audio[row, :, late : late + total * hop], reference, atol=1e-5)
        assert not audio[row, :, :late].any() and not audio[row, :, late + total * hop :].any()

    encoder, decoder = whole.streaming_encoder(2), whole.streaming_decoder(2, 2)
    for _ in range(2):  # the second time anew
        pieces = np.array_split(waveform[..., : 40 * hop - 3], 6, axis=-1)
        streamed = np.concatenate([*map(encoder.push, pieces), encoder.flush()], axis=-1)
        np.testing.assert_array_equal(streamed[0], whole.encode(waveform[0, :, : 40 * hop - 3], 16000)[0])
        pieces = np.array_split(streamed[:, :2], 9, axis=-1)
        audio = np.concatenate([*map(decoder.push, pieces), decoder.flush()], axis=-1)
        np.testing.assert_allclose(audio, whole.decode(streamed, 2), atol=1e-5)
        assert (encoder.look_ahead, decoder.look_ahead) == whole.look_aheads
        for stream in (encoder, decoder):
            with pytest.raises(CodecError, match="was flushed"):
                stream.push(np.zeros((2, 1, 5), np.float32))
            with pytest.raises(CodecError, match="was flushed"):
                stream.flush()
            stream.reset()
    for stream, chunk, message in (
        (encoder, np.zeros((2, 1, 5), np.int64), r"must be an array float \[2, 1, n\], not int64"),
        (encoder, np.full((2, 1, 5), 100, np.float32), r"must be in \[-1, 1\]"),
        (decoder, np.zeros((1, 2, 5), np.int64), r"int64 \[2, 2, n\], not int64 \[1, 2, 5\]"),
        (decoder, np.full((2, 2, 5), -1), "codes must be from 0 to"),
    ):
        with pytest.raises(CodecError, match=message):
            stream.push(chunk)
    assert encoder.flush().shape == (2, 3, 0) and decoder.flush().shape == (2, 1, 0)
