"""The wheel holds the model: installed into an environment of its own, it round-trips a file far from the repository."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    model = {f"codec/pretrained/speech-24khz-v2/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    page = {f"codec/evaluation/page/{name}" for name in ("page.html.j2", "report.css", "report.js")}
    assert {"codec/py.typed", *model, *page} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"codec"}


def test_round_trip_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """The environment has the wheel and, so that torch is not installed anew, this one's packages behind it."""
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    python = env / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = next((env / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = subprocess.check_output([python, "-c", "import codec; print(codec.__file__)"], cwd=tmp_path, text=True)
    assert str(env) in where
    source = tmp_path / "speech.wav"
    samples, rate = soundfile.read(ROOT / "tests" / "assets" / "example.wav")
    soundfile.write(source, samples[: 2 * rate], rate)
    for command, *paths in (
        ("codec-encode", "speech.wav", "a.codes"),
        ("codec-decode", "a.codes", "b.wav"),
        ("codec-info", "a.codes"),
    ):
        done = subprocess.run([env / "bin" / command, *paths], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.frames, info.samplerate) == (2 * rate, rate)
