"""The commands run on torch or on ONNX Runtime, whatever of both is here, and say in one line what is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from loading import Refused, python
from shell import Run

from codec import container
from codec.cli.info import environment

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from codec.cli.commands import decode_main, encode_main, info_main
model = sys.argv[1]
assert encode_main(["--model", model, "in.wav", "onnx.codes"]) == 0
assert decode_main(["--model", model, "onnx.codes", "onnx.wav"]) == 0
assert info_main(["onnx.codes", model]) == 0
assert not [name for name in sys.modules if name.startswith("torch.")]
assert encode_main(["--model", model, "in.wav", "x.codes", "--backend", "torch"]) == 1
import codec
try:
    codec.load
except ModuleNotFoundError as error:
    print(error, file=sys.stderr)
"""
pytest.importorskip("onnxruntime")


def test_without_torch(tiny_model_folder: Path, run: Run, encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same codes and audio as with it."""
    done = python(WITHOUT_TORCH, tiny_model_folder)
    assert done.returncode == 0, done.stderr
    needs, said = done.stderr.splitlines(keepends=True)
    assert needs == "codec-encode: error: this needs the package torch, which is missing: pip install torch\n"
    assert said.startswith("codec.load needs torch: pip install torch; without it, codec.runtime")
    assert run("decode", "onnx.codes", "torch.wav", "--backend", "torch") == 0
    (header, codes), (reference_header, reference) = container.read("onnx.codes"), container.read(encoded)
    assert header == reference_header and np.mean(codes != reference) < 0.0005
    audio, reference_audio = soundfile.read("onnx.wav")[0], soundfile.read("torch.wav")[0]
    np.testing.assert_allclose(audio, reference_audio, atol=1e-4)
    assert run("decode", "onnx.codes", "rounded.wav", "--backend", "onnx8") == 0
    difference = soundfile.read("rounded.wav")[0] - audio
    assert np.abs(difference).max() > 0 and np.square(difference).sum() < 0.01 * np.square(audio).sum()
    assert run("encode", "in.wav", "x.codes", "--backend", "onnx8") == 2  # they would be other codes
    assert "invalid choice: 'onnx8'" in capsys.readouterr().err
    assert run("info", "onnx.codes", tiny_model_folder, "--backend", "torch") == 0
    assert capsys.readouterr().out == done.stdout


def test_a_broken_torch(run: Run, encoded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(Path.cwd())
    Path("torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    reason = "libtorch_cpu.so: cannot open shared object file"
    for backend in ([], ["--backend", "torch"]):
        message = f"the package torch is installed but cannot be used ({reason}): install it again\n"
        refused(run("encode", "in.wav", "x.codes", *backend), message)
    assert reason in environment()["devices"]
    assert run("encode", "in.wav", "x.codes", "--backend", "onnx") == 0


def test_neither_is_there(run: Run, encoded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(run("decode", encoded, "x.wav"), "without torch, onnxruntime is needed: pip install onnxruntime")
    assert environment()["devices"] == "cpu"
