"""One utterance through all systems and metrics: the work of one process."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from codec.audio import resample
from codec.config import RATES
from codec.corpus.manifest import Record
from codec.corpus.scan import read_record, reason_of
from codec.errors import CodecError
from codec.evaluation.metrics import COSTS, LINES, METRICS, SILENT, MetricError, Pair, Waveform, mean_spectrum
from codec.evaluation.results import System
from codec.evaluation.systems import CLASSICAL, Family, FolderFamily, ModelFamily, Outcome, write_pcm
from codec.level import check_peak
from codec.model import Codec

LONGEST = 120  # seconds of an utterance: pitch tracking holds all of it at once, 2 MiB a second
KNOWN = {name: each.about for name, each in METRICS.items()} | {"lines": LINES} | COSTS  # all metrics by name

CHANGES = {  # of the input: the speech stays the same, but codes change
    "shift_quarter": "input starts a quarter of a hop later",
    "shift_half": "input starts half a hop later",
    "scale": "input 6 dB quieter",
    "slice": "middle half of the input encoded by itself",
    "again": "decoded and encoded again",
}

Cell = float | str  # the value of a metric, or the reason why it has none
Changed = dict[str, list[float] | str]  # see changed_codes


class EvaluationError(CodecError):
    """An evaluation that cannot be run as asked; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and the folder ``out`` of the report; plain values, as each process gets a copy.

    ``model`` is a name or folder, "" for none; ``folders`` has by name the folders of reconstructions, with their kbit/s
    if it was given; ``classical`` and ``metrics`` are names in CLASSICAL and KNOWN.
    """

    model: str
    num_quantizers: tuple[int, ...]
    folders: dict[str, tuple[str, float | None]]
    classical: tuple[str, ...]
    metrics: tuple[str, ...]
    stability: bool
    normalize: bool
    refine_steps: int
    device: str
    out: Path

    @cached_property
    def families(self) -> list[Family]:
        """The families of systems, loaded once, the model first; an EvaluationError if there is none, or an id twice."""
        families: list[Family] = []
        if self.model:
            codec = Codec.from_pretrained(self.model, self.device)
            families.append(ModelFamily(codec, self.num_quantizers, self.normalize, self.refine_steps))
        families += [FolderFamily(name, Path(folder), kbps) for name, (folder, kbps) in self.folders.items()]
        families += [CLASSICAL[name]() for name in self.classical]
        ids = Counter(system.id for family in families for system in family.systems)
        if not ids:
            raise EvaluationError("nothing to measure: no model, no --reconstructions, no classical codec here")
        names = Counter(family.systems[0].family for family in families)  # which name the lines of plots
        if twice := [name for counts in (ids, names) for name, count in counts.items() if count > 1]:
            raise EvaluationError(f"two systems would both be called {twice[0]}; give --reconstructions other names")
        return families

    @property
    def systems(self) -> list[System]:
        """The systems of all families, in their order."""
        return [system for family in self.families for system in family.systems]

    def codes(self, index: int) -> Path:
        """The file of the model's codes of the utterance at ``index`` of the manifest."""
        return self.out / "codes" / f"{index:06d}.codes"

    def audio(self, index: int) -> Path:
        """The folder of an utterance's audio: ``reference.flac``, and ``ID.flac`` of every system."""
        return self.out / "audio" / f"{index:06d}"

    def spectra(self, index: int) -> Path:
        """The file of mean spectra in dB, float16 ``[1 + systems, F]``, the reference's first; NaN: failed or silent."""
        return self.out / "spectra" / f"{index:06d}.npy"


@dataclass
class Measured:
    """What was measured of the utterance at ``index`` of the manifest, by system and metric: a line of ``rows.jsonl``."""

    index: int
    seconds: float
    cells: dict[str, dict[str, Cell]]
    changed: Changed  # empty if token stability was not measured


def read_utterance(record: Record) -> tuple[Record, Waveform]:
    """The waveform ``[T]``, and the record with the length and rate of the file, even if the manifest has others.

    Raises CodecError if it cannot be measured, or kept as FLAC, and OSError if it is not there.
    """
    if record.duration > LONGEST:  # before it fills the memory
        raise CodecError(f"longer than {LONGEST} s; cut it into utterances")
    waveform, sample_rate = read_record(record)
    if not RATES[0] <= sample_rate <= 655_350 or (sample_rate >= 2**16 and sample_rate % 10):  # FLAC has no others
        raise CodecError(f"its rate of {sample_rate} Hz is below {RATES[0]}, or none of FLAC's; resample it")
    check_peak(waveform)
    return replace(record, sample_rate=sample_rate, num_samples=len(waveform)), waveform


def measure_utterance(plan: Plan, item: tuple[int, Record]) -> Measured:
    """Measure one utterance by all systems, and write its audio and codes; bad audio is a reason in every cell."""
    torch.set_num_threads(1)  # one process per core is faster than threads that wait for each other
    index, record = item
    audio = plan.audio(index)
    shutil.rmtree(audio, ignore_errors=True)  # files of an evaluation that was killed
    audio.mkdir()
    waveform, outcomes = np.zeros(0, np.float32), list[Outcome]()
    try:
        record, waveform = read_utterance(record)
    except (CodecError, OSError) as error:
        reason = f"reference unreadable: {reason_of(error, record.path)}"
        outcomes += [reason] * len(plan.systems)
    else:
        write_pcm(audio / "reference.flac", waveform, record.sample_rate)
        outcomes += [outcome for family in plan.families for outcome in family.reconstruct(record, waveform)]
    cells = {}
    for system, outcome in zip(plan.systems, outcomes, strict=True):
        if not isinstance(outcome, str):
            write_pcm(audio / f"{system.id}.flac", outcome.waveform, record.sample_rate)
        cells[system.id] = _cells(plan.metrics, record, waveform, outcome)
    if "lines" in plan.metrics and waveform.any():  # digital silence has no bandwidth
        nothing = np.full(len(waveform), np.nan, np.float32)
        decoded = [nothing[:0] if isinstance(each, str) else each.waveform for each in outcomes]
        waveforms = [waveform, *(each if each.any() else nothing for each in decoded)]
        powers = np.stack([mean_spectrum(each, record.sample_rate) for each in waveforms])
        np.save(plan.spectra(index), (10 * np.log10(powers + SILENT)).astype(np.float16))
    first = outcomes[0]  # if there is a model: its outcome with the most quantizers
    if not isinstance(first, str) and first.coded is not None and first.codes is not None:
        plan.codes(index).write_bytes(first.coded)
    changed = changed_codes(plan.families[0], record, waveform, first) if plan.stability else {}
    return Measured(index, record.duration, cells, changed)


def _cells(metrics: Sequence[str], record: Record, waveform: Waveform, outcome: Outcome) -> dict[str, Cell]:
    if isinstance(outcome, str):
        return dict.fromkeys(metrics, outcome)
    pair = Pair(waveform, outcome.waveform, record.sample_rate)
    cells = {name: _score(name, pair) for name in metrics if name in METRICS}
    kilobits = None if outcome.coded is None else len(outcome.coded) * 8 / 1000
    costs = {"kbps_file": kilobits, "rtf": outcome.seconds}.items()
    return cells | {n: c / record.duration for n, c in costs if c is not None and n in metrics}


def _score(name: str, pair: Pair) -> Cell:
    try:
        value = METRICS[name].compute(pair)
    except MetricError as error:
        return str(error)
    except Exception as error:  # of another package: one strange file must not end an evaluation of thousands
        if not KNOWN[name].package:
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return value if np.isfinite(value) else "not finite"


def changed_codes(family: Family, record: Record, samples: Waveform, outcome: Outcome) -> Changed:
    """For each of :data:`CHANGES`, the share of codes that differ per stage, ``[K]``, or the reason why there is none.

    It compares the codes of changed ``samples [T]`` with those in ``outcome``, frame by frame at the same index. A slice is
    cut at whole frames, and the frames at its edges count too.
    """
    if isinstance(outcome, str):
        return dict.fromkeys(CHANGES, outcome)
    assert isinstance(family, ModelFamily) and outcome.codes is not None
    try:
        _ = Pair(samples, samples, record.sample_rate).waveforms  # what no metric has a meaning for has no stable codes
    except MetricError as error:
        return dict.fromkeys(CHANGES, str(error))
    codec, codes = family.codec, outcome.codes
    waveform = torch.from_numpy(resample(samples, record.sample_rate, codec.sample_rate))
    hop, frames = codec.hop_length, codes.shape[-1]
    start, stop = (frames // 4, frames - frames // 4) if frames >= 4 else (0, 0)  # of fewer frames it would be all
    inputs = {  # changed waveforms, each with the original codes to compare with
        "shift_quarter": (waveform[hop // 4 :], codes),
        "shift_half": (waveform[hop // 2 :], codes),
        "scale": (waveform * 10 ** (-6 / 20), codes),
        "slice": (waveform[start * hop : stop * hop], codes[:, start:stop]),
        "again": (codec.decode(codes[None]), codes),
    }
    shares: Changed = {}
    for name, (changed, before) in inputs.items():
        try:
            if not changed.numel():
                raise MetricError("too short for this change")
            after, _ = family.encode(changed.flatten(), codec.sample_rate, len(codes))
        except CodecError as error:  # too short, or decoded louder than an encoder takes
            shares[name] = str(error)
            continue
        frames = min(before.shape[-1], after.shape[-1])
        shares[name] = (before[:, :frames] != after[:, :frames]).double().mean(dim=1).tolist()
    return shares
