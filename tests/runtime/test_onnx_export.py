"""codec-export writes graphs that the ONNX checker accepts, also such with state, and golden tensors to port against."""

import copy
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from loading import LOOKS, ROOT, SPEECH, Refused, python
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from codec import Codec, CodecConfig
from codec.base import FOREVER
from codec.errors import CodecError
from codec.runtime import OnnxCodec
from codec.runtime.export import export_main

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


@pytest.fixture(scope="module", params=[32, 8])
def exported(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("export") / "out"
    assert export_main([str(tiny_model_folder), str(folder), "--bits", str(request.param)]) == 0
    return folder


def test_the_checker_accepts_the_graphs(exported: Path) -> None:
    """With shape inference in strict mode; standard operators of one opset, and no complex numbers."""
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(exported / name)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        assert not [info for info in inferred.graph.value_info if info.type.tensor_type.elem_type in COMPLEX]


def test_any_batch_and_length(exported: Path, tiny_model_folder: Path) -> None:
    codec, facts = Codec.from_pretrained(tiny_model_folder), json.loads((exported / "config.json").read_text())
    assert (facts["fingerprint"], facts["hop_length"]) == (codec.fingerprint, codec.hop_length)
    encoder, decoder = (onnxruntime.InferenceSession(exported / name) for name in ("encoder.onnx", "decoder.onnx"))
    for batch, length in ((1, 1), (3, 1003)):
        waveform = np.random.default_rng(0).normal(size=(batch, 1, length)).astype(np.float32).clip(-1, 1)
        codes = encoder.run(None, {"waveform": waveform})[0]
        assert codes.shape == (batch, 3, -(-length // 80))
        for count in (3, 1):
            audio = decoder.run(None, {"codes": np.where(np.arange(3)[:, None] < count, codes, -1)})[0]
            reference = codec.decode(torch.from_numpy(codes), count).numpy()
            np.testing.assert_allclose(audio, reference, atol=1e-4 if "32" in str(facts["bits"]) else 0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of its own doings
def test_programs_of_torch_export(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page on porting makes them they take any batch and length."""
    monkeypatch.chdir(tmp_path)
    (body,) = re.findall(r"```python\n(.*?)```", (ROOT / "recipes" / "PORTING.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(body.replace('"speech-24khz"', repr(str(tiny_model_folder))), names)
    encoder, decoder = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    for size, frames in ((1, 2), (3, 40), (2, 700)):
        waveform = 0.1 * torch.randn(size, 1, frames * names["codec"].hop_length)
        with torch.no_grad():
            codes = encoder(waveform)
            assert torch.equal(codes, names["Encoder"]()(waveform))
            torch.testing.assert_close(decoder(codes), names["Decoder"]()(codes))


def test_golden_tensors_and_their_checker(tiny_model_folder: Path, tmp_path: Path) -> None:
    assert export_main([str(tiny_model_folder), str(tmp_path), "--golden", str(SPEECH[16000])]) == 0
    golden = load_file(tmp_path / "golden.safetensors")
    described = json.loads((tmp_path / "golden.json").read_text())["tensors"]
    assert {name: entry["shape"] for name, entry in described.items()} == {k: list(v.shape) for k, v in golden.items()}
    assert {"encoder.stages.2.1", "quantizer.stages.1", "quantizer.stages.1.codes", "decoder.blocks.0"} <= golden.keys()
    sessions = [onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")]
    codes = sessions[0].run(None, {"waveform": golden["input.waveform"]})[0]
    audio = sessions[1].run(None, {"codes": golden["output.codes"]})[0]

    def check(**mine: np.ndarray) -> subprocess.CompletedProcess[str]:
        save_file({name.replace("_", "."): tensor for name, tensor in mine.items()}, tmp_path / "mine.safetensors")
        return python((ROOT / "recipes" / "check_golden.py").read_text(), tmp_path, tmp_path / "mine.safetensors")

    good = check(output_codes=codes.astype(np.int32), output_waveform=audio)
    assert good.returncode == 0 and good.stdout.count("ok ") == 2, good.stdout + good.stderr
    assert check(output_waveform=audio * 1.01).returncode == 1
    assert check(output_waveform=audio[..., 1:]).returncode == 1
    assert "golden.json has: waveform\n" in check(output_codes=codes, waveform=audio).stderr
    assert "golden.json has: at all\n" in check().stderr


def test_mistakes_are_one_line(tiny_model_folder: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "encoder.onnx").touch()
    soundfile.write(tmp_path / "short.wav", np.zeros(16000), 16000)
    for out, options, message in (
        ("short.wav", [], "is a file; give a folder"),
        ("full", [], "exists; --force overwrites it"),
        (str(tiny_model_folder), ["--force"], "holds a model, whose config.json would be lost"),
        ("out", ["--golden", str(tmp_path / "short.wav")], "is shorter than 2 s"),
    ):
        refused(export_main([str(tiny_model_folder), str(tmp_path / out), *options]), message)


# ---- graphs with state ------------------------------------------------------------------------------------------------


def streamed(graph: Path, signal: NDArray[Any], unit: int, totals: NDArray[Any]) -> NDArray[Any]:
    """All that a graph with state gives for a batch of signals; their totals are told before the first of them ends."""
    onnx.checker.check_model(onnx.load(graph), full_check=True)
    session = onnxruntime.InferenceSession(graph)
    given, *others = session.get_inputs()
    output, *following = (entry.name for entry in session.get_outputs())
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    state = {}
    for entry in others:
        shape = [size if isinstance(size, int) else len(signal) for size in entry.shape]
        state[entry.name] = np.zeros(shape, kinds[entry.type])
    outputs, start = [], 0
    for size in (1, 2, 7, 1, 20, 9, *[4] * 10):
        state["total"] = totals if start >= 11 else np.full_like(totals, FOREVER)
        chunk = signal[..., start * unit : (start + size) * unit]
        values = session.run([output, *following], {given.name: chunk, **state})
        outputs.append(values[0])
        state |= {name.removeprefix("next_"): value for name, value in zip(following, values[1:], strict=True)}
        start += size
    return np.concatenate(outputs, axis=-1)


@pytest.mark.parametrize("changes", LOOKS.values(), ids=LOOKS)
def test_chunks_make_the_whole(tiny_config: CodecConfig, changes: dict[str, Any], tmp_path: Path) -> None:
    """Codes and samples, late by a fixed number: of two signals of different lengths, in chunks of one frame and more."""
    model, out = tmp_path / "model", tmp_path / "out"
    Codec(replace(tiny_config, **changes)).save_pretrained(model)
    assert export_main([str(model), str(out), "--streaming"]) == 0
    facts = json.loads((out / "config.json").read_text())
    whole = OnnxCodec.from_pretrained(model)
    hop, totals = whole.hop_length, np.array([[40], [31]])
    waveform = np.random.default_rng(0).normal(size=(2, 1, 40 * hop)).astype(np.float32).clip(-1, 1)
    waveform *= np.arange(40 * hop) < totals[:, None] * hop
    codes = np.full((2, 3, 40), -1)
    for row, (total,) in enumerate(totals):
        codes[row, :, :total] = whole.encode(waveform[row, :, : total * hop][None], 16000)[0]

    padded = np.pad(waveform, [(0, 0), (0, 0), (0, 40 * hop)])
    late_codes = streamed(out / "encoder_stream.onnx", padded, hop, totals)
    delay = facts["encoder_stream"]["delay_frames"]
    assert delay == Codec(whole.config).streaming_encoder().delay
    np.testing.assert_array_equal(late_codes[..., delay : delay + 40], codes)
    assert (late_codes[..., :delay] == -1).all() and (late_codes[..., delay + 40 :] == -1).all()

    padded = np.pad(codes, [(0, 0), (0, 0), (0, 40)], constant_values=-1)
    audio = streamed(out / "decoder_stream.onnx", padded, 1, totals)
    late = facts["decoder_stream"]["delay_samples"]
    for row, (total,) in enumerate(totals):
        reference = whole.decode(codes[row, :, :total][None])[0]
        np.testing.assert_allclose(audio[row, :, late : late + total * hop], reference, atol=1e-5)
        assert not audio[row, :, :late].any() and not audio[row, :, late + total * hop :].any()

    encoder, decoder = whole.streaming_encoder(2), whole.streaming_decoder(2, 2)
    for _ in range(2):  # the second time anew
        pieces = np.array_split(waveform[..., : 40 * hop - 3], 6, axis=-1)
        codes = np.concatenate([*map(encoder.push, pieces), encoder.flush()], axis=-1)
        np.testing.assert_array_equal(codes[0], whole.encode(waveform[0, :, : 40 * hop - 3], 16000)[0])
        pieces = np.array_split(codes[:, :2], 9, axis=-1)
        first, twin = decoder.push(pieces[0]), copy.copy(decoder)
        for stream in (twin, decoder):
            audio = np.concatenate([first, *map(stream.push, pieces[1:]), stream.flush()], axis=-1)
            np.testing.assert_allclose(audio, whole.decode(codes, 2), atol=1e-5)
        assert (encoder.look_ahead, decoder.look_ahead) == whole.look_aheads
        for stream in (encoder, decoder):
            with pytest.raises(CodecError, match="was flushed"):
                stream.push(np.zeros((2, 1, 5), np.float32))
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
