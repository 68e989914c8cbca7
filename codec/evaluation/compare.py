"""Two reports on the same files: paired differences, system by system."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.evaluation.statistics import Estimate, bootstrap_mean
from codec.evaluation.stored import ReportError, read_summary


@dataclass(frozen=True)
class Difference:
    """One metric of a pair of systems over the utterances that both have a value for.

    Attributes:
        system_a, system_b, metric: what is compared.
        better: the metric's direction.
        mean_a, mean_b: over the pairs.
        difference: B minus A, with its interval.
        share_better: of the pairs, where B is better (0.5 a tie), None where the metric has no direction.
        unpaired: utterances that only one of them has a value for.
    """

    system_a: str
    system_b: str
    metric: str
    better: str
    mean_a: float
    mean_b: float
    difference: Estimate
    share_better: float | None
    unpaired: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True)
class Report:
    """What a report folder holds: ``metrics.json`` and the values of ``per_file.csv``."""

    folder: Path
    summary: dict[str, Any]
    values: dict[str, dict[str, dict[str, float]]]  # system -> metric -> id -> value
    units: dict[str, str]  # id -> what is resampled as a whole: speaker or id
    seconds: dict[str, float]  # id -> duration

    @property
    def systems(self) -> list[str]:
        """Ids in the report's order."""
        return [system["id"] for system in self.summary["systems"]]


def read_report(folder: Path) -> Report:
    """Read a folder that codec-evaluate wrote.

    Raises:
        ReportError: it is none, or an unfinished one.
    """
    try:
        summary = read_summary(folder)
        names = list(summary["metrics"])
        by_speaker = summary["interval"]["unit"] == "speakers"
        values: dict[str, dict[str, dict[str, float]]] = {}
        units: dict[str, str] = {}
        seconds: dict[str, float] = {}
        with open(folder / "per_file.csv", newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                units[line["id"]] = (by_speaker and line["speaker"]) or line["id"]
                seconds[line["id"]] = float(line["seconds"])
                of_system = values.setdefault(line["system"], {})
                for name in names:
                    if line[name]:
                        of_system.setdefault(name, {})[line["id"]] = float(line[name])
    except (FileNotFoundError, NotADirectoryError) as error:
        name = Path(str(error.filename)).name
        raise ReportError(f"{folder} is no finished report: it has no {name}; codec-evaluate makes one") from None
    except ReportError:
        raise
    except KeyError as error:
        raise ReportError(f"{folder} holds a report without {error}; make it again with codec-evaluate") from None
    except (TypeError, ValueError) as error:
        raise ReportError(f"{folder} holds a report that cannot be read ({error}); make it again") from None
    return Report(folder, summary, values, units, seconds)


def compare(a: Report, b: Report, pairs: Sequence[tuple[str, str]] = ()) -> list[Difference]:
    """Differences B - A of every metric of every pair of systems.

    Args:
        pairs: ids ``(in A, in B)``; none for all systems that both reports have.

    Raises:
        ReportError: a system that a report does not have; no system or no utterance in common.
    """
    chosen = list(pairs) or [(system, system) for system in a.systems if system in b.systems]
    if not chosen:
        raise ReportError(
            f"no system is in both: A has {', '.join(a.systems)}; B has {', '.join(b.systems)}; name a pair with --pair A:B"
        )
    for report, ids in ((a, {pair[0] for pair in chosen}), (b, {pair[1] for pair in chosen})):
        for system in sorted(ids - set(report.systems)):
            raise ReportError(f"{report.folder} has no system {system}; it has {', '.join(report.systems)}")
    if not a.units.keys() & b.units.keys():
        raise ReportError("no utterance is in both reports")
    odd = next((key for key in a.units.keys() & b.units.keys() if abs(a.seconds[key] - b.seconds[key]) > 0.01), None)
    if odd is not None:
        raise ReportError(
            f"{odd} is {a.seconds[odd]:.2f} s long in A and {b.seconds[odd]:.2f} s in B: not the same files"
        )
    differences = []
    for system_a, system_b in chosen:
        for metric in a.summary["metrics"]:
            if metric in b.summary["metrics"]:
                found = _difference(a, b, system_a, system_b, metric)
                differences += [found] if found else []
    return differences


def _difference(a: Report, b: Report, system_a: str, system_b: str, metric: str) -> Difference | None:
    first, second = a.values.get(system_a, {}).get(metric, {}), b.values.get(system_b, {}).get(metric, {})
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    gaps = [second[key] - first[key] for key in both]
    per_second = a.summary["metrics"][metric].get("per_second", False)
    weights = [a.seconds[key] if per_second else 1.0 for key in both]
    better = a.summary["metrics"][metric]["better"]
    sign = {"higher": 1, "lower": -1}.get(better)
    wins = None if sign is None else sum(0.5 if gap == 0 else float(sign * gap > 0) for gap in gaps) / len(gaps)
    return Difference(
        system_a=system_a,
        system_b=system_b,
        metric=metric,
        better=better,
        mean_a=float(np.average([first[key] for key in both], weights=weights)),
        mean_b=float(np.average([second[key] for key in both], weights=weights)),
        difference=bootstrap_mean(gaps, [a.units[key] for key in both], weights),
        share_better=wins,
        unpaired=len(first.keys() ^ second.keys()),
    )


def unlike(a: Report, b: Report) -> list[str]:
    """In what the two reports were not measured alike; a comparison may then compare just that."""
    found = []
    if a.summary["manifest"]["sha256"] != b.summary["manifest"]["sha256"]:
        found.append("the manifests differ: only utterances of the same id are compared")
    for name in a.summary["metrics"].keys() & b.summary["metrics"].keys():
        first, second = a.summary["metrics"][name], b.summary["metrics"][name]
        if first["package"] != second["package"]:
            found.append(f"{first['label']} is by {first['package']} in A and by {second['package']} in B")
        elif first["how"] != second["how"]:
            found.append(f"{first['label']} is defined otherwise in A than in B")
    return sorted(found)


def plain(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(difference) | {"clear": difference.clear} for difference in differences]
