"""From measured rows to metrics.json, per_file.csv and the examples to listen to."""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import math
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
import torch

from codec.corpus.manifest import Record
from codec.errors import CodecError
from codec.evaluation import alignment
from codec.evaluation.codebooks import codebook_health, count_codes
from codec.evaluation.measure import Plan, Reference, read_codes
from codec.evaluation.metrics import METRICS, Metric
from codec.evaluation.neural_metrics import PLUGINS
from codec.evaluation.runner import package_version, read_rows, software_versions
from codec.evaluation.stability import CHANGES
from codec.evaluation.statistics import LEVEL, RESAMPLES, SEED, bootstrap_mean
from codec.evaluation.stored import FORMAT
from codec.evaluation.systems import Failure, Family, ModelFamily, System, to_pcm
from codec.files import written_whole

WORST = 10


class Table:
    """Values and failures of every utterance and system, column by column.

    Attributes:
        values: system id -> metric -> {index of the utterance: value}.
        failures: system id -> metric -> {index: reason}.
    """

    def __init__(self, systems: Sequence[System]) -> None:
        self.values: dict[str, dict[str, dict[int, float]]] = {system.id: {} for system in systems}
        self.failures: dict[str, dict[str, dict[int, str]]] = {system.id: {} for system in systems}
        self.stability: dict[int, dict[str, Any]] = {}
        self.seconds: dict[int, float] = {}

    def add(self, result: dict[str, Any]) -> None:
        """Take in what was measured of one utterance."""
        index = result["index"]
        self.seconds[index] = result["seconds"]
        for row in result["rows"]:
            for name, value in row["values"].items():
                self.values[row["system"]].setdefault(name, {})[index] = value
            for name, reason in row["failures"].items():
                self.failures[row["system"]].setdefault(name, {})[index] = reason
        if result["stability"]:
            self.stability[index] = result["stability"]


def summarise(
    plan: Plan,
    absent: list[dict[str, str]],
    records: Sequence[Record],
    manifest: Path,
    out: Path,
    examples: int,
    workers: int,
) -> dict[str, Any]:
    """Write ``metrics.json``, ``per_file.csv`` and ``audio/`` into ``out``; returns what metrics.json holds."""
    families = plan.families()
    systems = [system for family in families for system in family.systems]
    table = Table(systems)
    for result in read_rows(out):
        table.add(result)
    speakers = {record.speaker for record in records if record.speaker}
    by_speaker = len(speakers) > 1  # the files of one speaker alone are all there is to resample
    units = [(by_speaker and record.speaker) or record.id for record in records]
    sources = _sources(records)
    metrics = {name: METRICS[name] for name in plan.metrics} | {name: PLUGINS[name].metric for name in plan.plugins}
    health = None
    if isinstance(families[0], ModelFamily):
        health = _model_health(plan, families[0], records, table)
    summary = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "software": software_versions(metrics.values()),
        "machine": _machine(workers, plan.device),
        "manifest": {
            "name": manifest.name,
            "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
            "utterances": len(records),
            "seconds": sum(table.seconds.values()),
            "speakers": len(speakers) or None,
        },
        "model": _model_facts(families[0].codec) if isinstance(families[0], ModelFamily) else None,
        "interval": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "unit": "speakers" if by_speaker else "files",
            "seed": SEED,
        },
        "alignment": alignment.HOW,
        "metrics": {name: _describe(metric) for name, metric in metrics.items()},
        "absent": absent,
        "systems": [
            asdict(system)
            | {
                "how": family.how,
                "results": _results(table, system.id, metrics, units),
                "by_source": {name: _results(table, system.id, metrics, units, of) for name, of in sources.items()},
            }
            for family in families
            for system in family.systems
        ],
        "health": health,
        "stability": _stability(table, units) if table.stability else [],
        "examples": write_examples(families, records, chosen(table, systems, metrics, len(records), examples), out),
    }
    write_table(out / "per_file.csv", records, systems, metrics, table)
    with written_whole(out / "metrics.json") as temporary:
        temporary.write_text(
            json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
    return summary


def _model_health(plan: Plan, family: ModelFamily, records: Sequence[Record], table: Table) -> dict[str, Any]:
    """Codebook health; adds each file's bits under the code frequencies of all files to the table."""
    counter = count_codes(plan, family.codec, len(records))
    if "kbps_entropy" in plan.metrics:
        share = counter.counts.double() / counter.counts.sum(dim=1, keepdim=True).clamp(min=1)
        bits = -share.clamp(min=1e-300).log2()
        for index in table.seconds:
            codes = read_codes(plan, index)
            if codes is None:
                continue
            of_stage = bits.gather(1, torch.from_numpy(codes)).sum(dim=1).cumsum(dim=0)
            for system, stages in zip(family.systems, family.stages, strict=True):
                kbps = float(of_stage[stages - 1]) / table.seconds[index] / 1000
                table.values[system.id].setdefault("kbps_entropy", {})[index] = kbps
    return codebook_health(plan, family.codec, records, counter)


def _sources(records: Sequence[Record]) -> dict[str, set[int]]:
    """The utterances of each of the manifest's sources, by their indices; nothing where all are of one."""
    sources: dict[str, set[int]] = {}
    for index, record in enumerate(records):
        sources.setdefault(record.source, set()).add(index)
    return dict(sorted(sources.items())) if len(sources) > 1 else {}


def _results(
    table: Table, system: str, metrics: dict[str, Metric], units: Sequence[str], among: set[int] | None = None
) -> dict[str, Any]:
    """Per metric: mean, interval, n, and what failed by reason, of all utterances or of those ``among`` them.

    Metrics that do not apply to the system are left out.
    """

    def wanted(of_all: dict[int, Any]) -> dict[int, Any]:
        return of_all if among is None else {index: found for index, found in of_all.items() if index in among}

    results = {}
    for name, metric in metrics.items():
        values, failures = (wanted(of[system].get(name, {})) for of in (table.values, table.failures))
        applies = metric.compute is not None or name in PLUGINS  # a folder's files have no bitrate and no speed
        if values or (failures and applies):
            results[name] = _estimate(values, failures, units, table.seconds if metric.per_second else None)
    return results


def _estimate(
    values: dict[int, float], failures: dict[int, str], units: Sequence[str], weights: dict[int, float] | None = None
) -> dict[str, Any]:
    order = sorted(values)
    estimate = bootstrap_mean(
        [values[index] for index in order],
        [units[index] for index in order],
        None if weights is None else [weights[index] for index in order],
    )
    reasons = dict(Counter(failures.values()).most_common())
    return asdict(estimate) | {"failed": len(failures), "reasons": reasons}


def _stability(table: Table, units: Sequence[str]) -> list[dict[str, Any]]:
    """Share of codes that change, over all stages and stage by stage, for each change of the input."""
    found = []
    for key, (label, _) in CHANGES.items():
        values = {index: entry["values"][key] for index, entry in table.stability.items() if key in entry["values"]}
        failures = {
            index: entry["failures"][key] for index, entry in table.stability.items() if key in entry["failures"]
        }
        of_all = {index: sum(shares) / len(shares) for index, shares in values.items()}
        stages = [sum(column) / len(column) for column in zip(*values.values(), strict=True)]
        found.append({"key": key, "label": label, "changed": _estimate(of_all, failures, units), "stages": stages})
    return found


def main_metric(metrics: Iterable[str]) -> str | None:
    """The metric that worst files are told by: the first that has a direction."""
    known = METRICS | {name: plugin.metric for name, plugin in PLUGINS.items()}
    return next((name for name in metrics if known[name].better != "none"), None)


def chosen(
    table: Table, systems: Sequence[System], metrics: dict[str, Metric], utterances: int, examples: int
) -> list[tuple[int, str]]:
    """Utterances to listen to: the worst ten of the first system by the main metric, and ``examples`` spread evenly.

    Those that the first system has no value for and another one has are worse than any value.
    """
    name = main_metric(metrics)
    values = table.values[systems[0].id].get(name, {}) if name else {}
    elsewhere = {index for system in systems for index in table.values[system.id].get(name, {})} if name else set()
    sign = -1 if name and metrics[name].better == "lower" else 1
    worst = sorted(elsewhere, key=lambda index: (sign * values.get(index, -sign * math.inf), index))[:WORST]
    step = max(1, utterances // max(examples, 1))
    spread = [index for index in range(step // 2, utterances, step) if index in table.seconds][:examples]
    picked = {index: "example" for index in spread} | {index: "worst" for index in worst}
    return sorted(picked.items(), key=lambda item: (item[1], item[0]))


def write_examples(
    families: Sequence[Family], records: Sequence[Record], picked: Sequence[tuple[int, str]], out: Path
) -> list[dict[str, Any]]:
    """FLAC files of reference and every system for the chosen utterances, 16 bit, at the reference's rate."""
    entries = []
    for index, why in picked:
        try:
            reference = Reference(records[index])
        except (CodecError, OSError):
            continue  # counted among the failures
        folder = Path("audio") / f"{index:06d}"
        (out / folder).mkdir(parents=True, exist_ok=True)
        rate = reference.record.sample_rate
        entry: dict[str, Any] = {"id": records[index].id, "why": why, "seconds": reference.record.duration}
        entry["reference"] = _write_flac(out, folder / "reference.flac", reference.waveform, rate)
        entry["systems"] = {}
        for family in families:
            for made in family.reconstruct(reference.record, reference.waveform):
                if not isinstance(made, Failure):
                    path = folder / f"{made.system.id}.flac"
                    entry["systems"][made.system.id] = _write_flac(out, path, made.waveform, rate)
        entries.append(entry)
    return entries


def _write_flac(out: Path, path: Path, waveform: Any, sample_rate: int) -> str:
    if not (out / path).exists():
        with written_whole(out / path) as temporary:
            soundfile.write(temporary, to_pcm(waveform), sample_rate, format="FLAC", subtype="PCM_16")
    return path.as_posix()


def write_table(
    path: Path, records: Sequence[Record], systems: Sequence[System], metrics: Iterable[str], table: Table
) -> None:
    """One line an utterance and system; an empty cell is a metric without a value, its reason stands in ``failures``."""
    names = list(metrics)
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "speaker", "source", "seconds", "system", *names, "failures"])
        for index in sorted(table.seconds):
            record = records[index]
            for system in systems:
                values = [table.values[system.id].get(name, {}).get(index) for name in names]
                reasons = {name: table.failures[system.id].get(name, {}).get(index) for name in names}
                cells = ["" if value is None else f"{value:.6g}" for value in values]
                failures = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
                seconds = f"{table.seconds[index]:.3f}"
                writer.writerow([record.id, record.speaker, record.source, seconds, system.id, *cells, failures])


def _describe(metric: Metric) -> dict[str, Any]:
    package = f"{metric.package} {package_version(metric.package)}" if metric.package else ""
    shown = ("label", "unit", "better", "digits", "how", "per_second")
    return {key: getattr(metric, key) for key in shown} | {"package": package}


def _machine(workers: int, device: str) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "workers": workers,
        "threads_per_worker": 1,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _model_facts(codec: Any) -> dict[str, Any]:
    return {
        "name": Path(codec.name).name,
        "fingerprint": codec.fingerprint,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "num_quantizers": codec.num_quantizers,
        "codebook_size": codec.codebook_size,
    }
