"""From the measurements of every utterance to the results of a report: means with intervals, a row per file and system."""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

import numpy as np

from codec.corpus.manifest import Record
from codec.evaluation import results as schema
from codec.evaluation.codebooks import model_health
from codec.evaluation.compare import LEVEL, RESAMPLES, SEED, bootstrap_mean
from codec.evaluation.measure import CHANGES, KNOWN, Cell, Measured, Plan
from codec.evaluation.metrics import METRICS, SHORTEST, SILENT, STEP, Array, is_wide, lines
from codec.evaluation.results import Result, Results, Row, Spectra, Stability
from codec.evaluation.runner import software_versions, spaced
from codec.evaluation.systems import ALIGNMENT, ModelFamily
from codec.workers import available_cores

REFERENCE = "reference"  # among the systems' ids, which all have a hyphen
DRAWN = 8  # values of a spectrum that become one point of its plot


def summarize(
    plan: Plan,
    absent: Sequence[schema.Absent],
    records: Sequence[Record],
    measured: Sequence[Measured],
    manifest: Path,
    workers: int,
    examples: int,
) -> tuple[Results, list[Row]]:
    """The report on the ``records`` of a ``manifest``, ``measured`` by ``workers`` processes.

    It deletes the audio of all but evenly spaced ``examples`` and the ten worst.
    """
    model = plan.families[0] if isinstance(plan.families[0], ModelFamily) else None
    health = model_health(plan, model, records, measured) if model else None
    speakers = {record.speaker for record in records if record.speaker}
    by_speaker = len(speakers) > 1  # with one speaker only files can be resampled
    units = [(by_speaker and record.speaker) or record.id for record in records]
    sources, files = sorted({record.source for record in records}), list(zip(records, measured, strict=True))
    parts = {name: [each for record, each in files if record.source == name] for name in sources if len(sources) > 1}
    means = _means(plan, measured, units)
    by_source = {name: _means(plan, part, units) for name, part in parts.items()}
    systems = [
        replace(system, results=means[system.id], by_source={name: each[system.id] for name, each in by_source.items()})
        for system in plan.systems
    ]
    metrics, software = {name: KNOWN[name] for name in plan.metrics}, software_versions(plan.metrics)
    digest, seconds = hashlib.sha256(manifest.read_bytes()).hexdigest(), sum(each.seconds for each in measured)
    results = Results(
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        software=software,
        machine={"processor": _processor(), "cores": available_cores(), "device": plan.device}
        | {"workers": workers, "threads_per_worker": 1},
        manifest=schema.Manifest(manifest.name, digest, len(records), seconds, len(speakers) or None),
        model=model.about if model else None,
        interval=schema.Interval(LEVEL, RESAMPLES, "speakers" if by_speaker else "files", SEED),
        alignment=ALIGNMENT,
        metrics={n: replace(m, package=m.package and f"{m.package} {software[m.package]}") for n, m in metrics.items()},
        absent=tuple(absent),
        systems=tuple(systems),
        spectra=_spectra(plan, measured),
        health=health,
        stability=_stability(measured, units) if plan.stability else (),
    )
    rows = [_row(plan, record, each, system.id) for record, each in files for system in systems]
    return replace(results, examples=_examples(plan, results, rows, measured, examples)), rows


def _means(plan: Plan, measured: Sequence[Measured], units: Sequence[str]) -> dict[str, dict[str, Result]]:
    """The mean over the files ``measured``, by system and metric; what is not known of a system is left out."""
    means: dict[str, dict[str, Result]] = {system.id: {} for system in plan.systems}
    spectra = _mean_spectra(plan, measured)
    for name, system in product(plan.metrics, means):
        cells = {each.index: each.cells[system][name] for each in measured if name in each.cells[system]}
        if any(isinstance(cell, float) for cell in cells.values()) or (cells and name in METRICS):
            seconds = {each.index: each.seconds for each in measured} if KNOWN[name].per_second else None
            means[system][name] = _mean(cells, units, seconds)
        elif name == "lines" and system in spectra:
            (recorded, spectrum), files = spectra[system]
            means[system][name] = Result(float(len(lines(spectrum, recorded))), None, None, files)
    return means


def _mean_spectra(plan: Plan, measured: Sequence[Measured]) -> dict[str, tuple[Array, int]]:
    """For each system and REFERENCE, the mean power of recordings and decoded speech, ``[2, F]``, over its wide-band files,
    weighted by seconds; and the number of these files.
    """
    sums: dict[str, tuple[Array, float, int]] = {}
    for each in measured:
        if each.seconds < SHORTEST or not plan.spectra(each.index).exists():
            continue
        levels = np.load(plan.spectra(each.index)).astype(np.float64)
        powers = (10 ** (levels / 10) - SILENT).clip(min=0)
        for name, power in zip([REFERENCE, *(system.id for system in plan.systems)], powers, strict=True):
            if is_wide(powers[0]) and np.isfinite(power[0]):
                both = np.stack([powers[0], power])
                total, seconds, files = sums.get(name, (np.zeros_like(both), 0.0, 0))
                width = min(total.shape[1], both.shape[1])
                sums[name] = total[:, :width] + each.seconds * both[:, :width], seconds + each.seconds, files + 1
    return {name: (total / seconds, files) for name, (total, seconds, files) in sums.items()}


def _spectra(plan: Plan, measured: Sequence[Measured]) -> Spectra | None:
    """The mean spectra as the page draws them; None without a wide-band file."""
    spectra = _mean_spectra(plan, measured)
    if not spectra:
        return None
    (recorded, _), most = spectra.pop(REFERENCE)
    decoded = {name: _levels(both[1]) for name, (both, _) in spectra.items()}
    fewer = {name: _levels(both[0]) for name, (both, files) in spectra.items() if files < most}
    return Spectra(DRAWN * STEP, most, _levels(recorded), decoded, fewer)


def _levels(power: Array) -> tuple[float, ...]:
    peaks = np.pad(power, (0, -len(power) % DRAWN)).reshape(-1, DRAWN).max(1)
    return tuple((10 * np.log10(peaks + SILENT)).round(1).tolist())


def _mean(cells: Mapping[int, Cell], units: Sequence[str], weights: Mapping[int, float] | None = None) -> Result:
    """Mean, interval, and failures by reason, of cells that are given by the utterance's index."""
    values = {index: cell for index, cell in cells.items() if isinstance(cell, float)}
    shares = [weights[index] for index in values] if weights else None
    estimate = bootstrap_mean(list(values.values()), [units[index] for index in values], shares)
    reasons = Counter(cell for cell in cells.values() if isinstance(cell, str))
    return Result(**asdict(estimate), failed=len(cells) - len(values), reasons=dict(reasons.most_common()))


def _stability(measured: Sequence[Measured], units: Sequence[str]) -> tuple[Stability, ...]:
    """The share of codes that differ, over all stages and stage by stage, for each change of the input."""
    entries = []
    for key, label in CHANGES.items():
        changed = {each.index: each.changed[key] for each in measured}
        shares = [each for each in changed.values() if not isinstance(each, str)]
        cells = {i: each if isinstance(each, str) else sum(each) / len(each) for i, each in changed.items()}
        stages = tuple(sum(column) / len(column) for column in zip(*shares, strict=True))
        entries.append(Stability(key, label, _mean(cells, units), stages))
    return tuple(entries)


def _examples(
    plan: Plan, results: Results, rows: Sequence[Row], measured: Sequence[Measured], count: int
) -> tuple[schema.Example, ...]:
    """The evenly spaced utterances and the worst, whose audio is kept; that of the others is deleted."""
    rank, chosen, examples = schema.worst_first(results, rows), spaced(len(measured), count), []
    for each, row in zip(measured, rows[:: len(results.systems)], strict=True):
        why = "worst" if rank.get(row.id, math.inf) <= schema.WORST else "example" if each.index in chosen else ""
        folder = plan.audio(each.index)
        paths = {path.stem: path.relative_to(plan.out).as_posix() for path in folder.glob("*.flac")}
        if not why:
            shutil.rmtree(folder, ignore_errors=True)
        elif paths:  # none: the reference cannot be read, or an earlier report did not keep it
            systems = {system: paths[system] for system in each.cells if system in paths}
            examples.append(schema.Example(row.id, why, each.seconds, paths["reference"], systems))
    return tuple(sorted(examples, key=lambda example: example.why))


def _row(plan: Plan, record: Record, measured: Measured, system: str) -> Row:
    cells = {name: measured.cells[system].get(name) for name in plan.metrics}
    values = {name: cell if isinstance(cell, float) else None for name, cell in cells.items()}
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, cell in cells.items():
        if isinstance(cell, str):
            reasons[cell].append(name)
    texts = (f"{'all' if len(names) == len(cells) else ', '.join(names)}: {text}" for text, names in reasons.items())
    return Row(record.id, record.speaker, record.source, measured.seconds, system, values, "; ".join(texts))


def _processor() -> str:
    facts = Path("/proc/cpuinfo")  # on Linux
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
