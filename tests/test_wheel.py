"""The wheel holds the whole package, the models and the page's templates with it, and its commands."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from loading import ROOT, python


@pytest.mark.slow
def test_what_is_in_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    names = {name for name in wheel.namelist() if ".dist-info" not in name}
    package = (path for path in (ROOT / "codec").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert names == {path.relative_to(ROOT).as_posix() for path in package}
    assert {"codec/py.typed", "codec/pretrained/speech-24khz-v3/model.safetensors"} <= names
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("/entry_points.txt"))).decode())
    for name, target in commands["console_scripts"].items():
        module, _, function = target.partition(":")
        code = f"from {module} import {function} as main; main(['--version'])"
        assert python(code).stdout.startswith(name)
