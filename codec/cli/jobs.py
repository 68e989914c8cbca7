"""Which input goes to which output: the path arguments of codec-encode and codec-decode."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from codec.errors import UsageError

STREAM = Path("-")


@dataclass(frozen=True)
class Job:
    """One file to convert; ``-`` stands for stdin or stdout."""

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
        """For messages."""
        return "stdin" if self.from_stdin else str(self.source)

    @property
    def target_name(self) -> str:
        """For messages."""
        return "stdout" if self.to_stdout else str(self.target)


def plan_jobs(
    paths: Sequence[str],
    output_dir: Path | None,
    source_suffixes: Collection[str],
    target_suffixes: Sequence[str],
    note: Callable[[str], None],
) -> list[Job]:
    """Pair inputs with outputs: ``INPUT OUTPUT``, or any inputs and folders with an output folder.

    Args:
        source_suffixes: which files of an input folder are taken (files named outright always are).
        target_suffixes: what an OUTPUT may end with; the first one is given to files written into ``output_dir``.
        note: told about files of a folder that are passed over.

    Raises:
        UsageError: paths that cannot be paired, or two inputs with one output.
        OSError: a folder that cannot be read.
    """
    if "" in paths:
        raise UsageError("a path is empty")
    if output_dir is None:
        return [_pair(paths, target_suffixes)]
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"-o {output_dir} is a file, not a folder")
    jobs: list[Job] = []
    for name in paths:
        path = _path(name)
        if path == STREAM:
            raise UsageError("stdin has no name for a file in the output folder; give OUTPUT instead of -o")
        if path.is_dir():
            sources = _files_below(path, source_suffixes, note)
            jobs += [Job(source, output_dir / source.relative_to(path)) for source in sources]
        else:
            jobs.append(Job(path, output_dir / path.name))
    jobs = [Job(job.source, job.target.with_suffix(target_suffixes[0])) for job in jobs]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target in taken:
            raise UsageError(
                f"{taken[job.target]} and {job.source} would both become {job.target}; rename one, or give them one by one "
                "or with different -o"
            )
        taken[job.target] = job.source
    if not jobs:
        kind = next(iter(source_suffixes)) if len(source_suffixes) == 1 else "audio"
        raise UsageError(f"nothing to do: no {kind} file in {' '.join(paths)}")
    return jobs


def _pair(paths: Sequence[str], target_suffixes: Sequence[str]) -> Job:
    if len(paths) != 2:
        raise UsageError("give INPUT OUTPUT, or several inputs with -o DIR")
    job = Job(_path(paths[0]), _path(paths[1]))
    if job.source.is_dir():
        raise UsageError(f"{job.source} is a folder; give -o DIR for the outputs")
    if not job.to_stdout and job.target.suffix.lower() not in target_suffixes:
        wanted = target_suffixes[0] if len(target_suffixes) == 1 else "an audio suffix as .wav or .flac"
        raise UsageError(f"OUTPUT must end in {wanted}, not {job.target.name!r}; several inputs need -o DIR")
    if job.target.is_dir():
        raise UsageError(f"{job.target} is a folder; give -o {job.target}")
    return job


def _path(name: str) -> Path:
    """``-`` is a stream; ``./-`` is a file, which as a mere ``Path`` would be the same."""
    path = Path(name)
    return path.absolute() if path == STREAM and name != "-" else path


def _files_below(folder: Path, suffixes: Collection[str], note: Callable[[str], None]) -> list[Path]:
    """Files with these suffixes, without hidden ones (temporary files, and the ``._x.wav`` that some systems add).

    Links to folders are not followed: they may lead in a circle, or to the same files again.

    Raises:
        OSError: a folder that cannot be read.
    """
    chosen: list[Path] = []
    others = links = 0
    for where, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links += sum(Path(where, name).is_symlink() for name in subfolders)
        paths = [Path(where, name) for name in names if not name.startswith(".")]
        # a link to nothing is taken, so that its failure is told; a pipe is not
        wanted = [p for p in paths if p.suffix.lower() in suffixes and (p.is_file() or p.is_symlink())]
        chosen += wanted
        others += len(paths) - len(wanted)
    if others:
        note(f"{folder}: files of other kinds passed over: {others}")
    if links:
        note(f"{folder}: links to folders not followed: {links}; give them by name")
    return sorted(chosen)


def _raise(error: OSError) -> NoReturn:
    raise error
