"""Which input goes to which output: the path arguments of codec-encode and codec-decode, and the loop over the files."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from codec.errors import EXIT_FAILURE, EXIT_OK, CodecError, UsageError, one_line

STREAM = Path("-")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One file to convert; ``-`` stands for stdin or stdout. Names are for messages."""

    source: Path
    target: Path

    @property
    def from_stdin(self) -> bool:
        return self.source == STREAM

    @property
    def to_stdout(self) -> bool:
        return self.target == STREAM

    @property
    def source_name(self) -> str:
        return "stdin" if self.from_stdin else str(self.source)

    @property
    def target_name(self) -> str:
        return "stdout" if self.to_stdout else str(self.target)


def plan_jobs(
    paths: Sequence[str], output_dir: str | None, source_suffixes: Collection[str], target_suffixes: Sequence[str]
) -> list[Job]:
    """Pair inputs with outputs: ``INPUT OUTPUT``, or any inputs and folders with an output folder.

    Args:
        source_suffixes: which files of an input folder are taken (files given by name always are).
        target_suffixes: what an OUTPUT may end with; files written into ``output_dir`` get the first one.

    Raises:
        UsageError: paths that cannot be paired, two inputs with one output, or a standard stream that is closed.
        OSError: a folder that cannot be read.
    """
    if "" in paths:
        raise UsageError("a path is empty")
    if output_dir is None:
        return [_pair(paths, target_suffixes)]
    outputs = Path(output_dir)
    if outputs.exists() and not outputs.is_dir():
        raise UsageError(f"-o {outputs} is a file, not a folder")
    source_of: dict[Path, Path] = {}  # target -> source
    for name in paths:
        path = _path(name)
        if path == STREAM:
            raise UsageError("stdin has no name for a file in the output folder; give OUTPUT instead of -o")
        folder, sources = (path, _files_below(path, source_suffixes)) if path.is_dir() else (path.parent, [path])
        for source in sources:
            target = (outputs / source.relative_to(folder)).with_suffix(target_suffixes[0])
            if target in source_of:
                raise UsageError(
                    f"{source_of[target]} and {source} would both become {target}; rename one, or give them one by one "
                    "or with different -o"
                )
            source_of[target] = source
    if not source_of:
        kind = next(iter(source_suffixes)) if len(source_suffixes) == 1 else "audio"
        raise UsageError(f"nothing to do: no {kind} file in {' '.join(paths)}")
    return [Job(source, target) for target, source in source_of.items()]


def _pair(paths: Sequence[str], target_suffixes: Sequence[str]) -> Job:
    if len(paths) != 2:
        raise UsageError("give INPUT OUTPUT, or several inputs with -o DIR")
    job = Job(_path(paths[0]), _path(paths[1]))
    if job.source.is_dir():
        raise UsageError(f"{job.source} is a folder; give -o DIR for the outputs")
    if not job.to_stdout and job.target.suffix.lower() not in target_suffixes:
        suffix = target_suffixes[0] if len(target_suffixes) == 1 else "an audio suffix as .wav or .flac"
        raise UsageError(f"OUTPUT must end in {suffix}, not {job.target.name!r}; several inputs need -o DIR")
    if job.target.is_dir():
        raise UsageError(f"{job.target} is a folder; give -o {job.target}")
    if job.from_stdin and sys.stdin is None:
        raise UsageError("stdin is closed")
    if job.to_stdout and sys.stdout is None:
        raise UsageError("stdout is closed")
    return job


def _path(name: str) -> Path:
    """``-`` is a stream; ``./-`` is a file, which as a mere ``Path`` would be the same."""
    path = Path(name)
    return path.absolute() if path == STREAM and name != "-" else path


def _files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
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
        # a link to nothing is taken, so that its failure is reported; a pipe is not
        taken = [p for p in visible if p.suffix.lower() in suffixes and (p.is_file() or p.is_symlink())]
        files += taken
        others += len(visible) - len(taken)
    if others:
        log.info("%s: files of other kinds passed over: %d", folder, others)
    if links:
        log.info("%s: links to folders not followed: %d; give them by name", folder, links)
    return sorted(files)


def _raise(error: OSError) -> NoReturn:
    raise error


def run_jobs(jobs: Sequence[Job], force: bool, transfer: Callable[[Job], None]) -> int:
    """Transfer file by file, going on after a failure, with a bar when there are several; returns the exit code."""
    from tqdm import tqdm

    failures = 0
    for job in tqdm(jobs, unit=" file", disable=None if len(jobs) > 1 else True):
        try:
            _check_target(job, force)
            transfer(job)
        except BrokenPipeError:
            raise  # whoever reads stdout has gone
        except (CodecError, OSError) as error:
            failures += 1
            log.error("error: %s", message(error, job.source_name, job.target_name))
    if failures and len(jobs) > 1:
        log.info("%d of %d files done, %d failed", len(jobs) - failures, len(jobs), failures)
    return EXIT_FAILURE if failures else EXIT_OK


def _check_target(job: Job, force: bool) -> None:
    if job.to_stdout or not job.target.exists():
        return
    if job.target.is_dir():
        raise IsADirectoryError(f"{job.target} is a folder")
    if not force:
        raise FileExistsError(f"{job.target} exists; --force overwrites it")
    if not job.from_stdin and job.source.exists() and job.target.samefile(job.source):
        raise FileExistsError(f"{job.target} is the input itself; give another OUTPUT")


def message(error: Exception, source: str, *others: str) -> str:
    """The error's message on one line, beginning with the name of the file that it is about."""
    from codec.container import ContainerError

    text = one_line(error)
    starts = tuple(f"{name}{end}" for name in (source, *others) for end in ": ")
    named = text.startswith(starts) and not isinstance(error, ContainerError)  # the container does not know the name
    return text if named or getattr(error, "filename", None) else f"{source}: {text}"
