"""What the report is made from: ``metrics.json`` and ``per_file.csv``, checked and typed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from codec.evaluation.stored import ReportError, read_summary

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One metric of one system: the mean over ``n`` files and its interval; all three are None where ``n`` is 0.

    ``failed`` files had no value and are not in the mean; ``reasons`` counts them by reason.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """How a metric is called, shown (``digits`` after the point) and computed."""

    label: str
    unit: str
    better: Literal["higher", "lower", "none"]
    digits: int
    how: str
    package: str | None = None


@dataclass(frozen=True)
class System:
    """One codec at one bitrate, in kbit/s where it has one; ``by_source`` holds its results on parts of the files."""

    id: str
    name: str
    family: str
    kind: str
    kbps: float | None
    results: dict[str, Result]
    how: str = ""
    by_source: dict[str, dict[str, Result]] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """Bitrate to plot at, kbit/s: what the files really took, the nominal one where that is not known."""
        measured = self.results.get("kbps_file")
        return measured.mean if measured is not None and measured.mean else self.kbps


@dataclass(frozen=True)
class Absent:
    """What was asked for and could not be measured."""

    kind: Literal["metric", "system"]
    name: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The files measured."""

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
    """How the intervals were made: by resampling whole speakers or single files."""

    level: float
    resamples: int
    unit: str
    seed: int


@dataclass(frozen=True)
class Stage:
    """Health of one stage's codebook; ``coverage`` holds (frames, share of entries hit by then)."""

    stage: int
    frames: int
    usage: float
    perplexity: float
    normalised_entropy: float
    unseen_mass: float
    codebook_effective_dimension: float | None = None
    codebook_dimension: int | None = None
    residual_energy: float | None = None
    coverage: tuple[tuple[float, float], ...] | None = None


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
class Example:
    """Audio of one utterance, paths relative to the folder: the original and each system's output by system id."""

    id: str
    why: str
    seconds: float
    reference: str
    systems: dict[str, str]


@dataclass(frozen=True)
class Metrics:
    """``metrics.json``."""

    format: int
    created: str
    command: str
    software: dict[str, Any]
    machine: dict[str, Any]
    manifest: Manifest
    interval: Interval
    metrics: dict[str, Metric]
    systems: tuple[System, ...]
    absent: tuple[Absent, ...] | None = None
    model: Model | None = None
    health: Health | None = None
    stability: tuple[Stability, ...] | None = None
    examples: tuple[Example, ...] | None = None
    alignment: str = ""

    @property
    def headline(self) -> System:
        """The model at its highest bitrate; the first system where no model was measured."""
        models = [s for s in self.systems if s.kind == "model"]
        return max(models, key=lambda s: s.kbps or 0.0) if models else self.systems[0]

    def system(self, wanted: str) -> System:
        """The system with this id."""
        return next(s for s in self.systems if s.id == wanted)


@dataclass(frozen=True)
class Row:
    """One file through one system; ``values`` by metric, None where there is none."""

    id: str
    speaker: str
    source: str
    seconds: float | None
    system: str
    values: dict[str, float | None]
    failures: str


def read_metrics(folder: Path) -> Metrics:
    """``metrics.json`` of ``folder``; keys it has beyond those known are left alone.

    Raises:
        ReportError: a key is missing or of the wrong kind, or an audio file it names is not there.
        OSError: cannot be read.
    """
    metrics = _build(Metrics, read_summary(folder), "metrics.json")
    for complaint in _contradictions(metrics, folder):
        raise ReportError(f"metrics.json: {complaint}")
    return metrics


def read_rows(folder: Path, metrics: Metrics) -> list[Row]:
    """``per_file.csv`` of ``folder``, in its order.

    Raises:
        ReportError: a column is missing, a value is not a number, or a system is unknown.
        OSError: cannot be read.
    """
    with open(folder / "per_file.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        wanted = ["id", "speaker", "source", "seconds", "system", *metrics.metrics, "failures"]
        if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
            raise ReportError(f"per_file.csv has no column {', '.join(missing)}")
        known = {system.id for system in metrics.systems}
        return [_row(cells, metrics, known, f"per_file.csv, line {reader.line_num}") for cells in reader]


def _row(cells: dict[str, str], metrics: Metrics, known: set[str], where: str) -> Row:
    if None in cells or None in cells.values():
        raise ReportError(f"{where}: not as many cells as columns")
    if cells["system"] not in known:
        raise ReportError(f"{where}: system {cells['system']!r} is not in metrics.json")
    numbers = {name: _number(cells[name], f"{where}, {name}") for name in ("seconds", *metrics.metrics)}
    seconds = numbers.pop("seconds")
    return Row(cells["id"], cells["speaker"], cells["source"], seconds, cells["system"], numbers, cells["failures"])


def _number(text: str, where: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ReportError(f"{where}: {text!r} is not a finite number; leave the cell empty where there is no value")
    return value


def _contradictions(metrics: Metrics, folder: Path) -> Iterator[str]:
    """What is wrong although every value is of the right kind."""
    ids = [system.id for system in metrics.systems]
    if not ids or not metrics.metrics:
        yield "there is nothing to report: no system or no metric"
    if len(set(ids)) < len(ids) or "" in ids:
        yield "two systems have the same id, or one has none"
    for system in metrics.systems:
        for results in (system.results, *system.by_source.values()):
            if unknown := set(results) - set(metrics.metrics):
                yield f"system {system.id!r} has results of {sorted(unknown)}, which metrics does not describe"
            for name, result in results.items():
                if (result.mean is None) != (result.n == 0):
                    yield f"system {system.id!r}, {name}: a mean of {result.n} values cannot be {result.mean}"
    for example in metrics.examples or ():
        if unknown := set(example.systems) - set(ids):
            yield f"example {example.id!r} names systems {sorted(unknown)}, which are not there"
        for path in (example.reference, *example.systems.values()):
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or ":" in path or "\\" in path:
                yield f"example {example.id!r}: {path!r} must be a path below the report's folder"
            elif not (folder / path).is_file():
                yield f"example {example.id!r}: there is no file {path!r}"


def _build(kind: Any, value: Any, where: str) -> Any:
    """``value``, as JSON gives it, as an object of the type ``kind``; ``where`` it stands, for messages."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return None if value is None else _build(args[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ReportError(f"{where} must be one of {', '.join(map(repr, args))}, not {value!r}")
        return value
    if is_dataclass(kind):
        return _build_fields(kind, _of(dict, value, where, "an object"), where)
    if origin is dict:
        return {k: _build(args[1], v, f"{where}.{k}") for k, v in _of(dict, value, where, "an object").items()}
    if origin is tuple:
        items = _of(list, value, where, "a list")
        if Ellipsis not in args and len(items) != len(args):
            raise ReportError(f"{where} must have {len(args)} items, not {len(items)}")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if kind is float:
        number = float(_of((int, float), value, where, "a number"))
        if not math.isfinite(number):
            raise ReportError(f"{where} must be finite, not {number}")
        return number
    return _of(kind, value, where, {str: "text", int: "a whole number"}[kind])


def _build_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints, made = get_type_hints(kind), {}
    for entry in fields(kind):
        if entry.name in value:
            made[entry.name] = _build(hints[entry.name], value[entry.name], f"{where}.{entry.name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ReportError(f"{where}.{entry.name} is missing")
    return kind(**made)


def _of(kind: type[T] | tuple[type[T], ...], value: Any, where: str, called: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ReportError(f"{where} must be {called}, not {value!r:.40}")
    return value
