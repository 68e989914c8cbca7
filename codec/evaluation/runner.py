"""Evaluate a manifest on all cores; finished utterances are in a file, from which a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from codec import __version__
from codec.corpus.manifest import Record
from codec.errors import CodecError, one_line
from codec.evaluation.measure import KNOWN, EvaluationError, Measured, Plan, measure_utterance
from codec.evaluation.results import Absent
from codec.evaluation.systems import FolderFamily
from codec.files import read_json, write_json
from codec.pretrained import find_model
from codec.workers import spread

ROWS, SETTINGS = "rows.jsonl", "run.json"
PACKAGES = ("torch", "numpy", "soxr", "soundfile", "pesq", "pystoi", "librosa")


def present_metrics(asked: Sequence[str] | None) -> tuple[tuple[str, ...], list[Absent]]:
    """Of the metrics in ``asked`` (default: all of KNOWN) those that this machine can compute, and the others.

    A name that is unknown, or whose package is not installed, is an EvaluationError if it was asked for.
    """
    present, absent = [], []
    for name in dict.fromkeys(asked or KNOWN):
        if name not in KNOWN:
            raise EvaluationError(f"--metrics: no metric {name}; there are {', '.join(KNOWN)}")
        package = KNOWN[name].package
        if not package or find_spec(package):
            present.append(name)
            continue
        reason = one_line(ModuleNotFoundError(f"package {package} is missing: pip install {package}", name=package))
        if asked:
            raise EvaluationError(f"--metrics {name}: {reason}")
        absent.append(Absent("metric", KNOWN[name].label, reason))
    return tuple(present), absent


def spaced(utterances: int, count: int) -> list[int]:
    """Indices of ``count`` utterances (of all, if there are fewer), evenly spaced."""
    count = min(count, utterances)
    return [(2 * index + 1) * utterances // (2 * count) for index in range(count)]


def evaluate(plan: Plan, records: Sequence[Record], workers: int, examples: int) -> list[Measured]:
    """The measurements of all records, in their order; those in ``plan.out/rows.jsonl`` are not measured again.

    The audio of evenly spaced ``examples`` is there at the end. A worker process that dies is a CodecError.
    """
    rows, total = plan.out / ROWS, len(records)
    measured = read_rows(rows)
    for index in spaced(total, examples):
        if not plan.audio(index).exists():  # it was no example before: measure it again
            measured.pop(index, None)
    if measured:
        print(f"{len(measured)} of {total} utterances were measured before", flush=True)
    left = [(index, record) for index, record in enumerate(records) if index not in measured]
    seconds = sum(record.duration for _, record in left)  # of audio
    terminal = sys.stderr is not None and sys.stderr.isatty()  # if not: one line a minute
    layout = "{l_bar}{bar}| about {remaining} left" if terminal else "{l_bar} about {remaining} left\n"
    bar = tqdm(total=seconds, mininterval=5 if terminal else 60, delay=5, smoothing=0, bar_format=layout)
    measure = partial(measure_utterance, plan if workers == 1 else replace(plan))  # the copy has no families yet
    with open(rows, "a", encoding="utf-8") as file, bar, spread(measure, left, workers) as results:
        for result in results:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            measured[result.index] = result
            bar.set_description_str(f"{len(measured)} of {total} utterances", refresh=False)
            bar.update(records[result.index].duration)
    return [measured[index] for index in range(total)]


def prepare_folder(plan: Plan, records: Sequence[Record], force: bool) -> None:
    """Make ``plan.out``; an EvaluationError if it holds something else than the beginning of this evaluation."""
    for family in plan.families:
        if isinstance(family, FolderFamily):
            family.check(records)
    out, settings, folders = plan.out, fingerprint(plan, records), ("audio", "codes", "spectra")
    before = _read_settings(out) if out.exists() and any(out.iterdir()) else None
    if before is None or force:
        for name in folders:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (ROWS, "metrics.json", "per_file.csv", "index.html"):
            (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS, settings)
    elif before != settings:
        raise EvaluationError(
            f"{out} holds an evaluation of something else (other model, files or settings): "
            "choose another --out, or start anew with --force"
        )
    for name in folders:
        (out / name).mkdir(exist_ok=True)


def _read_settings(folder: Path) -> dict[str, object]:
    """The settings of the evaluation in a folder; an EvaluationError if it is none, as others' files are not removed."""
    with suppress(CodecError, OSError):
        settings = read_json(folder / SETTINGS)
        if isinstance(settings, dict) and {"records", "systems", "metrics"} <= settings.keys():
            return settings
    raise EvaluationError(f"{folder} is not empty and no evaluation; choose another --out")


def fingerprint(plan: Plan, records: Sequence[Record]) -> dict[str, object]:
    """All that decides the rows: the plan, the records and their files, the weights, the reconstructions, the software."""
    values: dict[str, object] = asdict(replace(plan, out=Path())) | {
        "metrics": {name: KNOWN[name].how for name in plan.metrics},
        "systems": [asdict(system) for system in plan.systems],
        "files": [_digest(map(_file_stamp, sorted(Path(folder).rglob("*")))) for folder, _ in plan.folders.values()],
        "records": _digest([*astuple(record), *_file_stamp(Path(record.path))] for record in records),
        "software": software_versions(plan.metrics),
    }
    if plan.model:
        for name, file in (("weights", "model.safetensors"), ("config", "config.json")):
            values[name] = hashlib.sha256((find_model(plan.model) / file).read_bytes()).hexdigest()
    return json.loads(json.dumps(values, default=str))  # as read_json will return it


def _file_stamp(path: Path) -> tuple[object, ...]:
    """The path, size and time of a file, which tell whether it has changed."""
    facts = path.stat() if path.is_file() else None
    return (str(path), facts.st_size, facts.st_mtime_ns) if facts else (str(path),)


def _digest(values: Iterable[Sequence[object]]) -> str:
    return hashlib.sha256("\n".join(map(json.dumps, values)).encode()).hexdigest()


def software_versions(metrics: Sequence[str]) -> dict[str, str]:
    """Versions of this package, of Python, and of all packages that influence the values of ``metrics``."""
    packages = dict.fromkeys([*PACKAGES, *(KNOWN[name].package or "torch" for name in metrics)])
    installed = {name: version(name) for name in packages if find_spec(name)}
    return {"codec": __version__, "python": platform.python_version(), **installed}


def read_rows(path: Path) -> dict[int, Measured]:
    """The measurements by index; half a line at the end, as a kill leaves it, is cut off, and so is measured again."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    try:
        rows = [Measured(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise EvaluationError(f"{path} is damaged: {error}; start anew with --force") from None
    return {row.index: row for row in rows}
