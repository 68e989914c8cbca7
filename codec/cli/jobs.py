"""Which input goes to which output, and the loop over the files."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from codec.cli.backends import load_codec
from codec.errors import EXIT_FAILURE, EXIT_OK, CodecError, UsageError, one_line
from codec.pretrained import ModelError

if TYPE_CHECKING:
    from codec.base import CodecBase

Signal = TypeVar("Signal", bound=Any)  # numpy's array or torch's tensor
STREAM = Path("-")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One file to convert; ``-`` stands for stdin or stdout. Names are for messages."""

    source: Path
    target: Path
    clashes: bool = False  # another input has the same target

    @property
    def source_name(self) -> str:
        return "stdin" if self.source == STREAM else str(self.source)

    @property
    def target_name(self) -> str:
        return "stdout" if self.target == STREAM else str(self.target)


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
    if "" in paths:
        raise UsageError("a path is empty")
    if output_dir is None:
        return [_pair(paths, target_suffixes)]
    outputs = Path(output_dir)
    if outputs.exists() and not outputs.is_dir():
        raise UsageError(f"-o {outputs} is a file, not a folder")
    pairs: dict[tuple[Path, Path], None] = {}  # in their order; what is given twice is meant once
    for name in paths:
        path = _path(name)
        if path == STREAM:
            raise UsageError("stdin has no name for a file in the output folder; give OUTPUT instead of -o")
        folder, sources = (path, files_below(path, source_suffixes)) if path.is_dir() else (path.parent, [path])
        for source in sources:
            pairs[source, (outputs / source.relative_to(folder)).with_suffix(target_suffixes[0])] = None
    if not pairs:
        kind = next(iter(source_suffixes)) if len(source_suffixes) == 1 else "audio"
        raise UsageError(f"nothing to do: no {kind} file in {' '.join(paths)}")
    counts = Counter(target for _, target in pairs)
    return [Job(source, target, clashes=counts[target] > 1) for source, target in pairs]


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
    return Job(source, target)


def _path(name: str) -> Path:
    """``-`` is a stream; ``./-`` is a file, which as a mere ``Path`` would be the same."""
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


class Worker(ABC):
    """Does the jobs of a command one by one; each process has one.

    Attributes:
        args: of the command.
        alone: whether no other process works beside this one.
    """

    def __init__(self, args: argparse.Namespace, alone: bool) -> None:
        self.args, self.alone = args, alone
        self._models: dict[str, CodecBase[Any]] = {}

    @abstractmethod
    def prepare(self) -> None:
        """Load what all jobs need."""

    @abstractmethod
    def is_done(self, job: Job) -> bool:
        """Whether the target, a file, is what the job gives."""

    @abstractmethod
    def convert(self, job: Job) -> None:
        """Do the job. What a user can mend is a CodecError or an OSError."""

    def load(self, model: str) -> CodecBase[Any]:
        """A model by its name, loaded once."""
        if model not in self._models:
            num_threads = None if self.alone else 1
            self._models[model] = load_codec(model, self.args.backend, self.args.device, num_threads)
        return self._models[model]

    def followed(self, blocks: Iterable[Signal], rate: float, seconds: float) -> Iterator[Signal]:
        """The blocks ``[..., n]`` of a file, of so many values per second; of a long one with a bar, on terminals only."""
        if seconds <= 60 or not self.alone:
            yield from blocks
            return
        from tqdm import tqdm  # here: short files do not wait for it

        with tqdm(total=round(seconds), unit=" s", leave=False, disable=None) as bar:
            for block in blocks:
                yield block
                bar.update(block.shape[-1] / rate)

    def __call__(self, job: Job) -> bool | Exception:
        """Whether there was anything to do, or why it cannot be done.

        Raises:
            ModelError: a model or device that cannot be used, by any of the jobs.
            CodecError: likewise a number of quantizers.
        """
        self.prepare()
        try:
            if job.clashes:
                raise UsageError(f"{job.source} is not the only input for {job.target}; rename it, or take another -o")
            existing = self.args.skip_existing and STREAM not in (job.source, job.target) and job.target.is_file()
            if existing and self.is_done(job):
                return False
            _check_target(job, self.args.force, existing)
            self.convert(job)
        except (BrokenPipeError, ModelError):
            raise  # whoever reads stdout has gone; or no job can be done
        except (CodecError, OSError) as error:
            return error
        return True


def run_jobs(jobs: Sequence[Job], worker: Worker, workers: int) -> int:
    """Do the jobs in so many processes, going on after a failure, with a bar if there are several; returns the exit code.

    Raises:
        CodecError: see :class:`Worker`; or a process was killed.
    """
    from codec.workers import spread

    failures, there = Failures(), 0
    with spread(worker, jobs, workers) as results:
        if len(jobs) > 1:
            from tqdm import tqdm  # here: one file does not wait for it

            results = iter(tqdm(results, total=len(jobs), unit=" file", disable=None))
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                failures.add(result, job.source_name, job.target_name)
            else:
                there += not result
    failures.say_others()
    if len(jobs) > 1:
        counts = {"files done": len(jobs) - there - failures.count, "there already": there, "failed": failures.count}
        log.info(", ".join(f"{what}: {count}" for what, count in counts.items() if count or what == "files done"))
    return EXIT_FAILURE if failures.count else EXIT_OK


def _check_target(job: Job, force: bool, differs: bool) -> None:
    if job.target == STREAM or not job.target.exists():
        return
    if job.target.is_dir():
        raise IsADirectoryError(f"{job.target} is a folder")
    if not force:
        advice = "--force overwrites it" if differs else "--force overwrites it, --skip-existing leaves it"
        raise FileExistsError(f"{job.target} exists{' but is not what this gives' if differs else ''}; {advice}")
    if job.source != STREAM and job.source.exists() and job.target.samefile(job.source):
        raise FileExistsError(f"{job.target} is the input itself; give another OUTPUT")


class Failures:
    """Says an error once, and at the end of which other files it is true."""

    def __init__(self) -> None:
        self.count = 0
        self._files: dict[str, list[str]] = {}  # reason -> names

    def add(self, error: Exception, source: str, *others: str) -> None:
        """Count a failure with ``source``, which is put before a message that names neither it nor one of the ``others``."""
        self.count += 1
        text = one_line(error)
        names = self._files.setdefault(text, [])
        names.append(source)
        starts = tuple(f"{name}{end}" for name in (source, *others) for end in ": ")
        if len(names) == 1:
            named = text.startswith(starts) or getattr(error, "filename", None)
            log.error("error: %s", text if named else f"{source}: {text}")

    def say_others(self) -> None:
        for _, *others in self._files.values():
            if others:
                log.error("error: %s: the same", textwrap.shorten(", ".join(others), 1000, placeholder=" ..."))
