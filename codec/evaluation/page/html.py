"""Small pieces of HTML: escaped text, numbers, tables that scroll."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from urllib.parse import quote

_FORBIDDEN = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
NOTHING = '<span class="none" title="no value">–</span>'


def esc(text: object) -> str:
    """Text for an element or a quoted attribute; characters that HTML forbids become U+FFFD."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(text)))


def url(path: str) -> str:
    """A relative link to a file of any name."""
    return esc(quote(path.encode("utf-8", "surrogateescape"), safe="/"))


def number(value: float, digits: int) -> str:
    """Rounded, with a true minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage; what is not quite all or nothing does not round to it."""
    text = number(100 * share, digits)
    step = 10.0**-digits
    if float(text) >= 100 > 100 * share:
        return f"&gt;\u2009{100 - step:.{digits}f}\u2009%"
    if float(text) == 0 < share:
        return f"&lt;\u2009{step:.{digits}f}\u2009%"
    return f"{text}\u2009%"


def count(value: int) -> str:
    """A whole number in groups of three."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"


def plural(value: int, thing: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count(value)} {thing}{'' if value == 1 else 's'}"


def moment(text: str) -> str:
    """A date as people write it, in UTC; what is not a date stays as it is."""
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return esc(text)
    if when.tzinfo is not None:
        when = when.astimezone(timezone.utc)
    shown = f"{when.day} {when:%B %Y, %H:%M}{' UTC' if when.tzinfo else ''}"
    return f'<time datetime="{esc(text)}">{shown}</time>'


def scroller(name: str, table: str, kind: str = "") -> str:
    """A table in a box that scrolls by itself, by keyboard too, so that the page never does sideways."""
    return f'<div class="scroll {kind}" role="region" aria-label="{esc(name)}" tabindex="0">{table}</div>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], text_columns: int = 1) -> str:
    """A plain table of ready HTML; the first cell of a row heads it, the first ``text_columns`` are set as text."""

    def cell(i: int, content: str) -> str:
        kind = "" if i < text_columns else ' class="num"'
        return f'<th scope="row">{content}</th>' if i == 0 else f"<td{kind}>{content}</td>"

    top = "".join(
        f'<th scope="col"{"" if i < text_columns else " class=num"}>{name}</th>' for i, name in enumerate(head)
    )
    body = "".join(f"<tr>{''.join(cell(i, c) for i, c in enumerate(row))}</tr>\n" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and ready HTML."""
    return "<dl>" + "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"
