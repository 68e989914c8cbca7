"""codec-export writes graphs that the ONNX checker accepts, for any batch and length, and golden tensors to port against."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from loading import ROOT, SPEECH, Said, python
from safetensors.numpy import load_file, save_file

from codec import Codec
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

    good = check(output_codes=codes, output_waveform=audio)
    assert good.returncode == 0 and good.stdout.count("ok ") == 2, good.stdout + good.stderr
    assert check(output_waveform=audio * 1.01).returncode == 1
    assert check(output_waveform=audio[..., 1:]).returncode == 1


def test_mistakes_are_one_line(tiny_model_folder: Path, tmp_path: Path, one_line: Said) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "encoder.onnx").touch()
    soundfile.write(tmp_path / "short.wav", np.zeros(16000), 16000)
    for out, options, message in (
        ("short.wav", [], "is a file; give a folder"),
        ("full", [], "exists; --force overwrites it"),
        ("out", ["--golden", str(tmp_path / "short.wav")], "is shorter than 2 s"),
    ):
        assert export_main([str(tiny_model_folder), str(tmp_path / out), *options]) == 1
        assert message in one_line()
