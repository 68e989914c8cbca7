"""Scripts as modules: those of data/ and recipes/ lie outside the package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "tests" / "assets"
SPEECH = {24000: ASSETS / "vctk-p228-0006.flac", 16000: ASSETS / "librispeech-5339-0001.flac"}


def load_script(path: str) -> ModuleType:
    """The script at ``path``, relative to the repository, as a module named after it; loaded once."""
    name = path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # first, since dataclasses look their module up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
