"""Means with bootstrap intervals; two reports on the same files: paired differences, system by system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codec.evaluation.results import Estimate, Metric, ReportError, Results, read_rows

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
FEWEST = 5  # units: resampling fewer says hardly anything about others
CHUNK = 2**22  # resampled indices to hold at once
OF_THE_MACHINE = {"rtf"}  # metrics that depend on how busy the machine was, and not only on the systems


def bootstrap_mean(values: Sequence[float], units: Sequence[str], weights: Sequence[float] | None = None) -> Estimate:
    """Mean of ``values`` with its percentile bootstrap interval (Efron 1979) at 95 %, 2,000 resamples, fixed seed.

    ``units`` names the unit of every value; units are drawn as a whole: utterances of one speaker are alike, and an interval
    would be too narrow if they were taken for independent. ``weights`` are positive, by default 1.
    """
    if not values:
        return Estimate(None, None, None, 0)
    names, member = np.unique(np.asarray(units), return_inverse=True)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums, counts = np.bincount(member, shares * np.asarray(values)), np.bincount(member, shares)
    mean = float(sums.sum() / counts.sum())
    if len(names) < FEWEST:
        return Estimate(mean, None, None, len(values))
    rng, means = np.random.default_rng(SEED), []
    for chunk in np.array_split(np.arange(RESAMPLES), 1 + RESAMPLES * len(names) // CHUNK):
        drawn = rng.integers(0, len(names), (len(chunk), len(names)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), len(values))


@dataclass(frozen=True)
class Difference:
    """One metric of a pair of systems over the utterances for which both have a value: ``difference`` is B minus A.

    ``share_better`` is the share of pairs in which B is better (a tie counts half), None if the metric has no direction;
    ``unpaired`` counts the utterances for which only one has a value.
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

    def text(self, metric: Metric) -> str:
        """A line of a table."""
        digits, gap = metric.digits, self.difference
        between = gap.text(f"+.{digits}f", " [{low}, {high}]", " [no interval]") + " *" * self.clear
        share = "" if self.share_better is None else f"  B better on {100 * self.share_better:3.0f} %"
        unpaired = f", {self.unpaired} unpaired" if self.unpaired else ""
        means = f"{self.mean_a:>9.{digits}f} {self.mean_b:>9.{digits}f}"
        return f"  {metric.label:<22} {means}  {between}{share}  (n {gap.n}{unpaired})"


class Report:
    """The report in a folder that codec-evaluate wrote. Raises as :meth:`Results.read`.

    ``values`` are by (system, metric) and id; ``units``, by id, are resampled as a whole: the speaker or the id.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, Results.read(folder)
        self.systems = [system.id for system in self.results.systems]
        rows, by_speaker = read_rows(folder, self.results), self.results.interval.unit == "speakers"
        self.units = {row.id: (by_speaker and row.speaker) or row.id for row in rows}
        self.seconds = {row.id: row.seconds for row in rows}
        self.values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for row in rows:
            for metric, value in row.values.items():
                if value is not None:
                    self.values[row.system, metric][row.id] = value


def compare(a: Report, b: Report, pairs: Sequence[tuple[str, str]] = ()) -> list[Difference]:
    """Differences B - A of every metric of every pair of systems, ids ``(in A, in B)``; no pairs: all common systems.

    A ReportError for a system that a report does not have, or if no system or no utterance is in both.
    """
    chosen = list(pairs) or [(system, system) for system in a.systems if system in b.systems]
    if not chosen:
        they = f"A has {', '.join(a.systems)}; B has {', '.join(b.systems)}"
        raise ReportError(f"no system is in both: {they}; name a pair with --pair A:B")
    for report, systems in zip((a, b), zip(*chosen, strict=True), strict=True):
        for system in systems:
            if system not in report.systems:
                raise ReportError(f"{report.folder} has no system {system}; it has {', '.join(report.systems)}")
    both = a.units.keys() & b.units.keys()
    if not both:
        raise ReportError("no utterance is in both reports")
    if odd := [key for key in both if abs(a.seconds[key] - b.seconds[key]) > 0.01]:
        lengths = f"{a.seconds[odd[0]]:.2f} s long in A and {b.seconds[odd[0]]:.2f} s in B"
        raise ReportError(f"{odd[0]} is {lengths}: not the same files")
    metrics = [metric for metric in a.results.metrics if metric in b.results.metrics and metric not in OF_THE_MACHINE]
    return [found for pair in chosen for metric in metrics if (found := _difference(a, b, *pair, metric))]


def _difference(a: Report, b: Report, system_a: str, system_b: str, metric: str) -> Difference | None:
    first, second = a.values[system_a, metric], b.values[system_b, metric]
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    about = a.results.metrics[metric]
    gaps = [second[key] - first[key] for key in both]
    weights = [a.seconds[key] if about.per_second else 1.0 for key in both]
    better = [(np.sign(about.goodness(second[key]) - about.goodness(first[key])) + 1) / 2 for key in both]
    mean_a, mean_b = (float(np.average([of[key] for key in both], weights=weights)) for of in (first, second))
    return Difference(
        *(system_a, system_b, metric, about.better, mean_a, mean_b),
        difference=bootstrap_mean(gaps, [a.units[key] for key in both], weights),
        share_better=None if about.better == "none" else float(np.mean(better)),
        unpaired=len(first.keys() ^ second.keys()),
    )


def unlike(a: Report, b: Report) -> list[str]:
    """How the two reports were measured differently, which their differences may come from."""
    notes = []
    if a.results.manifest.sha256 != b.results.manifest.sha256:
        notes.append("the manifests differ: only utterances of the same id are compared")
    theirs = {system.id: system for system in b.results.systems}
    families = {first.family: (first, theirs[first.id]) for first in a.results.systems if first.id in theirs}
    for first, second in families.values():
        if first.family != second.family:
            notes.append(f"the {first.kind} is {first.family} in A and {second.family} in B")
        elif first.how != second.how:
            notes.append(f"{first.family} was made otherwise in A ({first.how}) than in B ({second.how})")
    for name in sorted(a.results.metrics.keys() & b.results.metrics.keys() - OF_THE_MACHINE):
        one, other = a.results.metrics[name], b.results.metrics[name]
        if one.package != other.package:
            notes.append(f"{one.label} is by {one.package} in A and by {other.package} in B")
        elif one.how != other.how:
            notes.append(f"{one.label} is defined otherwise in A than in B")
    return notes
