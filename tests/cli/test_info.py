"""codec-info, and what the commands tell about themselves."""

import json
import platform
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from loading import flipped, python
from shell import MAINS, RATE, Run

import codec
from codec.errors import EXTRAS, install_command


def test_info(run: Run, capsys: pytest.CaptureFixture[str], tiny_model_folder: Path) -> None:
    soundfile.write("in.wav", np.zeros(22050), 44100)
    assert run("encode", "in.wav", "out.codes", "--num-quantizers", 2) == 0
    assert run("info", "--json", "out.codes", tiny_model_folder) == 0
    file, model = map(json.loads, capsys.readouterr().out.splitlines())
    assert file["fingerprint_prefix"] == model["fingerprint"][:32] and file["model"] == model["model"] == "tiny"
    expected = {"duration_s": 0.5, "num_samples": 22050, "original_rate_hz": 44100, "model_rate_hz": RATE}
    expected |= {"frames": 100, "num_quantizers": 2, "codebook_size": 32, "bitrate_kbps": 2, "checksums": "correct"}
    assert expected.items() <= file.items() and file["bytes"] == Path("out.codes").stat().st_size
    assert (model["bitrate_kbps"], model["lowest_bitrate_kbps"], model["frame_rate_hz"]) == (3, 1, 200)
    assert (model["encoder_look_ahead_ms"], model["encoder_latency_ms"]) == (30.0, 35.0)
    assert (model["decoder_look_ahead_ms"], model["decoder_latency_ms"]) == (22.5, 27.5)
    Path("bad.codes").write_bytes(flipped(Path("out.codes").read_bytes(), -1))
    assert run("info", "bad.codes", "nowhere", "out.codes") == 1
    said = capsys.readouterr()
    assert "block 1 is damaged" in said.out and "correct" in said.out
    assert said.err.startswith("codec-info: error: nowhere: no such file")


def test_info_of_a_folder_of_codes(run: Run, encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some/deeper").mkdir(parents=True)
    for name in ("some/a.codes", "some/deeper/b.codes"):
        Path(name).write_bytes(encoded.read_bytes())
    assert run("info", "--json", "some") == 0
    files = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert files == ["some/a.codes", "some/deeper/b.codes"]


def test_environment(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "nowhere", "hub")
    assert run("info", "--environment", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["codec"] == codec.__version__ and facts["python"] == platform.python_version()
    assert facts["devices"].startswith("cpu") and facts["torch"] == torch.__version__
    assert facts["yaml"][0].isdigit() and facts["nowhere"] == f"missing: {install_command('nowhere')}"


@pytest.mark.parametrize("command", MAINS)
def test_help_and_version_come_without_torch(command: str) -> None:
    code = "import sys; from codec.cli.commands import {0}_main as main\n"
    code += "try: main(sys.argv[1:])\nfinally: assert {{'torch', 'numpy', 'soundfile'}}.isdisjoint(sys.modules)"
    help, version = (python(code.format(command), option).stdout for option in ("--help", "--version"))
    for part in (f"usage: codec-{command}", f"examples:\n  codec-{command} ", "exit codes: 0 done"):
        assert part in help
    assert max(map(len, help.splitlines())) < 120
    assert version == f"codec-{command} {codec.__version__}\n"
