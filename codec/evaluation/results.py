"""The results of an evaluation, ``metrics.json`` and ``per_file.csv``, which are written and read only here."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codec.config import from_dict, to_dict
from codec.errors import CodecError
from codec.files import atomic_write, write_text

FORMAT = 1
WORST = 10  # utterances that a report marks, with their audio


class ReportError(CodecError):
    """A folder that is not a report of this format; the message says why, and where in it."""


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values and the ends of its interval; None if there is no value, or too few for an interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def text(self, spec: str, interval: str = " ±{half}", without: str = "") -> str:
        """The mean in the format ``spec``, then the ``interval``, or ``without`` if there is none; "-" if there is no mean.

        ``interval`` names the ends, ``{low}`` and ``{high}``, or half of the width, ``{half}``:
        ``Estimate(2.5, 2.25, 2.75, 9).text(".2f")`` is ``2.50 ±0.25``.
        """
        if self.mean is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{self.mean:{spec}}{without}"
        ends = {"low": self.low, "high": self.high, "half": (self.high - self.low) / 2}
        return f"{self.mean:{spec}}" + interval.format(**{name: f"{value:{spec}}" for name, value in ends.items()})


@dataclass(frozen=True)
class Result(Estimate):
    """One metric of one system; the mean is without the ``failed`` files, which ``reasons`` counts by reason."""

    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """How a metric is called, shown (``digits`` after the point) and computed.

    ``better`` is "zero" for an error with a sign, "none" if no direction is good. With ``per_second`` the mean weighs each
    file by its duration, as the shortest files would dominate a mean of rates. ``package`` computes the metric, if this
    one does not; a report adds its version.
    """

    label: str
    unit: str
    better: Literal["higher", "lower", "zero", "none"]
    digits: int
    how: str
    per_second: bool = False
    package: str | None = ""

    def goodness(self, value: float) -> float:
        """A number that is larger for a better value; always 0 if no direction is better."""
        return {"higher": value, "lower": -value, "zero": -abs(value), "none": 0.0}[self.better]


@dataclass(frozen=True)
class System:
    """One codec at one bitrate: nominally ``kbps`` kbit/s, None where unknown.

    ``id`` is unique in a report, and the same in every report of the same system; ``kind`` is model, folder, opus or codec2.
    Systems of one ``family`` differ only in bitrate. ``results`` are by metric, ``by_source`` those on parts of the files.
    """

    id: str
    name: str
    family: str
    kind: str
    kbps: float | None
    how: str = ""
    results: dict[str, Result] = field(default_factory=dict)
    by_source: dict[str, dict[str, Result]] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """The bitrate for plots, kbit/s: that of the files, or the nominal one if that is not known."""
        measured = self.results.get("kbps_file")
        return measured.mean if measured is not None and measured.mean else self.kbps


@dataclass(frozen=True)
class Absent:
    """A metric or system that was asked for and could not be measured."""

    kind: Literal["metric", "system"]
    name: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The files measured; ``speakers`` is None if the manifest names none."""

    name: str
    sha256: str
    utterances: int
    seconds: float
    speakers: int | None = None


@dataclass(frozen=True)
class Model:
    """The model measured; ``frame_rate`` and ``sample_rate`` in Hz."""

    name: str
    fingerprint: str
    parameters: int
    sample_rate: int
    frame_rate: float
    num_quantizers: int
    codebook_size: int


@dataclass(frozen=True)
class Interval:
    """How the intervals were made: by resampling all of a ``unit``, "speakers" or "files", together."""

    level: float
    resamples: int
    unit: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Health of one stage's codebook; ``coverage`` holds (frames, share of entries hit by then)."""

    frames: int
    usage: float
    perplexity: float
    normalised_entropy: float
    unseen_mass: float
    stage: int
    coverage: tuple[tuple[int, float], ...] | None = None
    codebook_dimension: int | None = None
    codebook_effective_dimension: float | None = None
    codebook_size: int | None = None
    residual_energy: float | None = None


@dataclass(frozen=True)
class Latents:
    """The encoder's output: its width and the effective dimension measured over ``frames``."""

    dimension: int
    effective_dimension: float
    frames: int


@dataclass(frozen=True)
class Health:
    """The codebooks stage by stage."""

    stages: tuple[Stage, ...]
    latents: Latents | None = None
    notes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stability:
    """Share of codes that change under one change of the input: over all stages, and stage by stage."""

    key: str
    label: str
    changed: Result
    stages: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Spectra:
    """Mean spectra of the ``files`` that are wide-band: the highest level in dB of every ``step`` Hz, from 0 on.

    0 dB is a full-scale sine; ``systems`` holds by id those of the decoded files, ``recorded`` those of the recordings of
    a system that lacks some of the files.
    """

    step: float
    files: int
    reference: tuple[float, ...]
    systems: dict[str, tuple[float, ...]]
    recorded: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """Audio of one utterance, paths relative to the folder: the original and each system's output by system id."""

    id: str
    why: str
    seconds: float
    reference: str
    systems: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Results:
    """``metrics.json``: its keys are these fields, in this order."""

    format: int = FORMAT
    created: str
    command: str
    software: dict[str, Any]
    machine: dict[str, Any]
    manifest: Manifest
    model: Model | None = None
    interval: Interval
    alignment: str = ""
    metrics: dict[str, Metric]
    absent: tuple[Absent, ...] | None = None
    systems: tuple[System, ...]
    spectra: Spectra | None = None
    health: Health | None = None
    stability: tuple[Stability, ...] | None = None
    examples: tuple[Example, ...] | None = None

    @property
    def headline(self) -> System:
        """The model at its highest bitrate; the first system if no model was measured."""
        models = [s for s in self.systems if s.kind == "model"]
        return max(models, key=lambda s: s.kbps or 0.0) if models else self.systems[0]

    @property
    def ranking(self) -> str:
        """The first metric that says how good a file is; the first of all if there is none."""
        return next(
            (n for n, m in self.metrics.items() if m.better != "none" and n != "lines"), next(iter(self.metrics))
        )

    def write(self, folder: Path) -> None:
        """Write ``metrics.json`` into ``folder``."""
        text = json.dumps(to_dict(self), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "metrics.json", text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Results:
        """``metrics.json`` of a folder that codec-evaluate wrote; unknown keys, of newer versions, are ignored.

        A ReportError if it is missing, of another format, or lacks a key or has one of a wrong type.
        """
        with _reading(folder, "metrics.json") as path:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r} is not {FORMAT}, the one that this version reads")
            return from_dict(cls, values, ignore_unknown=True)


@dataclass(frozen=True)
class Row:
    """One file through one system; ``values`` by metric, None if there is none and ``failures`` says why."""

    id: str
    speaker: str
    source: str
    seconds: float
    system: str
    values: dict[str, float | None]
    failures: str


def worst_first(results: Results, rows: Sequence[Row]) -> dict[str, int]:
    """Rank of each file by :attr:`Results.ranking` of the headline system, 1 the worst.

    Files come first for which only other systems have a value; files for which no system has one have no rank.
    """
    first = results.ranking
    goodness = results.metrics[first].goodness
    judged = {row.id: -math.inf for row in rows if row.values[first] is not None}
    own = (row for row in rows if row.system == results.headline.id)
    judged |= {row.id: goodness(value) for row in own if (value := row.values[first]) is not None}
    return {name: rank for rank, name in enumerate(sorted(judged, key=lambda name: judged[name]), start=1)}


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write ``per_file.csv`` into ``folder``, one line per row; a metric without a value is an empty cell."""
    path = folder / "per_file.csv"
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "speaker", "source", "seconds", "system", *rows[0].values, "failures"])
        for row in rows:
            values = ["" if value is None else f"{value:.6g}" for value in row.values.values()]
            seconds = f"{row.seconds:.3f}" if row.seconds >= 0.001 else f"{row.seconds:.3g}"  # weights must not be 0
            writer.writerow([row.id, row.speaker, row.source, seconds, row.system, *values, row.failures])


def read_rows(folder: Path, results: Results) -> list[Row]:
    """``per_file.csv`` of ``folder``, in its order. Raises as :meth:`Results.read`."""
    with _reading(folder, "per_file.csv") as path, open(path, encoding="utf-8", newline="") as file:
        rows = [
            Row(
                *(cells["id"], cells["speaker"], cells["source"], float(cells["seconds"]), cells["system"]),
                {name: float(cells[name]) if cells[name] else None for name in results.metrics},
                cells["failures"],
            )
            for cells in csv.DictReader(file)
        ]
    for row in rows:
        values = [value for value in row.values.values() if value is not None]
        if not (row.seconds > 0 and all(map(math.isfinite, (row.seconds, *values)))):
            raise ReportError(f"{path}: the numbers of {row.id!r} cannot be; make the report again with codec-evaluate")
    return rows


@contextmanager
def _reading(folder: Path, name: str) -> Iterator[Path]:
    """The path of a report's file; what is wrong with the file becomes a ReportError."""
    try:
        yield folder / name
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(f"{folder} is no finished report: it has no {name}; codec-evaluate makes one") from None
    except (KeyError, TypeError, ValueError, RecursionError, csv.Error) as error:  # ConfigError is a ValueError
        said = f" has no {error}" if isinstance(error, KeyError) else f": {error}"
        raise ReportError(f"{folder / name}{said}; make the report again with codec-evaluate") from None
