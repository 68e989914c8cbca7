"""One utterance through all systems and metrics: the work of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import container
from codec.audio import resample
from codec.corpus.manifest import Record
from codec.corpus.scan import read_record
from codec.errors import CodecError
from codec.evaluation.metrics import METRICS, MetricError, Pair, pitch_track
from codec.evaluation.neural_metrics import load_plugins
from codec.evaluation.stability import CHANGES, changed_codes
from codec.evaluation.systems import (
    Codec2Family,
    Failure,
    Family,
    FolderFamily,
    ModelFamily,
    OpusFamily,
    Reconstruction,
)
from codec.files import written_whole
from codec.model import Codec

LONGEST = 120  # seconds of an utterance: pitch tracking holds all of it at once, 2 MiB a second


@dataclass(frozen=True)
class Plan:
    """What to measure; plain values, since it travels to worker processes.

    Attributes:
        model: name or folder of a model, "" for none.
        stages: numbers of quantizers.
        folders: name -> folder of reconstructions, and their bitrate in kbit/s where it was given.
        classical: those of opus and codec2 whose programs are here.
        metrics, plugins: names in METRICS and PLUGINS of what is here.
        stability: whether to measure token stability.
        codes_folder: where the model's ``.codes`` files go.
        device: of the model.
    """

    model: str
    stages: tuple[int, ...]
    folders: dict[str, tuple[str, float | None]]
    classical: tuple[str, ...]
    metrics: tuple[str, ...]
    plugins: tuple[str, ...]
    stability: bool
    codes_folder: str
    device: str = "cpu"

    def families(self) -> list[Family]:
        """The systems, the model first."""
        families: list[Family] = []
        if self.model:
            families.append(ModelFamily(Codec.from_pretrained(self.model, self.device), self.stages))
        families += [FolderFamily(name, Path(folder), kbps) for name, (folder, kbps) in self.folders.items()]
        makers = {"opus": OpusFamily, "codec2": Codec2Family}
        return families + [makers[name]() for name in self.classical]


@dataclass
class Row:
    """One utterance and one system: values by metric, and reasons for those that have none."""

    system: str
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Reference:
    """An utterance as read: ``waveform [T]`` at ``record.sample_rate``; the pitch track is made once, when asked for."""

    def __init__(self, record: Record) -> None:
        if record.duration > LONGEST:
            raise CodecError(f"longer than {LONGEST} s; cut it into utterances")
        self.waveform, sample_rate = read_record(record)
        # what the file says counts, not what the manifest remembers
        self.record = replace(record, sample_rate=sample_rate, num_samples=len(self.waveform))

    @cached_property
    def _pitch(self) -> NDArray[np.float64] | MetricError:
        try:
            return pitch_track(self.waveform, self.record.sample_rate)
        except MetricError as error:  # kept too: it would be the same for every system
            return error

    def pitch(self) -> NDArray[np.float64]:
        """Pitch track ``[N]`` in Hz; raises MetricError as pitch_track does."""
        if isinstance(self._pitch, MetricError):
            raise self._pitch
        return self._pitch


class Measurer:
    """Everything loaded once a process; :meth:`measure` gives what is written for one utterance."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(1)  # one process a core is faster than threads that wait for each other
        self.plan, self.families = plan, plan.families()
        self.scorers, absent = load_plugins(list(plan.plugins))
        assert not absent, absent

    def measure(self, index: int, record: Record) -> dict[str, Any]:
        """Plain values: ``rows`` (see Row), ``stability``, and facts of the utterance. Never raises for bad audio."""
        facts = {"index": index, "id": record.id, "speaker": record.speaker, "source": record.source}
        try:
            reference = Reference(record)
        except (CodecError, OSError) as error:
            reason = f"reference unreadable: {error.strerror if isinstance(error, OSError) else error}"
            reason = " ".join(str(reason).replace(record.path, "").split())
            rows = [Row(system.id, failures=dict.fromkeys(self._names, reason)) for system in self._systems]
            stability = {"values": {}, "failures": dict.fromkeys(CHANGES, reason)} if self.plan.stability else None
            return facts | {"seconds": record.duration, "rows": [vars(row) for row in rows], "stability": stability}
        rows = [self._row(reference, made) for made in self._reconstructions(reference)]
        facts["seconds"] = reference.record.duration
        return facts | {"rows": [vars(row) for row in rows], "stability": self._stability(index, reference)}

    @property
    def _systems(self) -> list[Any]:
        return [system for family in self.families for system in family.systems]

    @property
    def _names(self) -> Sequence[str]:
        return (*self.plan.metrics, *self.plan.plugins)

    def _reconstructions(self, reference: Reference) -> Iterator[Reconstruction | Failure]:
        for family in self.families:
            yield from family.reconstruct(reference.record, reference.waveform)

    def _row(self, reference: Reference, made: Reconstruction | Failure) -> Row:
        row = Row(made.system.id)
        if isinstance(made, Failure):
            row.failures = dict.fromkeys(self._names, made.reason)
            return row
        record = reference.record
        pair = Pair(reference.waveform, made.waveform, record.sample_rate, reference.pitch)
        for name in self.plan.metrics:
            compute = METRICS[name].compute
            if compute is not None:
                _score(row, name, lambda compute=compute: compute(pair))  # type: ignore[misc]
        for name, scorer in self.scorers.items():
            _score(row, name, lambda scorer=scorer: scorer(*pair.waveforms, record.text))  # type: ignore[misc]
        if "kbps_file" in self.plan.metrics and made.num_bytes is not None:
            row.values["kbps_file"] = made.num_bytes * 8 / record.duration / 1000
        if "rtf" in self.plan.metrics and made.seconds is not None:
            row.values["rtf"] = made.seconds / record.duration
        return row

    def _stability(self, index: int, reference: Reference) -> dict[str, Any] | None:
        """Write the model's codes, and see how they stand changes of the input."""
        family = self.families[0]
        if not isinstance(family, ModelFamily):
            return None
        try:
            codes = family.encode(reference.waveform, reference.record.sample_rate)
        except CodecError as error:  # counted among the model's failures too
            return {"values": {}, "failures": dict.fromkeys(CHANGES, str(error))} if self.plan.stability else None
        with written_whole(codes_path(self.plan, index)) as temporary:
            temporary.write_bytes(family.stored(codes, reference.record))
        if not self.plan.stability:
            return None
        samples = resample(reference.waveform, reference.record.sample_rate, family.codec.sample_rate)
        values, failures = changed_codes(family.codec, torch.from_numpy(samples), codes)
        return {"values": values, "failures": failures}


def _score(row: Row, name: str, compute: Callable[[], float]) -> None:
    try:
        value = compute()
    except MetricError as error:
        row.failures[name] = str(error)
        return
    except Exception as error:  # of another package: one odd file must not end an evaluation of thousands
        row.failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return
    if np.isfinite(value):
        row.values[name] = value
    else:
        row.failures[name] = "not finite"


def codes_path(plan: Plan, index: int) -> Path:
    """Where the codes of the utterance at ``index`` of the manifest lie."""
    return Path(plan.codes_folder) / f"{index:06d}.codes"


def read_codes(plan: Plan, index: int) -> container.Codes | None:
    """Codes ``[K, N]`` of an utterance; None where it could not be read."""
    path = codes_path(plan, index)
    return container.read(path)[1] if path.exists() else None
