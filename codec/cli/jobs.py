"""Which input goes to which output, and the loop over the files."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
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
        UsageError: paths that cannot be paired.
        OSError: a folder that cannot be read.
    """
    if output_dir is None:
        return [_pair(paths, target_suffixes)]
    jobs: dict[Path, Job] = {}  # by target: an input given twice, in whatever words, is done once
    for path in map(Path, paths):
        if path == STREAM:
            raise UsageError("stdin has no name for a file in the output folder; give OUTPUT instead of -o")
        folder, sources = (path, files_below(path, source_suffixes)) if path.is_dir() else (path.parent, [path])
        for source in sources:
            inside = Path(output_dir) / source.relative_to(folder)
            stem = inside.stem if inside.suffix.lower() in source_suffixes else inside.name  # .2024 is no suffix
            target = inside.with_name(stem + target_suffixes[0])
            other = jobs.setdefault(target, Job(source, target)).source
            if os.path.realpath(other) != os.path.realpath(source):
                raise UsageError(f"{other} and {source} would both become {target}; rename one of them")
    if not jobs:
        kind = next(iter(source_suffixes)) if len(source_suffixes) == 1 else "audio"
        raise UsageError(f"nothing to do: no {kind} file in {' '.join(paths)}")
    return list(jobs.values())


def _pair(paths: Sequence[str], target_suffixes: Sequence[str]) -> Job:
    if len(paths) != 2:
        raise UsageError("give INPUT OUTPUT, or several inputs with -o DIR")
    source, target = map(Path, paths)
    if source.is_dir():
        raise UsageError(f"{source} is a folder; give -o DIR for the outputs")
    if target == STREAM and sys.stdout.isatty():
        raise UsageError("stdout is a terminal, which cannot show it; give OUTPUT, or send it to a file or a pipe")
    if target != STREAM and target.suffix.lower() not in target_suffixes:
        suffix = target_suffixes[0] if len(target_suffixes) == 1 else "an audio suffix as .wav or .flac"
        raise UsageError(f"OUTPUT must end in {suffix}, not {target.name!r}; several inputs need -o DIR")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give -o {target}")
    return Job(source, target)


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with these suffixes, without hidden ones (temporary files, and the ``._x.wav`` that some systems add).

    Links to folders are not followed: they may lead in a circle, or to the same files again.

    Raises:
        OSError: a folder that cannot be read.
    """
    files: list[Path] = []
    others = 0
    for where, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        others += sum(Path(where, name).is_symlink() for name in subfolders)
        visible = [Path(where, name) for name in names if not name.startswith(".")]
        # a link to nothing is taken, so that its failure is reported; a pipe is not taken
        taken = [p for p in visible if p.suffix.lower() in suffixes and (p.is_file() or not p.exists())]
        files += taken
        others += len(visible) - len(taken)
    if others:
        log.info("%s: other files and links to folders passed over: %d", folder, others)
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
    failed = kept = 0
    with spread(work, jobs, workers) as results:
        if len(jobs) > 1:
            from tqdm import tqdm  # here: one file does not wait for it

            results = iter(tqdm(results, total=len(jobs), unit=" file", disable=None))
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                failed += 1
                log_error(result, job.source_name, str(job.target))
            else:
                kept += not result
    if len(jobs) > 1:
        counts = {"files done": len(jobs) - kept - failed, "there already": kept, "failed": failed}
        log.info(", ".join(f"{what}: {count}" for what, count in counts.items() if count or what == "files done"))
    return EXIT_FAILURE if failed else EXIT_OK


def log_error(error: Exception, *names: str) -> None:
    """Log an error of a file; its message begins with the first of the names, unless it names a file itself."""
    text = one_line(error)
    named = getattr(error, "filename", None) or text.startswith(tuple(map(legible, names)))
    log.error("error: %s", text if named else f"{legible(names[0])}: {text}")
