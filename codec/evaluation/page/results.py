"""The report's results: the table by bitrate class, quality against bitrate, and what is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from codec.evaluation.page.html import NOTHING, count, esc, number, plural, scroller, table
from codec.evaluation.page.plots import Line, Point, key, log_ticks, plot
from codec.evaluation.results import Metric, Metrics, Result, System

RATES = {"kbps_file", "kbps_entropy"}  # say how many bits were spent, not how well
COSTS = {"rtf"}
MAIN = ("pesq", "stoi")
ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better", "none": ""}


def tiles(metrics: Metrics) -> str:
    """The first four metrics of the headline system, large."""
    made = []
    for name in list(metrics.metrics)[:4]:
        metric, result = metrics.metrics[name], metrics.headline.results.get(name)
        if result is not None and result.mean is not None:
            made.append(
                f'<div class="tile"><dt>{esc(metric.label)}</dt><dd><b>{number(result.mean, metric.digits)}</b>'
                f"<span>{_interval(result, metric)}</span></dd></div>"
            )
    return f'<dl class="tiles">{"".join(made)}</dl>'


def results_table(metrics: Metrics) -> str:
    """Systems in rows, grouped by bitrate so that those that may be compared stand together."""
    heads = "".join(
        f'<th scope="col" class="num">{esc(m.label)}<small>{esc(m.unit)}</small><small>{ARROWS[m.better]}</small></th>'
        for m in metrics.metrics.values()
    )
    parts = [f'<table class="results"><thead><tr><th scope="col">System</th>{heads}</tr></thead>']
    for title, systems in bitrate_classes(metrics.systems):
        width = len(metrics.metrics) + 1
        parts.append(f'<tbody><tr class="class"><th scope="rowgroup" colspan="{width}"><span>{title}</span></th></tr>')
        best = {name: _best(systems, name, metric) for name, metric in metrics.metrics.items()}
        for system in systems:
            rate = "" if system.rate is None else f"<small>{system.rate:.3g} kbit/s</small>"
            cells = "".join(
                _cell(system.results.get(name), metric, best[name].get(system.id, ""))
                for name, metric in metrics.metrics.items()
            )
            kind = ' class="model"' if system.kind == "model" else ""
            parts.append(f'<tr{kind}><th scope="row">{esc(system.name)}{rate}</th>{cells}</tr>')
        parts.append("</tbody>")
    return scroller("Results", "\n".join([*parts, "</table>"]))


def source_tables(metrics: Metrics) -> str:
    """A table a metric of quality, systems in rows and the manifest's sources in columns; nothing where all are of one."""
    sources = list(dict.fromkeys(source for system in metrics.systems for source in system.by_source))
    if not sources:
        return ""
    parts = [
        "<h3>By source</h3>",
        "<p>The same means over the files of one source of the manifest, its speakers (or files) resampled alone.</p>",
    ]
    for i, name in enumerate(quality_metrics(metrics)):
        metric = metrics.metrics[name]
        rows = []
        for system in metrics.systems:
            found = [system.by_source.get(source, {}).get(name) for source in sources]
            cells = ["not measured" if result is None else value(result, metric.digits) for result in found]
            rows.append((esc(system.name), *cells))
        shown = table(("System", *(esc(source) or "source not given" for source in sources)), rows)
        under = " · ".join(esc(text) for text in (metric.unit, ARROWS[metric.better]) if text)
        title = f"{esc(metric.label)} <small>{under}</small>"
        box = scroller(f"{metric.label} by source", shown)
        parts.append(f"<details{'' if i else ' open'}><summary>{title}</summary>{box}</details>")
    return "\n".join(parts)


def quality_metrics(metrics: Metrics) -> list[str]:
    """The metrics that say how well, not how dearly."""
    return [n for n, m in metrics.metrics.items() if m.better != "none" and n not in RATES | COSTS]


def bitrate_classes(systems: Sequence[System]) -> list[tuple[str, list[System]]]:
    """Octaves of bitrate up to 1, 2, 4, ... kbit/s, each with its systems in the order given; last, those without.

    What counts are the bits that the files took: a nominal rate leaves out headers, and some codecs do not keep to it.
    """

    def octave(system: System) -> float:
        if system.rate is None or system.rate <= 0:
            return math.inf
        return max(0, math.ceil(math.log2(system.rate) - 1e-9))

    classes = []
    for k in sorted({octave(system) for system in systems}):
        above = "Up to" if k == 0 else "No bitrate given" if k == math.inf else f"Above {2 ** (k - 1):g}, up to"
        title = above if k == math.inf else f"{above} {2**k:g} kbit/s"
        classes.append((title, [system for system in systems if octave(system) == k]))
    return classes


def quality_plots(metrics: Metrics) -> str:
    """One plot a metric, one line a family; PESQ and STOI large, the others small."""
    families = list(dict.fromkeys(system.family for system in metrics.systems))
    names = [n for n in quality_metrics(metrics) if any(s.rate and _mean(s, n) is not None for s in metrics.systems)]
    main = [n for n in MAIN if n in names] or names[:2]
    if not names:
        return '<p class="note">No system has both a bitrate and a value to plot.</p>'
    legend = "".join(key(family, i) for i, family in enumerate(families))
    big = "".join(_quality_plot(metrics, name, families, (400, 235)) for name in main)
    small = "".join(_quality_plot(metrics, name, families, (300, 190)) for name in names if name not in main)
    unrated = [esc(s.name) for s in metrics.systems if not s.rate]
    note = f'<p class="note">Not drawn, since no bitrate is known: {", ".join(unrated)}.</p>' if unrated else ""
    return f'<ul class="legend">{legend}</ul><div class="plots main">{big}</div><div class="plots">{small}</div>{note}'


def missing(metrics: Metrics) -> str:
    """What was asked for and is absent, and what failed, with the reasons."""
    parts = ["<h3>Absent</h3>"]
    if metrics.absent:
        items = "".join(
            f"<li><b>{esc(a.name)}</b> ({esc(a.kind)}): absent, {esc(a.reason)}</li>" for a in metrics.absent
        )
        parts.append(f'<ul class="plain">{items}</ul>')
    else:
        parts.append("<p>Nothing that was asked for is absent.</p>")
    parts.append('<h3 id="failures">Failed files</h3>')
    groups: dict[tuple[str, str, str], list[str]] = {}  # many systems fail alike, on the same files
    for system in metrics.systems:
        for name, result in system.results.items():
            if result.failed:
                times = f"{count(result.failed)} of {count(result.n + result.failed)}"
                alike = (esc(metrics.metrics[name].label), times, _reasons(result))
                groups.setdefault(alike, []).append(esc(system.name))
    if groups:
        parts.append("<p>A file that a metric could not judge is counted here and is in no mean.</p>")
        rows = ((label, times, why, _names(systems, metrics)) for (label, times, why), systems in groups.items())
        head = ("Metric", "Failed", "Reasons", "Systems, each of them")
        parts.append(scroller("Failed files", table(head, rows, text_columns=4), "failed"))
    else:
        parts.append("<p>No file failed in any metric.</p>")
    return "\n".join(parts)


def value(result: Result, digits: int, percent: bool = False) -> str:
    """Mean, interval and n of a table's cell, each on its line."""
    scale, unit = (100.0, "\u2009%") if percent else (1.0, "")
    failed = f' · <a href="#failures">{count(result.failed)} failed</a>' if result.failed else ""
    if result.mean is None:
        return f"{NOTHING}<small>n 0{failed}</small>"
    between = ""
    if result.low is not None and result.high is not None:
        between = f"<small>[{number(scale * result.low, digits)}, {number(scale * result.high, digits)}]</small>"
    return f"<b>{number(scale * result.mean, digits)}{unit}</b>{between}<small>n {count(result.n)}{failed}</small>"


def _cell(result: Result | None, metric: Metric, star: str) -> str:
    if result is None:
        return '<td class="num none">not measured</td>'
    return f'<td class="num">{star}{value(result, metric.digits)}</td>'


def _interval(result: Result, metric: Metric) -> str:
    if result.low is None or result.high is None:
        return f"n {count(result.n)}"
    return f"[{number(result.low, metric.digits)}, {number(result.high, metric.digits)}]"


def _best(systems: Sequence[System], name: str, metric: Metric) -> dict[str, str]:
    """The mark of the best system of a class, by its id; hollow where another's interval overlaps with its own."""
    sign = {"higher": 1.0, "lower": -1.0, "none": 0.0}[metric.better]
    rated = [(s, s.results[name]) for s in systems if _mean(s, name) is not None]
    if sign == 0 or len(rated) < 2 or name in RATES:
        return {}
    winner, best = max(rated, key=lambda pair: sign * (pair[1].mean or 0.0))
    others = [result for system, result in rated if system is not winner]
    low, high = (best.low, best.high) if sign > 0 else (best.high, best.low)
    clear = low is not None and high is not None
    for other in others:
        bound = other.high if sign > 0 else other.low
        clear = clear and low is not None and bound is not None and sign * low > sign * bound
    if clear:
        return {winner.id: '<span class="star" role="img" aria-label="best, interval clear of the others">★</span>'}
    return {winner.id: '<span class="star" role="img" aria-label="best mean, intervals overlap">☆</span>'}


def _quality_plot(metrics: Metrics, name: str, families: Sequence[str], size: tuple[int, int]) -> str:
    metric = metrics.metrics[name]
    lines = []
    for style, family in enumerate(families):
        systems = [s for s in metrics.systems if s.family == family and s.rate and _mean(s, name) is not None]
        points = [_point(s, name, metric) for s in sorted(systems, key=lambda s: s.rate or 0.0)]
        if points:
            strong = any(s.kind == "model" for s in systems)
            lines.append(Line(family, points, style, strong=strong))
    rates = [p.x for line in lines for p in line.points]
    said = "; ".join(p.says for line in lines for p in line.points)
    drawing = plot(
        lines,
        f"{metric.label} against bitrate. {said}",
        log_ticks(min(rates), max(rates)),
        x_log=True,
        x_unit="kbit/s",
        size=size,
    )
    under = " · ".join(esc(t) for t in (metric.unit, ARROWS[metric.better]) if t)
    return f"<figure><figcaption>{esc(metric.label)}<div class=under>{under}</div></figcaption>{drawing}</figure>"


def _point(system: System, name: str, metric: Metric) -> Point:
    result = system.results[name]
    mean = result.mean or 0.0
    says = f"{system.name}, {system.rate:.3g} kbit/s: {number(mean, metric.digits)} {_interval(result, metric)}"
    return Point(system.rate or 0.0, mean, says, result.low, result.high)


def _mean(system: System, name: str) -> float | None:
    return system.results[name].mean if name in system.results else None


def _names(systems: Sequence[str], metrics: Metrics) -> str:
    every = len(systems) == len(metrics.systems) > 1
    return f"all {len(systems)} systems" if every else "; ".join(systems)


def _reasons(result: Result) -> str:
    reasons = Counter(result.reasons)
    told = [f"{esc(reason)}: {plural(times, 'file')}" for reason, times in reasons.most_common()]
    if (left := result.failed - reasons.total()) > 0:  # Counter.total is of Python 3.10
        told.append(f"no reason recorded: {plural(left, 'file')}")
    return "<br>".join(told)
