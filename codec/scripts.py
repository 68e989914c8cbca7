"""Imported by scripts before all else, so that a missing package becomes one line that says how to install it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from codec.errors import environment_fault, one_line, say


def _report_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if environment_fault(error):
        say(f"{Path(sys.argv[0]).name}: error: {one_line(error)}")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _report_error
