"""The plots of codebook health."""

from __future__ import annotations

from collections.abc import Sequence

from codec.evaluation.page.plots import Line, Plot, Point
from codec.evaluation.results import Stage


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
    title, under = "Coverage against frames seen", "share of entries hit; one line a stage"
    return Plot(title, under, label, lines, "frames", x_log=True, percent=True, name_ends=True)


def _usage(stages: Sequence[Stage]) -> Plot:
    shares = {"usage": [s.usage for s in stages], "normalised entropy": [s.normalised_entropy for s in stages]}
    lines = []
    for style, (name, values) in enumerate(shares.items()):
        pairs = zip(stages, values, strict=True)
        points = [Point(s.stage, y, f"stage {s.stage}, {name}: {100 * y:.1f} %") for s, y in pairs]
        lines.append(Line(name, points, style))
    label = "By stage: " + "; ".join(p.says for line in lines for p in line.points)
    return Plot("Usage and entropy by stage", "", label, lines, "stage", percent=True, legend=True)
