"""The report's view of single files: players with spectrograms, and the data of the table of every file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codec.evaluation.results import Example, Results, Row
from codec.files import atomic_write

SHOWN = 200  # rows of the table before "show all"
WORST = 10
MARKED = (500, 1000, 4000)  # Hz, named at the edge of a spectrogram


class Card(NamedTuple):
    """One player: whose sound it is, paths of the audio and of its spectrogram, and the file's values where measured."""

    label: str
    path: str
    picture: str
    row: Row | None


class Listening(NamedTuple):
    """An example's players, the original first; ``marks`` name frequencies by their height in percent."""

    example: Example
    cards: list[Card]
    marks: list[tuple[str, float]]
    headline: Row | None


def draw_examples(results: Results, rows: Sequence[Row], folder: Path) -> list[Listening]:
    """Write the spectrograms of all examples to ``folder/images/``, and list the players that show them."""
    from codec.evaluation.page.spectrograms import height_of, spectrograms  # by torch, which takes seconds to import

    (folder / "images").mkdir(exist_ok=True)
    measured = {(row.id, row.system): row for row in rows}
    listed = []
    for number, example in enumerate(results.examples or (), start=1):
        heard = [system for system in results.systems if system.id in example.systems]
        sounds: list[tuple[str, str, Row | None]] = [("Original", example.reference, None)]
        sounds += [(s.name, example.systems[s.id], measured.get((example.id, s.id))) for s in heard]
        images, rate = spectrograms([folder / path for _, path, _ in sounds])
        cards = []
        for k, ((label, path, row), image) in enumerate(zip(sounds, images, strict=True)):
            picture = f"images/{number:04d}-{k:02d}.png"
            with atomic_write(folder / picture) as temporary:
                temporary.write_bytes(image)
            cards.append(Card(label, path, picture, row))
        marks = [(f"{f / 1000:g}k", 100 * height_of(f, rate)) for f in MARKED if f < 0.45 * rate]
        listed.append(Listening(example, cards, marks, measured.get((example.id, results.headline.id))))
    return listed


def worst_first(results: Results, rows: Sequence[Row]) -> dict[str, int]:
    """Rank of each file by the first metric of the headline system, 1 the worst.

    Files that it has no value for and another system has come first; those that no system has one for have no rank.
    """
    first = next(iter(results.metrics))
    goodness = results.metrics[first].goodness
    judged = {row.id: -math.inf for row in rows if row.values[first] is not None}
    judged |= {
        r.id: goodness(v) for r in rows if r.system == results.headline.id and (v := r.values[first]) is not None
    }
    return {name: rank for rank, name in enumerate(sorted(judged, key=lambda name: judged[name]), start=1)}


def file_data(results: Results, rows: Sequence[Row]) -> dict[str, Any]:
    """What the table of every file shows, as JSON takes it: the template draws its start, ``report.js`` any other view.

    A row has a value per column; its system is an index into ``systems``. Columns of text have -1 ``digits``.
    """
    rank = worst_first(results, rows)
    order = {system.id: i for i, system in enumerate(results.systems)}
    metrics = {name: m for name, m in results.metrics.items() if any(row.values[name] is not None for row in rows)}
    columns = [("rank", "#", 0), ("id", "File", -1), ("system", "System", -1)]
    columns += [(name, metric.label, metric.digits) for name, metric in metrics.items()]
    columns += [("failures", "Failures", -1), ("seconds", "Seconds", 2), ("speaker", "Speaker", -1)]
    columns += [("source", "Source", -1)]
    return {
        "shown": SHOWN,
        "worst": WORST,
        "columns": [{"key": key, "label": label, "digits": digits} for key, label, digits in columns],
        "systems": [system.name for system in results.systems],
        "headline": order[results.headline.id],
        "anchors": {example.id: f"example-{i}" for i, example in enumerate(results.examples or (), start=1)},
        "rows": [
            [
                rank.get(r.id),
                r.id,
                order[r.system],
                *map(r.values.get, metrics),
                r.failures,
                r.seconds,
                r.speaker,
                r.source,
            ]
            for r in sorted(rows, key=lambda r: (rank.get(r.id, math.inf), r.id, order[r.system]))
        ],
    }
