"""Fixtures of the commands' tests, each of which runs in an empty folder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from shell import MAINS, RATE, Run, Samples


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tiny_model_folder: Path) -> Run:
    """``run("encode", "in.wav", "out.codes")`` calls the command with the tiny model and returns its exit code."""

    def call(command: str, *args: object) -> int:
        model = [] if command == "info" or "--model" in args else ["--model", tiny_model_folder]
        try:
            return MAINS[command]([str(arg) for arg in (*model, *args)])
        except SystemExit as exit:
            return exit.code

    return call


@pytest.fixture(scope="session")
def sound() -> Samples:
    """Twenty seconds at 16 kHz: sixteen blocks of a file."""
    return (0.1 * np.random.default_rng(0).standard_normal(20 * RATE)).astype(np.float32)


@pytest.fixture
def encoded(run: Run, sound: Samples) -> Path:
    """``in.codes``, sixteen blocks, encoded from ``in.wav``."""
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "in.codes") == 0
    return Path("in.codes")
