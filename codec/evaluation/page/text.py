"""Numbers and durations as the page shows them; its templates use these functions as filters."""

from __future__ import annotations


def number(value: float, digits: int) -> str:
    """``value`` rounded to ``digits``, with a true minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, digits)}\u2009%"


def plural(value: int, thing: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"
