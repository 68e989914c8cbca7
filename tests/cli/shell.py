"""What the tests of the commands share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from codec.cli.commands import decode_main, encode_main, info_main

Samples = NDArray[np.float32]
Run = Callable[..., int]

HOP, RATE = 80, 16000  # of the tiny model
SILENCE = np.zeros(500, np.float32)
MAINS = {"encode": encode_main, "decode": decode_main, "info": info_main}


def process(command: str, *args: object) -> list[str]:
    """The command as a process of its own."""
    code = f"from codec.cli.commands import {command}_main as main; raise SystemExit(main())"
    return [sys.executable, "-c", code, *map(str, args)]


def write(*names: str, samples: NDArray[Any] = SILENCE) -> None:
    """The same sound as each of these files, whose folders may be new."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, samples, RATE)


def names(folder: str = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
