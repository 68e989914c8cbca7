"""What the results show beyond the plain numbers: plots, failures alike, the table of every file."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from codec.evaluation.page.plots import Line, Plot, Point, number
from codec.evaluation.results import WORST, Metric, Result, Results, Row, Spectra, Stage, System, worst_first

SHOWN = 200  # rows of the table of files before "show all"
MORE = {"failures": -1, "seconds": 2, "speaker": -1, "source": -1}  # its columns after the metrics, and their digits
ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better", "zero": "→ 0 is best", "none": ""}


def by_bitrate(systems: Sequence[System]) -> list[System]:
    """From the lowest bitrate to the highest, so that those that may be compared stand together; last, those without."""
    return sorted(systems, key=lambda system: system.rate or math.inf)


def quality_metrics(results: Results) -> list[str]:
    """The metrics that say how well; a rate says how dearly."""
    return [n for n, m in results.metrics.items() if m.better != "none" and not m.per_second]


def under(metric: Metric) -> str:
    """Unit and direction of a metric."""
    return " · ".join(text for text in (metric.unit, ARROWS[metric.better]) if text)


def interval(result: Result, digits: int) -> str:
    """The interval of a mean, or how many files the mean rests on where it has none."""
    if result.low is None or result.high is None:
        return f"n {result.n:,}"
    return f"[{number(result.low, digits)}, {number(result.high, digits)}]"


def failures(results: Results) -> dict[tuple[str, int, int, tuple[tuple[str, int], ...]], list[str]]:
    """Names of the systems that failed alike: label of the metric, failed files, all files, reasons and their counts."""
    found = [(s.name, results.metrics[n].label, r) for s in results.systems for n, r in s.results.items() if r.failed]
    changes = [each for each in results.stability or () if each.changed.failed]
    groups = defaultdict(list)
    for system, label, result in [*found, *((results.headline.name, each.label, each.changed) for each in changes)]:
        groups[label, result.failed, result.n + result.failed, tuple(result.reasons.items())].append(system)
    return groups


def quality_plots(results: Results) -> list[Plot]:
    """One plot per metric of quality against bitrate, one line per family, of systems with both a bitrate and a value."""
    plots, order = [], list(dict.fromkeys(system.family for system in results.systems))
    for name in quality_metrics(results):
        metric, lines = results.metrics[name], dict[str, Line]()
        for system in by_bitrate(results.systems):
            result = system.results.get(name)
            if system.rate and result and result.mean is not None:
                mean = f"{number(result.mean, metric.digits)} {interval(result, metric.digits)}"
                says = f"{system.name}, {system.rate:.3g} kbit/s: {mean}"
                family, strong = system.family, system.kind == "model"
                line = lines.setdefault(family, Line(family, [], order.index(family), strong=strong))
                line.points.append(Point(system.rate, result.mean, says, result.low, result.high))
        if lines:
            plots.append(Plot(metric.label, under(metric), list(lines.values()), "kbit/s", x_log=True))
    return plots


def spectrum_plots(results: Results) -> list[Plot]:
    """One plot per system: the mean spectra of the recordings and of what it decoded, in dB over kHz."""
    plots, spectra = [], results.spectra or Spectra(0.0, 0, (), {})
    for system in (system for system in results.systems if system.id in spectra.systems):
        decoded = f"decoded, {system.results['lines'].mean or 0:g} lines"
        recorded = spectra.recorded.get(system.id, spectra.reference)
        levels = {"recordings": recorded, decoded: spectra.systems[system.id]}
        points = [[Point(i * spectra.step / 1000, level) for i, level in enumerate(each)] for each in levels.values()]
        lines = [Line(name, points[style], style) for style, name in enumerate(levels)]
        plots.append(Plot(system.name, "", lines, "kHz"))
    return plots


def coverage_plot(stages: Sequence[Stage]) -> Plot | None:
    """Share of entries hit against frames seen, a line per stage; None where no stage has such a curve."""
    lines = []
    for stage in (stage for stage in stages if stage.coverage):
        *points, (frames, share) = stage.coverage or ()
        end = Point(frames, share, f"stage {stage.stage} {100 * share:.1f} % after {frames} frames")
        shade = (stage.stage - 1) / max(1, len(stages) - 1)
        lines.append(Line(str(stage.stage), [*(Point(*point) for point in points), end], shade=shade))
    under = "share of entries hit; one line per stage, the later the stronger"
    return Plot("Coverage against frames seen", under, lines, "frames", x_log=True, percent=True) if lines else None


def file_data(results: Results, rows: Sequence[Row]) -> dict[str, Any]:
    """What the table of every file shows, as JSON takes it: the template draws its start, ``report.js`` any other view.

    A row has a value per column; its system is an index into ``systems``. Columns of text have -1 ``digits``.
    """
    rank = worst_first(results, rows)
    order = {system.id: i for i, system in enumerate(results.systems)}
    metrics = {name: m for name, m in results.metrics.items() if any(row.values[name] is not None for row in rows)}
    columns = [("rank", "#", 0), ("id", "File", -1), ("system", "System", -1)]
    columns += [(name, metric.label, metric.digits) for name, metric in metrics.items()]
    columns += [(name, name.capitalize(), digits) for name, digits in MORE.items()]
    return {
        "shown": SHOWN,
        "worst": WORST,
        "columns": [{"key": key, "label": label, "digits": digits} for key, label, digits in columns],
        "systems": [system.name for system in results.systems],
        "headline": order[results.headline.id],
        "anchors": {example.id: f"example-{i}" for i, example in enumerate(results.examples or (), start=1)},
        "rows": [
            [rank.get(r.id), r.id, order[r.system], *map(r.values.get, metrics), *(getattr(r, name) for name in MORE)]
            for r in sorted(rows, key=lambda r: (rank.get(r.id, math.inf), r.id, order[r.system]))
        ],
    }
