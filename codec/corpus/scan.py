"""Scan a corpus: which audio files are usable, and why others are not; for ``data/<set>/prepare.py``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from codec.audio import AudioError, audio_suffixes, measure, read_samples
from codec.corpus.manifest import Record, audio_source, evenly
from codec.errors import CodecError, legible, one_line
from codec.files import atomic_write
from codec.workers import in_threads

log = logging.getLogger(__name__)

# without films and features, which some corpora have beside the audio
AUDIO_SUFFIXES = audio_suffixes() - {".3g2", ".3gp", ".htk", ".mkv", ".mov", ".mp4", ".sd2", ".webm"}

SHOWN = 10  # bad files in the log
THREADS = 16  # opening files waits for the disk, so more threads than cores help


class PrepareError(CodecError):
    """The reason why a corpus cannot be prepared; the message is one line for the user."""


class BadFile(NamedTuple):
    """A file that was passed over, and why."""

    path: Path
    reason: str


def probe(
    paths: Sequence[Path], min_seconds: float, limit: int | None, label: str
) -> tuple[list[Record], list[BadFile]]:
    """Read the headers of audio files, in many threads; both lists keep the order of ``paths``.

    Records have the path, length and rate of a file; the id is its name without the suffix.

    A file that is damaged after its header counts as usable here; training skips such files. Files shorter than
    ``min_seconds`` are bad. With a ``limit`` only that many are read, evenly spaced. The bar shows ``label``.
    """
    paths = evenly(paths, limit)
    probed = in_threads(lambda path: _probe_file(path, min_seconds), paths, THREADS)
    results = list(tqdm(probed, label, len(paths), unit=" files", disable=None))
    good = [result for result in results if isinstance(result, Record)]
    return good, [result for result in results if isinstance(result, BadFile)]


def _probe_file(path: Path, min_seconds: float) -> Record | BadFile:
    try:
        str(path).encode()
        num_samples, sample_rate = measure(path)
    except UnicodeEncodeError:
        return BadFile(path, "its name is not UTF-8, as manifests and all that follows from them are; rename it")
    except (AudioError, OSError) as error:
        return BadFile(path, reason_of(error, path))
    if not num_samples >= min_seconds * sample_rate:  # also if that is NaN
        return BadFile(path, f"too short: {num_samples / sample_rate:.3f} s")
    return Record(path.stem, str(path), num_samples, sample_rate)


def reason_of(error: Exception, path: str | Path) -> str:
    """The message of an error, without the file's name."""
    return one_line(error).removeprefix(legible(str(path))).lstrip(": ")


def report_bad(bad: Sequence[BadFile], path: Path) -> None:
    """Name the bad files: all of them in the file ``path``, one per line with the reason, and the first few in the log.

    If no file is bad, a list of an earlier run at ``path`` is removed.
    """
    if not bad:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        lines = (f"{each.path}\t{each.reason}\n" for each in bad)
        temporary.write_text("".join(lines), "utf-8", "surrogateescape")
    for each in bad[:SHOWN]:
        log.warning("skipped %s: %s", legible(str(each.path)), each.reason)
    if len(bad) > SHOWN:
        log.warning("files skipped: %d, all named in %s", len(bad), path)


def read_record(record: Record) -> tuple[NDArray[np.float32], int]:
    """A whole utterance, mixed down ``[T]``, and its sample rate in Hz as in the file; errors as AudioReader."""
    return read_samples(audio_source(record), record.path)
