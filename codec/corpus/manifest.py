"""Manifests: JSONL files that list utterances, one per line, written by ``data/<set>/prepare.py``.

Nothing else of a corpus is read in training: no directory layouts, no transcripts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from operator import index
from pathlib import Path
from typing import TypeVar

from codec.config import from_dict
from codec.errors import CodecError
from codec.files import atomic_write

Item = TypeVar("Item")


class ManifestError(CodecError):
    """A manifest that cannot be used, or a line or audio file of it; the message names it."""


@dataclass(frozen=True)
class Record:
    """One utterance of a manifest."""

    id: str  # unique
    path: str  # the audio file; in the manifest relative to the manifest's folder, absolute once read
    num_samples: int  # per channel
    sample_rate: int  # of the file, in Hz
    speaker: str = ""  # "" if unknown, as all texts below
    split: str = "train"  # train, dev, test or another plain name
    bandwidth_hz: int = 0  # the highest frequency at which the recording holds sound; losses ignore what lies above it
    language: str = ""  # this and the next two: where the utterance comes from, for model cards
    source: str = ""
    licence: str = ""
    text: str = ""  # what is said
    offset: int = 0  # where in a tar shard, the path, the audio lies
    num_bytes: int = 0  # of the audio in the shard; 0: the whole file is the audio

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def bandwidth(self) -> float:
        """Highest frequency with content in Hz: ``bandwidth_hz``, or half the sample rate where it is not given."""
        return float(self.bandwidth_hz or self.sample_rate / 2)


def audio_source(record: Record) -> str | BytesIO:
    """A record's audio, to open: its path, or its bytes in a shard; a ManifestError if some of these are missing."""
    if not record.num_bytes:
        return record.path
    with open(record.path, "rb") as file:
        file.seek(record.offset)
        data = file.read(record.num_bytes)
    if len(data) < record.num_bytes:
        raise ManifestError(f"{record.path} ends before the audio of {record.id}; prepare it again")
    return BytesIO(data)


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, paths below the manifest's folder made relative to it; replaces the file as a whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        for record in records:
            audio = Path(record.path).resolve()
            relative = audio.relative_to(folder).as_posix() if audio.is_relative_to(folder) else audio.as_posix()
            file.write(
                json.dumps(dataclasses.asdict(record) | {"path": relative}, ensure_ascii=False, default=index) + "\n"
            )


def parse_record(text: str | bytes, **known: object) -> Record:
    """The record in a JSON object, with the ``known`` fields in place of its own; other keys are ignored.

    A field that is null counts as missing; a speaker that is a number becomes its digits.

    Raises:
        ManifestError: no JSON object, a field that is missing or of a wrong type, or a value that cannot be.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ManifestError("no JSON object")
        values = {name: value for name, value in values.items() if value is not None} | known
        if type(values.get("speaker")) is int:
            values["speaker"] = str(values["speaker"])
        record = from_dict(Record, values, ignore_unknown=True)
        texts = (value for value in vars(record).values() if isinstance(value, str))
        "".join(texts).encode()  # reports and shards take no other text
    except ValueError as error:  # no JSON or text, a wrong type
        raise ManifestError(str(error)) from None
    numbers = (record.num_samples, record.sample_rate, record.bandwidth_hz, record.offset, record.num_bytes)
    if not (record.num_samples and record.sample_rate and min(numbers) >= 0):
        raise ManifestError("num_samples and sample_rate must be at least 1, and no number negative")
    if not re.fullmatch(r"\w[\w .+-]{,49}", record.split):  # as it becomes the name of a file
        raise ManifestError(f"split must be a plain name such as train, not {record.split!r}")
    return record


def read_manifest(path: str | Path) -> list[Record]:
    """Read a JSONL manifest; relative audio paths are taken from the manifest's folder.

    Raises:
        ManifestError: a line, given by its number, is no record or has the id of another line.
        OSError: no such manifest.
    """
    folder = Path(path).parent.resolve()
    records: list[Record] = []
    lines: dict[str, int] = {}  # id -> its line
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # told by its line, below
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = parse_record(line)
            except ManifestError as error:
                raise ManifestError(f"{path}:{number}: not a manifest record: {error}") from None
            if lines.setdefault(record.id, number) != number:
                raise ManifestError(f"{path}:{number}: id {record.id!r} again, after line {lines[record.id]}")
            records.append(dataclasses.replace(record, path=(folder / record.path).as_posix()))
    return records


def evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` of the items, evenly spaced: in a sorted list the first ones may all be of one speaker.

    >>> evenly("abcdefg", 3), evenly("ab", 3)
    (['a', 'c', 'e'], ['a', 'b'])
    """
    count = len(items) if limit is None else min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def summary(records: Sequence[Record]) -> str:
    """One line: utterances, hours, speakers."""
    hours = sum(record.duration for record in records) / 3600
    speakers = {record.speaker for record in records if record.speaker}
    return f"{len(records)} utterances, {hours:.2f} h, {len(speakers)} speakers"
