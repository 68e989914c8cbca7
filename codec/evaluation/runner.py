"""Evaluate a manifest with all cores, one line per finished utterance, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from codec import __version__
from codec.corpus.manifest import Record
from codec.errors import one_line
from codec.evaluation.measure import KNOWN, PAIR_METRICS, EvaluationError, Measured, Measurer, Plan
from codec.evaluation.results import Absent
from codec.evaluation.systems import Family
from codec.files import atomic_write, write_json
from codec.pretrained import find_model

ROWS, SETTINGS = "rows.jsonl", "run.json"
WORST = 10  # utterances whose audio is kept
PACKAGES = ("torch", "numpy", "soxr", "soundfile", "pesq", "pystoi", "librosa")

_measurer: Measurer  # of this worker process


def present_metrics(asked: Sequence[str] | None) -> tuple[tuple[str, ...], list[Absent]]:
    """Of the metrics asked for (all of KNOWN by default) those that this machine can compute, and the others.

    One asked for by name that is unknown, or whose package is not installed, is an EvaluationError.
    """
    present, absent = [], []
    for name in dict.fromkeys(asked or KNOWN):
        if name not in KNOWN:
            raise EvaluationError(f"--metrics: no metric {name}; there are {', '.join(KNOWN)}")
        package = KNOWN[name].package
        if not package or find_spec(package):
            present.append(name)
            continue
        reason = one_line(ModuleNotFoundError(f"package {package} is not installed", name=package))
        if asked:
            raise EvaluationError(f"--metrics {name}: {reason}")
        absent.append(Absent("metric", KNOWN[name].label, reason))
    return tuple(present), absent


def evaluate(
    plan: Plan, families: Sequence[Family], records: Sequence[Record], workers: int, spread: int
) -> tuple[list[Measured], dict[int, str]]:
    """Measure every record that ``plan.out/rows.jsonl`` does not hold yet.

    Returns what was measured of each record, in their order, and the utterances whose audio is kept: see :func:`kept_audio`.
    A worker process that dies is an EvaluationError.
    """
    rows, total = plan.out / ROWS, len(records)
    measured = read_rows(rows)
    for index in prune_audio(plan, measured, total, spread).keys() & measured.keys():
        if not plan.audio(index).exists():  # more examples are asked for than before
            del measured[index]
    if measured:
        print(f"{len(measured)} of {total} utterances were measured before", flush=True)
    left = [(index, record) for index, record in enumerate(records) if index not in measured]
    audio, done, started = sum(record.duration for _, record in left), 0.0, time.monotonic()  # its length is the work
    bar = tqdm(total=audio, disable=None, smoothing=0, bar_format="{l_bar}{bar}| about {remaining} left")
    with open(rows, "a", encoding="utf-8") as file, bar:
        for result in _results(plan, families, left, workers):
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            measured[result.index] = result
            before, done = done, done + records[result.index].duration
            bar.set_description_str(f"{len(measured)} of {total} utterances", refresh=False)
            bar.update(done - before)
            if bar.disable and done * 10 // audio > before * 10 // audio:  # no terminal: a line per tenth
                rest = (time.monotonic() - started) * (audio - done) / done
                print(f"{len(measured)} of {total} utterances measured, about {rest / 60:.1f} min left", flush=True)
            if len(measured) % 50 == 0:  # often enough for the disk
                prune_audio(plan, measured, total, spread)
    return [measured[index] for index in range(total)], prune_audio(plan, measured, total, spread)


def kept_audio(plan: Plan, measured: Mapping[int, Measured], utterances: int, spread: int) -> dict[int, str]:
    """Indices of the utterances to listen to: ``spread`` evenly spaced ones, each an "example", and the "worst" ten.

    Worst are the first system's worst values of the first metric of pairs of waveforms; utterances that the first system has
    no value for and another one has are worse than any value.
    """
    metric = next((name for name in plan.metrics if name in PAIR_METRICS), "")
    quality = {}
    for index, each in measured.items():
        cells = [cells.get(metric) for cells in each.cells.values()]
        if any(isinstance(cell, float) for cell in cells):
            value = KNOWN[metric].goodness(cells[0]) if isinstance(cells[0], float) else -math.inf
            quality[index] = (value, index)
    step = max(1, utterances // max(spread, 1))
    examples = range(step // 2, utterances, step)[:spread]
    return dict.fromkeys(examples, "example") | dict.fromkeys(sorted(quality, key=quality.__getitem__)[:WORST], "worst")


def prune_audio(plan: Plan, measured: Mapping[int, Measured], utterances: int, spread: int) -> dict[int, str]:
    """Delete the audio, written while measuring, that is not to be kept so far; returns what is, as kept_audio does."""
    kept = kept_audio(plan, measured, utterances, spread)
    useless = measured.keys() - kept.keys()  # without what other processes have just finished
    for folder in (plan.out / "audio").glob("[0-9]*[0-9]"):
        if int(folder.name) in useless:
            shutil.rmtree(folder)
    return kept


def prepare_folder(plan: Plan, families: Sequence[Family], records: Sequence[Record], force: bool) -> None:
    """Make ``plan.out``, or make sure (EvaluationError) that what it holds is the beginning of this very evaluation."""
    out, settings = plan.out, fingerprint(plan, families, records)
    path, folders = out / SETTINGS, ("audio", "codes", "images", "spectra")
    if not path.exists() and out.exists() and any(out.iterdir()):
        raise EvaluationError(f"{out} is not empty and no evaluation; choose another --out")
    if not path.exists() or force:
        for name in folders:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (ROWS, "metrics.json", "per_file.csv", "index.html"):
            (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise EvaluationError(
            f"{out} holds an evaluation of something else (other model, files or settings): "
            "choose another --out, or start anew with --force"
        )
    for name in folders:
        (out / name).mkdir(exist_ok=True)


def fingerprint(plan: Plan, families: Sequence[Family], records: Sequence[Record]) -> dict[str, object]:
    """What decides the rows: the plan, the records and their files, the weights, the reconstructions, the software."""
    values: dict[str, object] = asdict(replace(plan, out=Path())) | {
        "metrics": {name: KNOWN[name].how for name in plan.metrics},
        "systems": [asdict(system) for family in families for system in family.systems],
        "files": [_hash(map(_stat, sorted(Path(folder).rglob("*")))) for folder, _ in plan.folders.values()],
        "records": _hash([*astuple(record), *_stat(Path(record.path))] for record in records),
        "software": software_versions(plan.metrics),
    }
    if plan.model:
        for name, file in (("weights", "model.safetensors"), ("config", "config.json")):
            values[name] = hashlib.sha256((find_model(plan.model) / file).read_bytes()).hexdigest()
    return json.loads(json.dumps(values, default=str))  # as it will be read


def _stat(path: Path) -> tuple[object, ...]:
    """What changes where a file changes."""
    if not path.is_file():
        return (str(path),)
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _hash(values: Iterable[Sequence[object]]) -> str:
    return hashlib.sha256("\n".join(map(json.dumps, values)).encode()).hexdigest()


def software_versions(metrics: Sequence[str]) -> dict[str, str]:
    """Versions of this package, of Python, and of all packages that have a say in the values of ``metrics``."""
    packages = dict.fromkeys([*PACKAGES, *(KNOWN[name].package or "torch" for name in metrics)])
    installed = {name: version(name) for name in packages if find_spec(name)}
    return {"codec": __version__, "python": platform.python_version(), **installed}


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_rows(path: Path) -> dict[int, Measured]:
    """What was measured, by index; a line without its end, as a kill leaves it, is cut off: it is measured again."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with atomic_write(path) as temporary:
            temporary.write_bytes(whole)
    rows = [Measured(**json.loads(line)) for line in whole.splitlines()]
    return {row.index: row for row in rows}


def _results(
    plan: Plan, families: Sequence[Family], left: Sequence[tuple[int, Record]], workers: int
) -> Iterator[Measured]:
    """What is left to measure, in the order in which it is finished."""
    if workers == 1:
        measurer = Measurer(plan, families)
        for index, record in left:
            yield measurer.measure(index, record)
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's locks
    pool = ProcessPoolExecutor(workers, context, _start_worker, (plan,))
    try:
        for future in as_completed([pool.submit(_measure, index, record) for index, record in left]):
            yield future.result()
    except BrokenProcessPool:
        raise EvaluationError(
            "a worker process died (out of memory, or killed); the same command goes on from here, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(plan: Plan) -> None:
    global _measurer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _measurer = Measurer(plan, plan.families())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure(index: int, record: Record) -> Measured:
    return _measurer.measure(index, record)
