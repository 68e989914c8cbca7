"""What the results show beyond the plain numbers: classes of bitrate, the best of each, plots, failures alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from codec.evaluation.page.plots import Line, Plot, Point
from codec.evaluation.page.text import number
from codec.evaluation.results import Metric, Result, Results, Spectra, Stage, System

RATES = {"kbps_file", "kbps_entropy"}  # say how many bits were spent, not how well
MAIN = ("pesq", "stoi")
ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better", "zero": "→ 0 is best", "none": ""}


def bitrate_classes(systems: Sequence[System]) -> list[tuple[str, list[System]]]:
    """Octaves of bitrate up to 1, 2, 4, ... kbit/s, each with its systems in the order given; last, those without.

    What counts are the bits that the files took: a nominal rate leaves out headers, and some codecs do not keep to it.
    """

    classes: dict[float, list[System]] = defaultdict(list)
    for system in systems:
        octave = max(0, math.ceil(math.log2(system.rate) - 1e-9)) if system.rate else math.inf
        classes[octave].append(system)
    titles = {0: "Up to 1 kbit/s", math.inf: "No bitrate given"}
    return [(titles.get(k, f"Above {2.0 ** (k - 1):g}, up to {2.0**k:g} kbit/s"), classes[k]) for k in sorted(classes)]


def best_system(systems: Sequence[System], name: str, metric: Metric) -> tuple[str, bool] | None:
    """Id of the system with the best mean of a metric, and whether its interval is clear of all others'.

    None where nothing is to be judged: the metric has no direction or is a bitrate, or fewer than two have a value.
    """
    rated = {s.id: s.results[name] for s in systems if _mean(s, name) is not None}
    if metric.better == "none" or name in RATES or len(rated) < 2:
        return None
    best = max(rated, key=lambda system: metric.goodness(rated[system].mean or 0.0))

    def ends(result: Result) -> list[float]:
        if result.low is None or result.high is None:
            return [-math.inf, math.inf]
        return sorted(map(metric.goodness, (result.low, min(max(0.0, result.low), result.high), result.high)))

    return best, all(ends(rated[best])[0] > ends(rated[other])[-1] for other in rated if other != best)


def quality_metrics(results: Results) -> list[str]:
    """The metrics that say how well, not how dearly."""
    return [n for n, m in results.metrics.items() if m.better != "none" and n not in RATES]


def under(metric: Metric) -> str:
    """Unit and direction of a metric."""
    return " · ".join(text for text in (metric.unit, ARROWS[metric.better]) if text)


def interval(result: Result, digits: int) -> str:
    """The interval of a mean, or how many files the mean rests on where it has none."""
    if result.low is None or result.high is None:
        return f"n {result.n:,}"
    return f"[{number(result.low, digits)}, {number(result.high, digits)}]"


def quality_plots(results: Results) -> tuple[list[Plot], list[Plot]]:
    """One plot per metric of quality against bitrate, one line per family: those of PESQ and STOI large, then the rest.

    Only systems with both a bitrate and a value are drawn; a metric that has none of them has no plot.
    """
    names = [n for n in quality_metrics(results) if any(s.rate and _mean(s, n) is not None for s in results.systems)]
    main = [n for n in MAIN if n in names] or names[:2]
    large = [_quality_plot(results, name, 400, 235) for name in main]
    return large, [_quality_plot(results, name, 300, 190) for name in names if name not in main]


def failures(results: Results) -> dict[tuple[str, int, int, tuple[tuple[str, int], ...]], list[str]]:
    """Names of the systems that failed alike: label of the metric, failed files, all files, reasons and their counts."""
    groups = defaultdict(list)
    for system in results.systems:
        for name, result in system.results.items():
            if result.failed:
                files, reasons = result.n + result.failed, tuple(result.reasons.items())
                groups[results.metrics[name].label, result.failed, files, reasons].append(system.name)
    return groups


def _quality_plot(results: Results, name: str, width: int, height: int) -> Plot:
    metric, digits = results.metrics[name], results.metrics[name].digits
    lines = []
    for style, family in enumerate(dict.fromkeys(system.family for system in results.systems)):
        points, kinds = [], set()
        for system in results.systems:
            rate, mean = system.rate, _mean(system, name)
            if system.family == family and rate and mean is not None:
                result = system.results[name]
                says = f"{system.name}, {rate:.3g} kbit/s: {number(mean, digits)} {interval(result, digits)}"
                points.append(Point(rate, mean, says, result.low, result.high))
                kinds.add(system.kind)
        if points:
            lines.append(Line(family, sorted(points, key=lambda p: p.x), style, strong="model" in kinds))
    label = f"{metric.label} against bitrate. {'; '.join(p.says for line in lines for p in line.points)}"
    return Plot(metric.label, under(metric), label, lines, "kbit/s", x_log=True, width=width, height=height)


def spectrum_plots(results: Results) -> list[Plot]:
    """One plot per system: the mean spectra of the recordings and of what it decoded, in dB over kHz."""
    plots, spectra = [], results.spectra or Spectra(0.0, 0, (), {})
    for system in (system for system in results.systems if system.id in spectra.systems):
        count = number(_mean(system, "lines") or 0.0, 0)
        levels = {"recordings": spectra.reference, f"decoded, {count} lines": spectra.systems[system.id]}
        lines = []
        for style, (name, values) in enumerate(levels.items()):
            points = [Point(place * spectra.step / 1000, level) for place, level in enumerate(values)]
            lines.append(Line(name, points, style, marked=False))
        label = f"{system.name}: mean spectra of the recordings and of what was decoded, {count} lines above 7 kHz"
        plots.append(Plot(system.name, "", label, lines, "kHz", width=300, height=190, legend=True))
    return plots


def codebook_plots(stages: Sequence[Stage]) -> list[Plot]:
    """Coverage against frames, usage and entropy by stage, residual energy by stage; those that have points."""
    if not stages:
        return []
    energies = [(stage.stage, stage.residual_energy) for stage in stages if stage.residual_energy is not None]
    plots = [_coverage(stages)] if any(stage.coverage for stage in stages) else []
    plots.append(_usage(stages))
    if energies:
        points = [Point(stage, energy, f"stage {stage}: {100 * energy:.1f} %") for stage, energy in energies]
        label = "Residual energy after each stage: " + "; ".join(p.says for p in points)
        plots.append(Plot("Residual energy", "left after each stage", label, [Line("", points)], "stage", percent=True))
    return plots


def _coverage(stages: Sequence[Stage]) -> Plot:
    lines = [
        Line(str(stage.stage), [Point(*point) for point in stage.coverage], shade=i / max(1, len(stages) - 1))
        for i, stage in enumerate(stages)
        if stage.coverage
    ]
    ends = ", ".join(f"stage {line.name} {100 * line.points[-1].y:.1f} %" for line in lines)
    frames = max(line.points[-1].x for line in lines)
    label = f"Share of codebook entries hit against frames seen; after {frames:g} frames: {ends}"
    under = "share of entries hit; one line per stage, the later the stronger"
    return Plot("Coverage against frames seen", under, label, lines, "frames", x_log=True, percent=True)


def _usage(stages: Sequence[Stage]) -> Plot:
    shares = {"usage": [s.usage for s in stages], "normalised entropy": [s.normalised_entropy for s in stages]}
    lines = []
    for style, (name, values) in enumerate(shares.items()):
        pairs = zip(stages, values, strict=True)
        points = [Point(s.stage, y, f"stage {s.stage}, {name}: {100 * y:.1f} %") for s, y in pairs]
        lines.append(Line(name, points, style))
    label = "By stage: " + "; ".join(p.says for line in lines for p in line.points)
    return Plot("Usage and entropy by stage", "", label, lines, "stage", percent=True, legend=True)


def _mean(system: System, name: str) -> float | None:
    return system.results[name].mean if name in system.results else None
