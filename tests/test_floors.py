"""Imports go down the floors, heavy packages are lazy; the public names are those promised, the wheel holds all of it."""

import ast
import configparser
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from loading import ROOT, python

import codec
from codec.base import CodecBase

FLOORS = [  # a room may import from its own floor and from those below it; the wings only from below
    {"errors", "files", "config", "level", "workers", "scripts"},
    {"audio", "audio_parts", "spectral"},
    {"quantizers", "autoencoder", "streaming", "container", "base", "health", "refine"},
    {"weights", "pretrained"},
    {"model", "runtime", "tokens", "corpus"},
]
WINGS = {"cli", "training", "evaluation", "integrations"}
HEIGHT = {room: height for height, rooms in enumerate([*FLOORS, WINGS]) for room in rooms}
LAZY = {"accelerate", "yaml", "pesq", "pystoi", "librosa", "torchaudio", "tensorboard", "matplotlib", "transformers"}
LAZY |= {"av", "gradio", "ray", "onnxruntime", "huggingface_hub", "distillmos"}
NAMES = ["Codec", "CodecConfig", "CodecError", "ConfigError", "ContainerError", "ModelError", "load", "save"]
NAMES += ["__version__"]
SCRIPTS = sorted(path for folder in ("recipes", "data") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path, everywhere: bool = False) -> set[str]:
    """Names imported at module level (or anywhere), ``from codec import x`` as ``codec.x``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "codec").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    names = imported(path)
    room = path.relative_to(ROOT / "codec").parts[0].removesuffix(".py")
    # classes for a foreign framework have bases of its own; nothing imports their file but who asks for it
    lazy = LAZY - {path.stem} if room == "integrations" else LAZY
    assert not {name.split(".")[0] for name in names} & lazy, "import it where it is used"
    if room == "__init__":
        return
    others = {name.split(".")[1] for name in names if name.startswith("codec.")} - {room, "__version__"}
    too_high = {other for other in others if HEIGHT[other] > HEIGHT[room] or (room in WINGS and other in WINGS)}
    assert not too_high, f"{room} lies below {too_high}, or beside it"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_do_not_import_each_other(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, everywhere=True)} & {"recipes", "data", "tests"}


def test_public_names() -> None:
    """A promise: this list changes only with the changelog."""
    assert codec.__all__ == NAMES and dir(codec) == sorted(NAMES)
    assert all(getattr(codec, name) is not None for name in NAMES)


def test_everything_public_is_documented() -> None:
    members = inspect.getmembers(codec.Codec, lambda m: inspect.isfunction(m) or isinstance(m, property))
    own = {name: m for name, m in members if name[0] != "_" and name in {*vars(codec.Codec), *vars(CodecBase)}}
    assert len(own) > 10
    assert [name for name, member in own.items() if not inspect.getdoc(member)] == []


def test_importing_is_cheap() -> None:
    """These need no torch, or only when a name of theirs is used."""
    modules = "codec, codec.cli.commands, codec.container, codec.corpus.manifest, codec.evaluation.page.report"
    code = f"import sys, {modules}, codec.tokens, numpy; codec.tokens.flatten(numpy.zeros((2, 3), int), 4); "
    code += "print('torch' in sys.modules, 'soundfile' in sys.modules)"
    assert python(code).stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("torch", "message"),
    [
        ("ModuleNotFoundError('', name='torch')", "this needs the package torch, which is missing: pip install torch"),
        ("ImportError('no x')", "the package torch is installed but cannot be used (no x): install it again"),
    ],
    ids=["missing", "broken"],
)
@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name != "check_golden.py"], ids=lambda path: path.name)
def test_scripts_say_what_they_lack(path: Path, torch: str, message: str, tmp_path: Path) -> None:
    """In one line, where torch cannot be imported; those that need none work."""
    (tmp_path / "torch.py").write_text(f"raise {torch}")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = [{str(path)!r}, '--help']; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = python(code)
    assert not done.returncode or done.stderr == f"{path.name}: error: {message}\n"


@pytest.mark.slow
def test_the_wheel_holds_all_of_it(tmp_path: Path) -> None:
    """The models and the templates of the page too, and its commands start."""
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
        assert python(f"from {module} import {function} as main; main(['--version'])").stdout.startswith(name)
