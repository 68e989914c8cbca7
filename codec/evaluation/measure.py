"""One utterance through all systems and metrics: the work of one process."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from codec.audio import resample
from codec.corpus.manifest import Record
from codec.corpus.scan import read_record
from codec.errors import CodecError, one_line
from codec.evaluation.artefacts import ARTEFACTS, LINES, SILENT, mean_spectrum
from codec.evaluation.metrics import COSTS, METRICS, MetricError, Pair, Reference, Waveform
from codec.evaluation.stability import CHANGES, changed_codes
from codec.evaluation.systems import CLASSICAL, Family, FolderFamily, ModelFamily, Outcome, to_pcm
from codec.files import atomic_write
from codec.model import Codec

LONGEST = 120  # seconds of an utterance: pitch tracking holds all of it at once, 2 MiB a second

PAIR_METRICS = METRICS | ARTEFACTS
KNOWN = (
    {name: metric.about for name, metric in PAIR_METRICS.items()} | {"lines": LINES} | COSTS
)  # what can be asked for

Cell = float | str  # the value of a metric, or the reason why there is none
Changed = dict[str, list[float] | str]  # see changed_codes


class EvaluationError(CodecError):
    """An evaluation that cannot be run as asked; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and the folder ``out`` of the report; plain values, since it travels to worker processes.

    ``model`` is a name or folder, "" for none; ``folders`` holds by name those of reconstructions, and their kbit/s
    where it was given; ``classical`` and ``metrics`` are names in CLASSICAL and KNOWN.
    """

    model: str
    num_quantizers: tuple[int, ...]
    folders: dict[str, tuple[str, float | None]]
    classical: tuple[str, ...]
    metrics: tuple[str, ...]
    stability: bool
    device: str
    out: Path

    def families(self) -> list[Family]:
        """Load the systems, the model first.

        Raises:
            EvaluationError: there are none, or two of one id.
            CodecError: a model or folder that cannot be used.
        """
        families: list[Family] = []
        if self.model:
            families.append(ModelFamily(Codec.from_pretrained(self.model, self.device), self.num_quantizers))
        families += [FolderFamily(name, Path(folder), kbps) for name, (folder, kbps) in self.folders.items()]
        families += [CLASSICAL[name]() for name in self.classical]
        ids = Counter(system.id for family in families for system in family.systems)
        if not ids:
            raise EvaluationError(
                "nothing to measure: no model, no --reconstructions, no classical codec on this machine"
            )
        if twice := [name for name, count in ids.items() if count > 1]:
            raise EvaluationError(f"two systems would both be called {twice[0]}; give --reconstructions other names")
        return families

    def codes(self, index: int) -> Path:
        """The model's codes of the utterance at ``index`` of the manifest."""
        return self.out / "codes" / f"{index:06d}.codes"

    def audio(self, index: int) -> Path:
        """The folder of an utterance's audio: ``reference.flac``, and ``ID.flac`` of every system."""
        return self.out / "audio" / f"{index:06d}"

    def spectra(self, index: int) -> Path:
        """An utterance's mean spectra in dB, float16 ``[1 + systems, F]``: the reference's first; NaN for what failed."""
        return self.out / "spectra" / f"{index:06d}.npy"


@dataclass
class Measured:
    """What was measured of the utterance at ``index`` of the manifest, by system and metric: a line of ``rows.jsonl``."""

    index: int
    seconds: float
    cells: dict[str, dict[str, Cell]]
    changed: Changed  # empty where token stability was not measured


def read_utterance(record: Record) -> tuple[Record, Waveform]:
    """The waveform ``[T]``, and the record with the length and rate that the file has, whatever the manifest remembers.

    Raises CodecError where it is no audio or longer than two minutes, OSError where it is not there.
    """
    if record.duration > LONGEST:
        raise CodecError(f"longer than {LONGEST} s; cut it into utterances")
    waveform, sample_rate = read_record(record)
    return replace(record, sample_rate=sample_rate, num_samples=len(waveform)), waveform


class Measurer:
    """Measures one utterance after the other by all systems, which are loaded once per process."""

    def __init__(self, plan: Plan, families: Sequence[Family]) -> None:
        torch.set_num_threads(1)  # one process per core is faster than threads that wait for each other
        self.plan, self.families = plan, families

    def measure(self, index: int, record: Record) -> Measured:
        """Measure one utterance, and write its audio and codes; bad audio is a reason in every cell, never an error."""
        audio = self.plan.audio(index)
        scratch = audio.with_suffix(".tmp")  # a folder without it is complete
        for left in (audio, scratch):  # by an evaluation that was killed
            shutil.rmtree(left, ignore_errors=True)
        scratch.mkdir(parents=True)
        systems = [system.id for family in self.families for system in family.systems]
        waveform, outcomes = np.zeros(0, np.float32), list[Outcome]()
        try:
            record, waveform = read_utterance(record)
        except (CodecError, OSError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            reason = " ".join(f"reference unreadable: {said}".replace(record.path, "").split())
            outcomes += [reason] * len(systems)
        else:
            soundfile.write(scratch / "reference.flac", to_pcm(waveform), record.sample_rate)
            outcomes += [outcome for family in self.families for outcome in family.reconstruct(record, waveform)]
        reference = Reference(waveform, record.sample_rate)
        cells = {}
        for system, outcome in zip(systems, outcomes, strict=True):
            if not isinstance(outcome, str):
                soundfile.write(scratch / f"{system}.flac", to_pcm(outcome.waveform), record.sample_rate)
            cells[system] = self._cells(reference, outcome)
        if "lines" in self.plan.metrics and len(waveform):
            self._write_spectra(index, reference, outcomes)
        changed = self._changed(index, reference, outcomes[0])  # of the model, which comes first, with most quantizers
        os.replace(scratch, audio)
        return Measured(index, record.duration, cells, changed)

    def _cells(self, reference: Reference, outcome: Outcome) -> dict[str, Cell]:
        if isinstance(outcome, str):
            return dict.fromkeys(self.plan.metrics, outcome)
        pair, seconds = Pair(reference, outcome.waveform), len(reference.waveform) / reference.sample_rate
        cells = {name: _score(name, pair) for name in self.plan.metrics if name in PAIR_METRICS}
        kilobits = None if outcome.coded is None else len(outcome.coded) * 8 / 1000
        costs = {"kbps_file": kilobits, "rtf": outcome.seconds}
        return cells | {n: cost / seconds for n, cost in costs.items() if cost is not None and n in self.plan.metrics}

    def _write_spectra(self, index: int, reference: Reference, outcomes: Sequence[Outcome]) -> None:
        nothing = np.full(len(reference.waveform), np.nan, np.float32)
        waveforms = [reference.waveform, *(nothing if isinstance(each, str) else each.waveform for each in outcomes)]
        powers = np.stack([mean_spectrum(each, reference.sample_rate) for each in waveforms])
        with atomic_write(self.plan.spectra(index)) as temporary, open(temporary, "wb") as file:
            np.save(file, (10 * np.log10(powers + SILENT)).astype(np.float16))

    def _changed(self, index: int, reference: Reference, outcome: Outcome) -> Changed:
        """See how the model's codes stand changes of the input, and write the codes."""
        if isinstance(outcome, str):
            return dict.fromkeys(CHANGES, outcome) if self.plan.stability else {}
        if outcome.codes is None or outcome.coded is None:
            return {}
        with atomic_write(self.plan.codes(index)) as temporary:
            temporary.write_bytes(outcome.coded)
        if not self.plan.stability:
            return {}
        assert isinstance(self.families[0], ModelFamily)
        codec = self.families[0].codec
        samples = resample(reference.waveform, reference.sample_rate, codec.sample_rate)
        return changed_codes(codec, torch.from_numpy(samples), outcome.codes)


def _score(name: str, pair: Pair) -> Cell:
    try:
        value = PAIR_METRICS[name].compute(pair)
    except MetricError as error:
        return str(error)
    except Exception as error:  # of another package: one odd file must not end an evaluation of thousands
        if not KNOWN[name].package:
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return value if np.isfinite(value) else "not finite"
