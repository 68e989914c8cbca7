"""What the tests of the commands share."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.cli.commands import decode_main, encode_main, info_main

Samples = NDArray[np.float32]
Run = Callable[..., int]

HOP, RATE = 80, 16000  # of the tiny model
MAINS = {"encode": encode_main, "decode": decode_main, "info": info_main}


def process(command: str, *args: object) -> list[str]:
    """The command as a process of its own."""
    code = f"from codec.cli.commands import {command}_main as main; raise SystemExit(main())"
    return [sys.executable, "-c", code, *map(str, args)]


def names(folder: str = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
