"""codec-info, and what the commands tell about themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shell import MAINS, RATE, Run

import codec


def test_info(run: Run, capsys: pytest.CaptureFixture[str], tiny_model_folder: Path) -> None:
    soundfile.write("in.wav", np.zeros(22050), 44100)
    assert run("encode", "in.wav", "out.codes", "--num-quantizers", 2) == 0
    assert run("info", "--json", "out.codes", tiny_model_folder) == 0
    file, model = map(json.loads, capsys.readouterr().out.splitlines())
    assert file["fingerprint_prefix"] == model["fingerprint"][:32] and file["model"] == model["model"] == "tiny"
    expected = {"duration_s": 0.5, "num_samples": 22050, "original_rate_hz": 44100, "model_rate_hz": RATE}
    expected |= {"frames": 100, "num_quantizers": 2, "codebook_size": 32, "bitrate_kbps": 2, "checksums": "correct"}
    assert expected.items() <= file.items() and file["bytes"] == Path("out.codes").stat().st_size
    assert model["bitrate_kbps"] == "1 to 3" and model["frame_rate_hz"] == 200
    data = bytearray(Path("out.codes").read_bytes())
    data[-1] ^= 1
    Path("bad.codes").write_bytes(data)
    assert run("info", "bad.codes", "nowhere", "out.codes") == 1
    said = capsys.readouterr()
    assert "WRONG" in said.out and "block 1 of 1 is damaged" in said.out and "correct" in said.out
    assert said.err.startswith("codec-info: error: nowhere: no such file")


@pytest.mark.parametrize("command", MAINS)
def test_help_and_version(command: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    said = capsys.readouterr().out
    for part in (f"usage: codec-{command}", f"examples:\n  codec-{command} ", "exit codes: 0 done"):
        assert part in said
    assert max(map(len, said.splitlines())) < 120
    assert run(command, "--version") == 0
    assert capsys.readouterr().out == f"codec-{command} {codec.__version__}\n"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from codec.cli.commands import encode_main, decode_main\n"
        "for main in (encode_main, decode_main):\n"
        "    try: main(['--help'])\n"
        "    except SystemExit: pass\n"
        "raise SystemExit(not {'torch', 'numpy', 'soundfile'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
