"""Line plots, which ``plot.html.j2`` draws as SVG: the places of ticks and lines; and numbers as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 235, 46, 12, 12, 26  # of a figure and its margins


@dataclass(frozen=True)
class Point:
    """A point, its interval where it has one, and what it says when pointed at."""

    x: float
    y: float
    says: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points in order of x. ``style`` picks color, and marker if they say something; ``shade`` a place on a ramp (0 to 1)."""

    name: str
    points: list[Point]
    style: int = 0
    shade: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Axis:
    """From value to position, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value, to a tenth of a unit."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


@dataclass
class Plot:
    """A figure: its caption ``title`` and what stands ``under`` it, a legend if that is nothing; lines with points.

    ``x_unit`` stands before the ticks of x, which is logarithmic where ``x_log``. ``percent`` shows shares as
    percentages, from 0. The axes ``x`` and ``y`` are a little longer than the points need; ticks are their position
    and text. The ``label`` is for screen readers.
    """

    title: str
    under: str
    lines: Sequence[Line]
    x_unit: str
    x_log: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        says = [p.says for line in self.lines for p in line.points if p.says] or [line.name for line in self.lines]
        self.label = f"{self.title}: {'; '.join(says)}"
        xs = sorted({p.x for line in self.lines for p in line.points})
        low, high = (xs[0] / 1.15, xs[-1] * 1.15) if self.x_log else (xs[0] - 0.3, xs[-1] + 0.3)
        self.x = Axis(low, high, LEFT, WIDTH - RIGHT, self.x_log)
        round_ones = (log_ticks if self.x_log else linear_ticks)(xs[0], xs[-1])
        self.x_ticks = [(self.x.at(v), short(v)) for v in round_ones if v <= high]
        ys = [v for line in self.lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
        ticks = linear_ticks(0, max(1, *ys)) if self.percent else linear_ticks(min(ys), max(ys))
        digits = max(len(f"{v:.10g}".partition(".")[2]) for v in ticks)
        self.y = Axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
        self.y_ticks = [(self.y.at(v), f"{100 * v:g}\u2009%" if self.percent else number(v, digits)) for v in ticks]


def short(value: float) -> str:
    """``500``, ``20k``, ``1M``."""
    scale, unit = (1e6, "M") if value >= 1e6 else (1e3, "k") if value >= 1e3 else (1, "")
    return f"{value / scale:g}{unit}"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers about two positive ones, three or more if they can be: powers of ten, else 1, 2, 5, else more."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**d for d in decades for s in steps if low / 1.15 <= s * 10.0**d <= high * 1.15]
        if len(ticks) >= 3:
            break
    return ticks or [float(f"{low:.2g}")]


def linear_ticks(low: float, high: float) -> list[float]:
    """Up to seven round numbers that span two others."""
    span = high - low if high - low > 1e-6 * abs(high) else abs(high) * 0.1 or 1.0  # less is nothing but rounding
    span = max(span, 1e-8)  # or the rounded ticks would be one
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(s for s in (1, 2, 2.5, 5, 10) if span / (step * s) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


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
