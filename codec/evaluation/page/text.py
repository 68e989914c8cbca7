"""Numbers, durations and dates as the page shows them; its templates use these functions as filters."""

from __future__ import annotations

from datetime import datetime, timezone


def number(value: float, digits: int) -> str:
    """``value`` rounded to ``digits``, with a true minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage; what is not quite all or nothing does not round to it."""
    text = number(100 * share, digits)
    step = 10.0**-digits
    if float(text) >= 100 > 100 * share:
        return f">\u2009{100 - step:.{digits}f}\u2009%"
    if float(text) == 0 < share:
        return f"<\u2009{step:.{digits}f}\u2009%"
    return f"{text}\u2009%"


def plural(value: int, thing: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"


def moment(text: str) -> str:
    """An ISO 8601 date with its zone, as people write it, in UTC."""
    when = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)  # Python 3.10 knows no Z
    return f"{when.day} {when:%B %Y, %H:%M} UTC"
