"""What tests of all floors share: scripts as modules, as those of data/ and recipes/ lie outside the package; bad places."""

import importlib.util
import io
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.config import DecoderConfig, EncoderConfig
from codec.corpus.manifest import Record
from codec.errors import STOPPING

Speech = tuple[NDArray[np.float32], int]  # samples, and their rate in Hz
Said = Callable[[], str]  # gives what was said, see conftest.py
Refused = Callable[[int, str], None]  # takes an exit code and what must have been said, see conftest.py
ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "tests" / "assets"
DEBUG = ROOT / "recipes" / "libritts" / "debug.yaml"
SPEECH = {24000: ASSETS / "vctk-p228-0006.flac", 16000: ASSETS / "librispeech-5339-0001.flac"}

LOOKS: dict[str, dict[str, Any]] = {  # changes of the tiny model's configuration, by how far it looks ahead
    "centred": {},
    "causal": {"causal": True},
    "a frame beyond the window": {"decoder": DecoderConfig(width=16, depth=2, n_fft=320, look_ahead=3)},
    "a window that looks back": {"decoder": DecoderConfig(width=16, depth=2, n_fft=320, look_ahead=1)},
    "early codes": {"encoder": EncoderConfig((4, 4, 5), (8, 16, 16), (1, 1, 3), look_ahead=6)},
}


def load_script(path: str) -> ModuleType:
    """The script at ``path``, relative to the repository, as a module named after it; loaded once."""
    name = path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # first, since dataclasses look their module up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def recipe(name: str, *args: object) -> int:
    """The exit code of a script's main, called in this process with these arguments."""
    script = load_script(f"recipes/{name}.py")
    handlers = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGCHLD)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
            return script.main()  # type: ignore[no-any-return]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """A Python process of its own that ran ``code``."""
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait for what a process that does not end by itself brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def encoded(samples: NDArray[Any], rate: int = 16000, form: str = "WAV", **kind: Any) -> bytes:
    """The samples ``[T]`` or ``[T, C]`` as an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **kind)
    return file.getvalue()


def recorded(path: Path, samples: NDArray[Any], rate: int = 24000, **facts: str) -> Record:
    """The samples ``[T]`` as an audio file, and what a manifest says of it."""
    soundfile.write(path, samples, rate)
    return Record(path.stem, str(path), len(samples), rate, **facts)


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    """The data with this bit turned over."""
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def tar(members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w", **links: bytes) -> bytes:
    """An archive of these files, then of ``links``: a name, and the kind of a member that leads elsewhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in (members | links).items():
            member = tarfile.TarInfo(name)
            if name in links:
                member.type, member.linkname = content, "X/later.wav"
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def resize(browser: Any, width: int) -> None:
    """Make it a phone if it is narrow; what stood on its console is forgotten."""
    browser.get_log("browser")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Where no file grows beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="limits on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
