"""Evaluate a manifest with all cores, one line a finished utterance, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from codec import __version__
from codec.corpus.manifest import Record
from codec.errors import CodecError, install
from codec.evaluation.measure import Measurer, Plan
from codec.evaluation.metrics import METRICS, Metric
from codec.evaluation.neural_metrics import PLUGINS, load_plugins
from codec.evaluation.systems import classical_families
from codec.files import written_whole
from codec.pretrained import find_model

ROWS, SETTINGS = "rows.jsonl", "run.json"
PACKAGES = ("torch", "numpy", "soxr", "soundfile", "pesq", "pystoi", "librosa")
AHEAD = 4  # utterances handed to each process in advance

_measurer: Measurer | None = None  # of this worker process


class EvaluationError(CodecError):
    """An evaluation that cannot be run as asked; the message says what to change."""


def make_plan(
    *,
    model: str,
    stages: Sequence[int],
    folders: dict[str, tuple[str, float | None]],
    classical: Sequence[str],
    metrics: Sequence[str] | None,
    stability: bool,
    out: Path,
    device: str,
) -> tuple[Plan, list[dict[str, str]]]:
    """The plan, and what was asked for but is not on this machine: ``[{kind, name, reason}]``.

    Args:
        metrics: names in METRICS and PLUGINS; None for all that are here.

    Raises:
        EvaluationError: a metric asked for by name that is unknown or not here.
    """
    known = {**{n: m for n, m in METRICS.items()}, **{n: p.metric for n, p in PLUGINS.items()}}
    unknown = [name for name in metrics or () if name not in known]
    if unknown:
        raise EvaluationError(f"--metrics: no metric {unknown[0]}; there are {', '.join(known)}")
    wanted = list(known) if metrics is None else list(dict.fromkeys(metrics))
    reasons = {
        name: f"package {metric.package} is not installed: {install('eval')}"
        for name, metric in METRICS.items()
        if name in wanted and metric.package and find_spec(metric.package) is None
    }
    reasons |= load_plugins([name for name in wanted if name in PLUGINS])[1]
    if metrics is not None and reasons:
        name, reason = next(iter(reasons.items()))
        raise EvaluationError(f"--metrics {name}: {reason}")
    absent = [{"kind": "metric", "name": known[name].label, "reason": reason} for name, reason in reasons.items()]
    families, missing = classical_families(classical)
    absent += [{"kind": "system", "name": name, "reason": reason} for name, reason in missing.items()]
    present = [name for name in wanted if name not in reasons]
    plan = Plan(
        model=model,
        stages=tuple(stages),
        folders=folders,
        classical=tuple(family.systems[0].kind for family in families),
        metrics=tuple(name for name in present if name in METRICS),
        plugins=tuple(name for name in present if name in PLUGINS),
        stability=stability and bool(model),
        codes_folder=str(out / "codes"),
        device=device,
    )
    return plan, absent


def evaluate(plan: Plan, records: Sequence[Record], out: Path, workers: int, force: bool = False) -> None:
    """Measure every record that ``out/rows.jsonl`` does not hold yet.

    Raises:
        EvaluationError: ``out`` holds something else; a worker process died.
    """
    check_systems(plan)
    prepare_folder(plan, records, out, force)
    done = {row["index"] for row in read_rows(out)}
    left = [(index, record) for index, record in enumerate(records) if index not in done]
    if done:
        print(f"{len(done)} of {len(records)} utterances were measured before", flush=True)
    if not left:
        return
    with open(out / ROWS, "a", encoding="utf-8") as file:
        bar = tqdm(total=len(records), initial=len(done), unit=" utt", disable=None)
        for count, result in enumerate(_results(plan, left, workers), start=len(done) + 1):
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update()
            if bar.disable and count * 10 // len(records) > (count - 1) * 10 // len(
                records
            ):  # no terminal: a line a tenth
                print(f"{count} of {len(records)} utterances measured", flush=True)
        bar.close()


def check_systems(plan: Plan) -> None:
    """Build all systems once here, where a mistake can still be said: in a worker it would look like a crash."""
    systems = [system for family in plan.families() for system in family.systems]
    if not systems:
        raise EvaluationError(
            "nothing to measure: no model, no --reconstructions, and no classical codec on this machine"
        )
    ids = [system.id for system in systems]
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise EvaluationError(f"two systems would both be called {twice[0]}; give --reconstructions other names")


def prepare_folder(plan: Plan, records: Sequence[Record], out: Path, force: bool) -> None:
    """Make ``out``, or make sure that what it holds is the beginning of this very evaluation."""
    settings = json.loads(json.dumps(fingerprint(plan, records)))
    found = out / SETTINGS
    if found.exists() and not force:
        if json.loads(found.read_text(encoding="utf-8")) != settings:
            raise EvaluationError(
                f"{out} holds an evaluation of something else (other model, files or settings): "
                "choose another --out, or start anew with --force"
            )
    elif out.exists() and any(out.iterdir()) and not found.exists():
        raise EvaluationError(f"{out} is not empty and no evaluation; choose another --out")
    else:
        if found.exists():
            for name in ("audio", "codes", "images"):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in (ROWS, "metrics.json", "per_file.csv", "index.html"):
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        with written_whole(found) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (out / "codes").mkdir(exist_ok=True)
    _drop_half_line(out / ROWS)


def fingerprint(plan: Plan, records: Sequence[Record]) -> dict[str, Any]:
    """What decides the rows: the plan, the records and their files, the weights, the reconstructions, the software."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(asdict(record), sort_keys=True).encode())
        if os.path.isfile(record.path):
            facts = os.stat(record.path)
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    values: dict[str, Any] = {key: value for key, value in asdict(plan).items() if key != "codes_folder"}
    if plan.model:
        folder = find_model(plan.model)
        values["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        values["config"] = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    values["folders"] = {name: [*given, _listing(Path(given[0]))] for name, given in plan.folders.items()}
    metrics = [METRICS[name] for name in plan.metrics] + [PLUGINS[name].metric for name in plan.plugins]
    values["software"] = software_versions(metrics)
    values["how"] = [metric.how for metric in metrics] + [family.how for family in plan.families()]
    return values | {"records": digest.hexdigest(), "utterances": len(records)}


def software_versions(metrics: Iterable[Metric]) -> dict[str, str]:
    """Versions of this package, of Python, and of all packages that have a say in the values of ``metrics``."""
    names = dict.fromkeys([*PACKAGES, *(metric.package for metric in metrics if metric.package)])
    found = {name: package_version(name) for name in names}
    kept = {name: number for name, number in found.items() if number != "unknown"}
    return {"codec": __version__, "python": platform.python_version(), **kept}


def package_version(package: str) -> str:
    """Version of an installed distribution, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _listing(folder: Path) -> str:
    """A hash of names, sizes and times of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _drop_half_line(path: Path) -> None:
    """A kill in the middle of a write leaves a line without its end: that utterance is measured again."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with written_whole(path) as temporary:
                temporary.write_bytes(whole)


def read_rows(out: Path) -> Iterator[dict[str, Any]]:
    """What was measured, one utterance at a time, in the order in which it was finished."""
    path = out / ROWS
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _results(plan: Plan, left: Sequence[tuple[int, Record]], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        measurer = Measurer(plan)
        for index, record in left:
            yield measurer.measure(index, record)
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's locks
    jobs = iter(left)
    with ProcessPoolExecutor(workers, context, _load, (plan,)) as pool:
        running: set[Future[dict[str, Any]]] = set()
        try:
            for _ in range(AHEAD * workers):
                _submit(pool, jobs, running)
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    _submit(pool, jobs, running)
                    yield future.result()
        except BrokenProcessPool:
            raise EvaluationError(
                "a worker process died (out of memory, or killed); the same command goes on from here, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, jobs: Iterator[tuple[int, Record]], running: set[Future[dict[str, Any]]]
) -> None:
    job = next(jobs, None)
    if job is not None:
        running.add(pool.submit(_measure, *job))


def _load(plan: Plan) -> None:
    global _measurer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _measurer = Measurer(plan)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure(index: int, record: Record) -> dict[str, Any]:
    assert _measurer is not None
    return _measurer.measure(index, record)
