"""The report's view of single files: players with spectrograms, and the table of every file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from codec.evaluation.page.html import NOTHING, duration, esc, number, scroller, url
from codec.evaluation.page.spectrograms import HEIGHT, WIDTH, height_of, spectrograms
from codec.evaluation.results import Example, Metrics, Row
from codec.files import written_whole

SHOWN = 200  # rows of the table before "show all"
WORST = 10
MARKED = (500, 1000, 4000)  # Hz, named at the edge of a spectrogram


def worst_first(rows: Sequence[Row], metrics: Metrics) -> dict[str, int]:
    """Rank of each file by the first metric of the headline system, 1 the worst.

    Files that it has no value for and another system has come first; those that no system has one for have no rank.
    """
    first = next(iter(metrics.metrics))
    sign = -1.0 if metrics.metrics[first].better == "lower" else 1.0
    judged = {row.id: -math.inf for row in rows if row.values[first] is not None}
    judged |= {r.id: sign * v for r in rows if r.system == metrics.headline.id and (v := r.values[first]) is not None}
    return {name: rank for rank, name in enumerate(sorted(judged, key=lambda name: judged[name]), start=1)}


def draw_examples(metrics: Metrics, folder: Path) -> list[tuple[list[str], int]]:
    """Write the spectrograms of all examples to ``images/``: their paths, reference first, and the sample rate."""
    drawn = []
    (folder / "images").mkdir(exist_ok=True)
    for i, example in enumerate(metrics.examples or (), start=1):
        images, rate = spectrograms([folder / path for path in (example.reference, *example.systems.values())])
        names = [f"images/{i:04d}-{k:02d}.png" for k in range(len(images))]
        for name, image in zip(names, images, strict=True):
            with written_whole(folder / name) as temporary:
                temporary.write_bytes(image)
        drawn.append((names, rate))
    return drawn


def listening(metrics: Metrics, rows: Sequence[Row], drawn: Sequence[tuple[list[str], int]]) -> str:
    """A block an example: the original and every system, each with player, spectrogram and scores."""
    if not metrics.examples:
        return '<p class="note">No audio was kept.</p>'
    values = {(row.id, row.system): row for row in rows}
    parts = [
        '<p class="note">Spectrograms of one utterance share their axes (mel scale) and colours '
        "(80 dB below the loudest point of the original).</p>"
    ]
    for i, (example, (images, rate)) in enumerate(zip(metrics.examples, drawn, strict=True), start=1):
        names = {"": "Original", **{s.id: s.name for s in metrics.systems if s.id in example.systems}}
        paths = {"": example.reference, **example.systems}
        pictures = dict(zip(paths, images, strict=True))
        cards = "".join(
            _card(label, paths[k], pictures[k], rate, example, _scores(values.get((example.id, k)), metrics))
            for k, label in names.items()
        )
        why = {"worst": "among the worst", "example": "example"}.get(example.why, example.why)
        headline = _scores(values.get((example.id, metrics.headline.id)), metrics, 1)
        parts.append(
            f'<details class="example" id="example-{i}"{" open" if i == 1 else ""}><summary><b>{esc(example.id)}</b> '
            f"<span>{esc(why)} · {duration(example.seconds)}{f' · {headline}' if headline else ''}</span></summary>"
            f'<div class="cards">{cards}</div></details>'
        )
    return "\n".join(parts)


def file_table(metrics: Metrics, rows: Sequence[Row]) -> str:
    """The worst files of the headline system, and all rows as data from which the script makes any other view."""
    rank = worst_first(rows, metrics)
    order = {system.id: i for i, system in enumerate(metrics.systems)}
    last = len(rank) + 1
    rows = sorted(rows, key=lambda r: (rank.get(r.id, last), r.id, order[r.system]))
    mine = [row for row in rows if row.system == metrics.headline.id]
    anchors = {e.id: f"example-{i}" for i, e in enumerate(metrics.examples or (), start=1)}
    columns = [("rank", "#", 0), ("id", "File", -1), ("system", "System", -1)]
    columns += [(name, m.label, m.digits) for name, m in metrics.metrics.items()]
    columns += [("failures", "Failures", -1), ("seconds", "Seconds", 2), ("speaker", "Speaker", -1)]
    columns += [("source", "Source", -1)]
    names = {system.id: system.name for system in metrics.systems}
    head = "".join(
        f'<th scope="col"{"" if d < 0 else " class=num"}{" aria-sort=ascending" if k == "rank" else ""}>{esc(n)}</th>'
        for k, n, d in columns
    )
    body = "\n".join(_file_row(row, rank.get(row.id), names[row.system], columns, anchors) for row in mine[:SHOWN])
    data = {
        "shown": SHOWN,
        "worst": WORST,
        "columns": [{"key": k, "digits": d} for k, _, d in columns],
        "systems": [system.name for system in metrics.systems],
        "anchors": anchors,
        "rows": [
            [rank.get(r.id), r.id, order[r.system], *r.values.values(), r.failures, r.seconds, r.speaker, r.source]
            for r in rows
        ],
    }
    options = "".join(
        f'<option value="{i}"{" selected" if s.id == metrics.headline.id else ""}>{esc(s.name)}</option>'
        for i, s in enumerate(metrics.systems)
    )
    table = f'<table class="files" id="files-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (
        f'<div class="controls" id="files-controls" hidden><label>System <select id="files-system">{options}'
        '<option value="">all systems</option></select></label>'
        '<label>Find <input id="files-find" type="search" placeholder="file, speaker, source, failure"></label></div>'
        f"{scroller('Every file', table, 'tall')}"
        f'<p class="more"><span id="files-status" role="status">{min(SHOWN, len(mine))} of {len(mine)} rows of '
        f'{esc(metrics.headline.name)}; all are in <a href="per_file.csv">per_file.csv</a>.</span> '
        '<button id="files-all" type="button" hidden>Show all</button></p>'
        f'<script type="application/json" id="files-data">{_script(data)}</script>'
    )


def _card(label: str, path: str, picture: str, rate: int, example: Example, scores: str) -> str:
    name = f"{label}, {example.id}"
    marks = "".join(
        f'<span style="bottom:{100 * height_of(f, rate):.1f}%">{f / 1000:g}k</span>' for f in MARKED if f < 0.45 * rate
    )
    return (
        f'<figure class="card"><figcaption>{esc(label)}</figcaption><div class="spectrogram"><img src="{url(picture)}" '
        f'width="{WIDTH}" height="{HEIGHT}" loading="lazy" alt="Spectrogram: {esc(name)}">'
        f'<div class="marks" aria-hidden="true">{marks}</div></div>'
        f'<audio controls preload="none" src="{url(path)}" aria-label="{esc(name)}"></audio>'
        f"{scores and f'<p class=scores>{scores}</p>'}</figure>"
    )


def _scores(row: Row | None, metrics: Metrics, most: int = 2) -> str:
    """The first metrics of one file, as text."""
    if row is None:
        return ""
    first = list(metrics.metrics.items())[:most]
    return " · ".join(
        f"{esc(m.label)} {NOTHING if (v := row.values[name]) is None else number(v, m.digits)}" for name, m in first
    )


def _file_row(
    row: Row, rank: int | None, system: str, columns: Sequence[tuple[str, str, int]], anchors: Mapping[str, str]
) -> str:
    """As ``row`` of report.js makes it."""
    text = {"id": row.id, "system": system, "speaker": row.speaker, "source": row.source, "failures": row.failures}
    numbers = {"rank": rank, "seconds": row.seconds, **row.values}
    cells = []
    for name, _, digits in columns:
        if digits >= 0:
            found = numbers[name]
            cells.append(f'<td class="num">{NOTHING if found is None else number(found, digits)}</td>')
        elif name == "id":
            shown = esc(row.id)
            link = f'<a href="#{anchors[row.id]}">{shown}</a>' if row.id in anchors else shown
            cells.append(f'<th scope="row">{link}</th>')
        else:
            wraps = " class=text" if name == "failures" and row.failures else ""
            cells.append(f"<td{wraps}>{esc(text[name])}</td>")
    worst = ' class="worst"' if rank is not None and rank <= WORST else ""
    return f"<tr{worst}>{''.join(cells)}</tr>"


def _script(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
