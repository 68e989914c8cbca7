"""Imported by scripts before all else: a package that a later import lacks is said in one line, and how to get it."""

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
