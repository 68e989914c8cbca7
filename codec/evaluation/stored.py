"""The ``metrics.json`` of a report, read by whoever goes on with it: the page, comparisons, model cards, plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codec.errors import CodecError

FORMAT = 1


class ReportError(CodecError):
    """A folder that is no report, or not of this format; the message says why, and the place in it."""


def read_summary(folder: Path) -> dict[str, Any]:
    """What ``metrics.json`` of a folder that codec-evaluate wrote holds.

    Raises:
        ReportError: there is none, or of another format.
        OSError: it cannot be read.
    """
    try:
        summary = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(f"{folder} is no finished report: it has no metrics.json; codec-evaluate makes one") from None
    except ValueError as error:
        raise ReportError(f"metrics.json is not JSON: {error}") from None
    if isinstance(summary, dict) and "format" in summary and summary["format"] != FORMAT:
        raise ReportError(f"metrics.json: format {summary['format']!r} is not {FORMAT}, the one this version reads")
    if not isinstance(summary, dict) or "format" not in summary:
        raise ReportError(f"{folder} holds a report without 'format'; make it again with codec-evaluate")
    return summary
