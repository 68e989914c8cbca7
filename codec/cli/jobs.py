"""Which input goes to which output, and the loop over the files."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from codec.errors import EXIT_FAILURE, EXIT_OK, UsageError, legible, one_line
from codec.workers import spread

STREAM = Path("-")
log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One file to convert; ``-`` stands for stdin or stdout. Names are for messages."""

    source: Path
    target: Path
    clashes: bool = False  # whether another input has the same target

    @property
    def is_stream(self) -> bool:
        """Whether the source can be read only once."""
        return self.source == STREAM or self.source.is_fifo()

    @property
    def source_name(self) -> str:
        return "stdin" if self.source == STREAM else str(self.source)


def plan_jobs(
    paths: Sequence[str], output_dir: str | None, source_suffixes: Collection[str], target_suffixes: Sequence[str]
) -> list[Job]:
    """Pair inputs with outputs: ``INPUT OUTPUT``, or any inputs and folders with an output folder.

    Args:
        source_suffixes: which files of an input folder are taken (files given by name always are).
        target_suffixes: what an OUTPUT may end with; files written into ``output_dir`` get the first one.

    Raises:
        UsageError: paths that cannot be paired, or a standard stream that is closed.
        OSError: a folder that cannot be read.
    """
    if output_dir is None:
        return [_pair(paths, target_suffixes)]
    outputs = Path(output_dir)
    if outputs.exists() and not outputs.is_dir():
        raise UsageError(f"-o {outputs} is a file, not a folder")
    pairs: dict[tuple[str, Path], Path] = {}  # an input given twice, in whatever words, is done once
    for name in paths:
        path = _path(name)
        if path == STREAM:
            raise UsageError("stdin has no name for a file in the output folder; give OUTPUT instead of -o")
        folder, sources = (path, files_below(path, source_suffixes)) if path.is_dir() else (path.parent, [path])
        for source in sources:
            inside = source.relative_to(folder)
            stem = inside.with_suffix("") if inside.suffix.lower() in source_suffixes else inside  # .2024 is none
            pairs.setdefault(
                (os.path.realpath(source), outputs / stem.parent / (stem.name + target_suffixes[0])), source
            )
    if not pairs:
        kind = next(iter(source_suffixes)) if len(source_suffixes) == 1 else "audio"
        raise UsageError(f"nothing to do: no {kind} file in {' '.join(paths)}")
    counts = Counter(target for _, target in pairs)
    return [Job(source, target, clashes=counts[target] > 1) for (_, target), source in pairs.items()]


def _pair(paths: Sequence[str], target_suffixes: Sequence[str]) -> Job:
    if len(paths) != 2:
        raise UsageError("give INPUT OUTPUT, or several inputs with -o DIR")
    source, target = map(_path, paths)
    if source.is_dir():
        raise UsageError(f"{source} is a folder; give -o DIR for the outputs")
    if target != STREAM and target.suffix.lower() not in target_suffixes:
        suffix = target_suffixes[0] if len(target_suffixes) == 1 else "an audio suffix as .wav or .flac"
        raise UsageError(f"OUTPUT must end in {suffix}, not {target.name!r}; several inputs need -o DIR")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give -o {target}")
    for path, name in ((source, "stdin"), (target, "stdout")):
        if path == STREAM and getattr(sys, name) is None:
            raise UsageError(f"{name} is closed")
    if source == STREAM:
        with suppress(OSError, ValueError, AttributeError):  # stdin without a descriptor; an older Python on Windows
            os.set_blocking(sys.stdin.fileno(), True)  # otherwise a pause in the input would look like its end
    if target == STREAM and sys.stdout.isatty():
        raise UsageError("stdout is a terminal, which cannot show it; give OUTPUT, or send it to a file or a pipe")
    return Job(source, target)


def _path(name: str) -> Path:
    """The path of an argument; ``./-``, a file, becomes absolute, as ``Path`` would make it ``-``, the stream."""
    path = Path(name)
    return path.absolute() if path == STREAM and name != "-" else path


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with these suffixes, without hidden ones (temporary files, and the ``._x.wav`` that some systems add).

    Links to folders are not followed: they may lead in a circle, or to the same files again.

    Raises:
        OSError: a folder that cannot be read.
    """
    files: list[Path] = []
    others = links = 0
    for where, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links += sum(Path(where, name).is_symlink() for name in subfolders)
        visible = [Path(where, name) for name in names if not name.startswith(".")]
        # a link to nothing is taken, so that its failure is reported; a pipe is not taken
        taken = [p for p in visible if p.suffix.lower() in suffixes and (p.is_file() or not p.exists())]
        files += taken
        others += len(visible) - len(taken)
    if others:
        log.info("%s: files of other kinds passed over: %d", folder, others)
    if links:
        log.info("%s: links to folders not followed: %d; give what they lead to", folder, links)
    return sorted(files)


def _raise(error: OSError) -> NoReturn:
    raise error


def run_jobs(jobs: Sequence[Job], work: Callable[[Job], bool | Exception], workers: int) -> int:
    """Do the jobs in so many processes, going on after a failure, with a bar if there are several; returns the exit code.

    Args:
        work: does a job; returns whether there was anything to do, or the error of this job. What it raises ends all jobs.

    Raises:
        CodecError: a process was killed.
    """
    failures, kept = Failures(), 0
    with spread(work, jobs, workers) as results:
        if len(jobs) > 1:
            from tqdm import tqdm  # here: one file does not wait for it

            results = iter(tqdm(results, total=len(jobs), unit=" file", disable=None))
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                failures.add(result, job.source_name, str(job.target))
            else:
                kept += not result
    failures.say_others()
    if len(jobs) > 1:
        counts = {"files done": len(jobs) - kept - failures.count, "there already": kept, "failed": failures.count}
        log.info(", ".join(f"{what}: {count}" for what, count in counts.items() if count or what == "files done"))
    return EXIT_FAILURE if failures.count else EXIT_OK


class Failures:
    """Reports every error once, and at the end the other files that have it too."""

    def __init__(self) -> None:
        self.count = 0
        self._files: dict[str, list[str]] = {}  # by error, the names of the files that have it

    def add(self, error: Exception, source: str, *others: str) -> None:
        """Count a failure of ``source``; its message begins with that name, unless it begins with a name of ``others``."""
        self.count += 1
        text, source = one_line(error), legible(source)
        names = self._files.setdefault(text, [])
        names.append(source)
        starts = tuple(f"{name}{end}" for name in (source, *map(legible, others)) for end in ": ")
        if len(names) == 1:
            named = text.startswith(starts) or getattr(error, "filename", None)
            log.error("error: %s", text if named else f"{source}: {text}")

    def say_others(self) -> None:
        for _, *others in self._files.values():
            if others:
                log.error("error: %s: the same", textwrap.shorten(", ".join(others), 1000, placeholder=" ..."))
