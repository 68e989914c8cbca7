"""An evaluation as a page to read and listen to: tables, plots, players with spectrograms, every file.

The page needs nothing from elsewhere and opens from disk. It is plain HTML; its script only sorts and filters the table of
files and stops a player when another starts.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from string import Template

from codec.evaluation.page.codebooks import codebooks, stability
from codec.evaluation.page.files import draw_examples, file_table, listening
from codec.evaluation.page.html import count, duration, esc, facts, moment, plural, scroller, table
from codec.evaluation.page.results import ARROWS, missing, quality_plots, results_table, source_tables, tiles
from codec.evaluation.results import Metrics, Model, Row, read_metrics, read_rows
from codec.files import written_whole


def write_report(folder: Path) -> Path:
    """Make ``folder/index.html`` from what an evaluation left there, and the spectrograms in ``folder/images/``.

    Args:
        folder: with ``metrics.json``, ``per_file.csv`` and the audio files that ``metrics.json`` names as examples.

    Returns:
        The page's path.

    Raises:
        ReportError: one of the files does not hold what it should; the message says where.
        OSError: a file cannot be read or written.
        soundfile.LibsndfileError: an example is not audio.
    """
    metrics = read_metrics(folder)
    rows = read_rows(folder, metrics)
    page = _page(metrics, rows, draw_examples(metrics, folder))
    target = folder / "index.html"
    with written_whole(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target


def _page(metrics: Metrics, rows: list[Row], drawn: list[tuple[list[str], int]]) -> str:
    script = _part("report.js")
    headline, model, manifest = metrics.headline, metrics.model, metrics.manifest
    subject = model.name if model else headline.name
    speakers = "" if manifest.speakers is None else f" of {plural(manifest.speakers, 'speaker')}"
    rate = "" if headline.kbps is None else f" at {headline.kbps:g} kbit/s"
    return Template(_part("report.html")).substitute(
        title=esc(f"Evaluation of {subject} on {manifest.name}"),
        subject=esc(subject),
        manifest=esc(manifest.name),
        # only this script may run, whatever the data holds
        policy="script-src 'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'",
        style=_part("report.css"),
        script=script,
        lede=f"{plural(manifest.utterances, 'utterance')}{speakers}, {duration(manifest.seconds)}. "
        f"{moment(metrics.created)}.",
        headline=f"{esc(headline.name)}{rate}",
        tiles=tiles(metrics),
        interval=_interval(metrics),
        results=results_table(metrics),
        sources=source_tables(metrics),
        absent_note=_absent_note(metrics),
        plots=quality_plots(metrics),
        missing=missing(metrics),
        listening=listening(metrics, rows, drawn),
        codebooks=codebooks(metrics.health),
        stability=stability(metrics.stability),
        first_metric=esc(next(iter(metrics.metrics.values())).label),
        files=file_table(metrics, rows),
        how=_how(metrics),
        facts=_facts(metrics),
    )


def _part(name: str) -> str:
    return files("codec.evaluation.page").joinpath(name).read_text(encoding="utf-8")


def _interval(metrics: Metrics) -> str:
    made = metrics.interval
    if not any(result.low is not None for system in metrics.systems for result in system.results.values()):
        return f"no interval, as there are too few {esc(made.unit)}"
    return (
        f"{100 * made.level:g}\u2009% interval by bootstrap over {esc(made.unit)} "
        f"({count(made.resamples)} resamples, seed {made.seed})"
    )


def _absent_note(metrics: Metrics) -> str:
    if not metrics.absent:
        return ""
    return f'<p class="note">Absent: {", ".join(esc(a.name) for a in metrics.absent)}. <a href="#missing">Why</a></p>'


def _how(metrics: Metrics) -> str:
    rows = [
        (esc(m.label), esc(m.how) or "–", esc(m.package or "this package"), esc(m.unit) or "–", ARROWS[m.better] or "–")
        for m in metrics.metrics.values()
    ]
    head = ("Metric", "How it was computed", "Package", "Unit", "Direction")
    families = {system.family: system.how for system in metrics.systems if system.how}
    made = "".join(f"<li><b>{esc(family)}</b>: {esc(how)}</li>" for family, how in families.items())
    aligned = f"<p>Alignment. {esc(metrics.alignment)}</p>" if metrics.alignment else ""
    systems = f'<ul class="plain">{made}</ul>' if made else ""
    return aligned + systems + scroller("How every metric was computed", table(head, rows, text_columns=5), "prose")


def _facts(metrics: Metrics) -> str:
    manifest = metrics.manifest
    described = (
        ("Name", esc(manifest.name)),
        ("SHA-256", f"<code>{esc(manifest.sha256)}</code>"),
        ("Utterances", count(manifest.utterances)),
        ("Speakers", "not known" if manifest.speakers is None else count(manifest.speakers)),
        ("Audio", duration(manifest.seconds)),
    )
    run = (("Date", moment(metrics.created)), ("Command", f"<code>{esc(metrics.command)}</code>"))
    blocks = (
        ("Model", _model(metrics.model)),
        ("Manifest", facts(described)),
        ("Machine", facts((name.replace("_", " "), esc(v)) for name, v in metrics.machine.items())),
        ("Software", facts((name, esc(v)) for name, v in metrics.software.items())),
        ("Run", facts(run)),
    )
    return "\n".join(f"<div><h3>{title}</h3>{body}</div>" for title, body in blocks)


def _model(model: Model | None) -> str:
    if model is None:
        return '<p class="note">No model was measured.</p>'
    described = (
        ("Name", esc(model.name)),
        ("Fingerprint", f"<code>{esc(model.fingerprint)}</code>"),
        ("Parameters", count(model.parameters)),
        ("Sample rate", f"{count(model.sample_rate)} Hz"),
        ("Frame rate", f"{model.frame_rate:g} Hz"),
        ("Codes a frame", f"{model.num_quantizers}, each of {count(model.codebook_size)}"),
    )
    return facts(described)
