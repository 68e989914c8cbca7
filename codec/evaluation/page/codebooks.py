"""The report's view of the codebooks and of how stable the tokens are."""

from __future__ import annotations

from collections.abc import Sequence

from codec.evaluation.page.html import NOTHING, count, esc, number, percent, scroller, table
from codec.evaluation.page.plots import Line, Point, key, log_ticks, plot
from codec.evaluation.page.results import value
from codec.evaluation.results import Health, Stability, Stage


def codebooks(health: Health | None) -> str:
    """Plots and the table they are drawn from."""
    if health is None or not health.stages:
        return '<p class="note">Codebook health was not measured.</p>'
    parts = [f'<div class="plots main">{_coverage(health.stages)}{_usage(health.stages)}{_energy(health.stages)}</div>']
    head = (
        "Stage", "Frames seen", "Usage", "Perplexity", "Normalised entropy", "Unseen mass",
        "Effective dimensions", "Residual energy after",
    )  # fmt: skip
    parts.append(scroller("Codebook health", table(head, map(_stage_row, health.stages))))
    if latents := health.latents:
        parts.append(
            f"<p>The latents have {latents.dimension} dimensions, of which {number(latents.effective_dimension, 1)} "
            f"are effective over {count(latents.frames)} frames.</p>"
        )
    parts.append(
        '<p class="note">Usage is the share of entries hit at least once and grows with the frames seen. Unseen mass '
        "estimates the chance that the next frame hits an entry not hit so far. Effective dimensions are the "
        "participation ratio of the covariance's eigenvalues. Residual energy is what is left of the latents' energy "
        "after a stage.</p>"
    )
    parts += [f'<p class="note">{esc(note)}</p>' for note in health.notes or ()]
    return "\n".join(parts)


def stability(entries: Sequence[Stability] | None) -> str:
    """How many codes change when the input changes a little."""
    if not entries:
        return '<p class="note">Token stability was not measured.</p>'
    depth = max(len(entry.stages or ()) for entry in entries)
    head = ("Change of the input", "Codes changed", *(f"Stage {k + 1}" for k in range(depth)))
    rows = []
    for entry in entries:
        shares = list(entry.stages or ())
        cells = [f'<span class="share" style="--share:{s:.3f}">{percent(s)}</span>' for s in shares]
        cells += [NOTHING] * (depth - len(shares))
        rows.append((esc(entry.label), value(entry.changed, 1, percent=True), *cells))
    return scroller("Token stability", table(head, rows), "stability") + (
        '<p class="note">Share of codes that differ from those of the unchanged input at the same place; lower is '
        "better for language models over these tokens.</p>"
    )


def _stage_row(stage: Stage) -> tuple[str, ...]:
    dimension = NOTHING
    if stage.codebook_effective_dimension is not None:
        whole = "" if stage.codebook_dimension is None else f" of {stage.codebook_dimension}"
        dimension = number(stage.codebook_effective_dimension, 1) + whole
    return (
        str(stage.stage),
        count(stage.frames),
        percent(stage.usage),
        number(stage.perplexity, 0 if stage.perplexity >= 100 else 1),
        percent(stage.normalised_entropy),
        percent(stage.unseen_mass, 2),
        dimension,
        NOTHING if stage.residual_energy is None else percent(stage.residual_energy),
    )


def _coverage(stages: Sequence[Stage]) -> str:
    lines = []
    for i, stage in enumerate(stages):
        if points := [Point(x, y, "") for x, y in stage.coverage or () if x > 0]:
            lines.append(Line(str(stage.stage), points, shade=i / max(1, len(stages) - 1)))
    if not lines:
        return ""
    frames = [p.x for line in lines for p in line.points]
    ends = ", ".join(f"stage {line.name} {100 * line.points[-1].y:.1f} %" for line in lines)
    label = f"Share of codebook entries hit against frames seen; after {max(frames):g} frames: {ends}"
    ticks = [t for t in log_ticks(min(frames), max(frames)) if f"{t:g}".startswith("1")]
    drawing = plot(lines, label, ticks, x_log=True, y_range=(0, 1), percent=True, x_unit="frames", name_ends=True)
    return _figure("Coverage against frames seen", "share of entries hit; one line a stage", drawing)


def _usage(stages: Sequence[Stage]) -> str:
    kinds = (("usage", [s.usage for s in stages]), ("normalised entropy", [s.normalised_entropy for s in stages]))
    lines = [
        Line(
            name, [Point(s.stage, y, f"stage {s.stage}, {name}: {100 * y:.1f} %") for s, y in _with(stages, values)], i
        )
        for i, (name, values) in enumerate(kinds)
    ]
    label = "By stage: " + "; ".join(p.says for line in lines for p in line.points)
    drawing = plot(lines, label, [s.stage for s in stages], y_range=(0, 1), percent=True, x_unit="stage")
    legend = "".join(key(line.name, line.style) for line in lines)
    return _figure("Usage and entropy by stage", f'<ul class="legend">{legend}</ul>', drawing)


def _energy(stages: Sequence[Stage]) -> str:
    points = [
        Point(s.stage, s.residual_energy, f"stage {s.stage}: {100 * s.residual_energy:.1f} %")
        for s in stages
        if s.residual_energy is not None
    ]
    if not points:
        return ""
    label = "Residual energy after each stage: " + "; ".join(p.says for p in points)
    top = max(1.0, *(p.y for p in points))
    drawing = plot([Line("", points)], label, [p.x for p in points], y_range=(0, top), percent=True, x_unit="stage")
    return _figure("Residual energy", "left after each stage", drawing)


def _with(stages: Sequence[Stage], values: Sequence[float]) -> list[tuple[Stage, float]]:
    return list(zip(stages, values, strict=True))


def _figure(title: str, under: str, drawing: str) -> str:
    return f"<figure><figcaption>{title}<div class=under>{under}</div></figcaption>{drawing}</figure>"
