"""Line plots as inline SVG, so that they follow the page's colours and need no picture files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from codec.evaluation.page.html import esc, number

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26  # margins
LABELLED_RIGHT = 32  # where the lines are named at their ends
STYLES = 6  # as many colours, markers and dashes as report.css and _marker know
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")


@dataclass(frozen=True)
class Point:
    """A point, its interval where it has one, and what it says when pointed at."""

    x: float
    y: float
    says: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points in order of x. ``style`` picks colour, marker and dash; ``shade`` (0 to 1) a place on a ramp instead."""

    name: str
    points: Sequence[Point]
    style: int = 0
    shade: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Axis:
    """From value to position; a logarithmic axis has ticks at round numbers too."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value, to a tenth of a unit."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def plot(
    lines: Sequence[Line],
    label: str,
    x_ticks: Sequence[float],
    x_log: bool = False,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    x_unit: str = "",
    size: tuple[int, int] = (400, 235),
    name_ends: bool = False,
) -> str:
    """An SVG element. ``label`` is what a screen reader says in its place.

    ``y_range`` is that of the values and their intervals unless given; ``percent`` shows shares as percentages;
    ``x_unit`` stands before the ticks of x; ``name_ends`` writes the lines' names beside their last points.
    """
    width, height = size
    xs = [p.x for line in lines for p in line.points]
    ys = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    margin = 1.15 if x_log else 0.3
    x_low, x_high = min(xs), max(xs)
    x_low, x_high = (x_low / margin, x_high * margin) if x_log else (x_low - margin, x_high + margin)
    x = Axis(x_low, x_high, LEFT, width - (LABELLED_RIGHT if name_ends else RIGHT), x_log)
    y_ticks = linear_ticks(*(y_range or (min(ys), max(ys))))
    low, high = y_range or (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))
    y = Axis(low, high, height - BOTTOM, TOP)

    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label)}">']
    digits = _digits(y_ticks)
    for tick in y_ticks:
        text = f"{100 * tick:g}\u2009%" if percent else number(tick, digits)
        parts.append(f'<path class="grid" d="M{LEFT} {y.at(tick)}H{x.end}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    ticks = [t for t in x_ticks if x_low <= t <= x_high]
    for tick in ticks:
        parts.append(f'<path class="tick" d="M{x.at(tick)} {y.start}v4"/>')
        parts.append(f'<text x="{x.at(tick)}" y="{y.start + 17}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text x="{LEFT - 10}" y="{y.start + 17}" text-anchor="end">{x_unit}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {y.start}H{x.end}"/>')
    parts += [_line(line, x, y) for line in lines]
    if name_ends:
        parts += _names(lines, x, y)
    return "\n".join([*parts, "</svg>"])


def key(name: str, style: int) -> str:
    """An entry of a legend: a stretch of the line with its marker, and its name."""
    line = f'<path class="line" d="M0 7H30"{_dash(style)}/>'
    picture = f'<svg class="swatch {_kind(style)}" viewBox="0 0 30 14" aria-hidden="true">{line}'
    return f"<li>{picture}{_marker(style, 15, 7)}</svg>{esc(name)}</li>"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: 1, 2, 5 of each decade; more where that makes less than three."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [s * 10.0**d for d in decades for s in steps if low / 1.15 <= s * 10.0**d <= high * 1.15]
        if len(ticks) >= 3:
            break
    return ticks


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that span two others."""
    span = (high - low) or abs(high) * 0.1 or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(s for s in (1, 2, 2.5, 5, 10) if span / (step * s) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _line(line: Line, x: Axis, y: Axis) -> str:
    places = [(x.at(p.x), y.at(p.y)) for p in line.points]
    path = "L".join(f"{a} {b}" for a, b in places)
    if line.shade is None:
        opening = f'<g class="series {_kind(line.style)}{" strong" if line.strong else ""}">'
    else:
        opening = f'<g class="series ramp" style="--shade:{line.shade:.2f}">'
    parts = [opening, f'<path class="line" d="M{path}"{_dash(line.style)}/>' if len(places) > 1 else ""]
    for point, (a, b) in zip(line.points, places, strict=True):
        if line.shade is None:
            bar = ""
            if point.low is not None and point.high is not None:
                bar = f'<path class="bar" d="M{a} {y.at(point.low)}V{y.at(point.high)}"/>'
            parts.append(f"<g>{bar}{_marker(line.style, a, b)}<title>{esc(point.says)}</title></g>")
    return "".join([*parts, "</g>"])


def _names(lines: Sequence[Line], x: Axis, y: Axis) -> list[str]:
    """The lines' names, apart from each other, each led to from the end of its line."""
    ends = [(x.at(line.points[-1].x), y.at(line.points[-1].y)) for line in lines]
    parts = []
    for line, (a, b), place in zip(lines, ends, _apart([b for _, b in ends], 12.5, y.end, y.start), strict=True):
        parts.append(f'<path class="leader" d="M{a + 1:.1f} {b}L{a + 14:.1f} {place:.1f}"/>')
        parts.append(f'<text x="{a + 17:.1f}" y="{place + 4:.1f}">{esc(line.name)}</text>')
    return parts


def _kind(style: int) -> str:
    return f"s{style % STYLES}"


def _dash(style: int) -> str:
    pattern = _DASHES[style % STYLES]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _marker(style: int, x: float, y: float) -> str:
    """A shape as well as a colour, for those who cannot tell the colours apart."""
    shapes = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
        "m-3.7-3.7h7.4v7.4h-7.4z",  # square
        "m0-5l4.8 8.4h-9.6z",  # triangle
        "m0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",  # diamond
        "m0 5l4.8-8.4h-9.6z",  # triangle on its tip
        "m-4.4-1.5h2.9v-2.9h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9z",  # cross
    )
    return f'<path class="mark" d="M{x} {y}{shapes[style % STYLES]}"/>'


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved so that none are closer than ``gap``, within ``low`` and ``high`` if there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip([None, *order], order, strict=False):  # down, then back up from the end
        moved[i] = max(moved[i], low if before is None else moved[before] + gap)
    for after, i in zip([None, *order[::-1]], order[::-1], strict=False):
        moved[i] = min(moved[i], high if after is None else moved[after] - gap)
    return moved


def _digits(ticks: Sequence[float]) -> int:
    return max(len(f"{t:.10g}".partition(".")[2]) for t in ticks)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
