"""Make manifests of tar shards of speech (WebDataset layout: KEY.<audio> beside KEY.json, in any folders).

    python data/shards/prepare.py SHARD.tar [SHARD.tar ...] --out corpora/speech --hold-out 60
    python data/shards/prepare.py SHARD.tar [SHARD.tar ...] --out corpora/speech --hold-out 60 --in-place

Each utterance becomes ``OUT/audio/KEY.wav`` (16-bit, at its own sample rate: random segments are then read without
decoding whole files) and a line of ``OUT/<split>.jsonl``. Utterances already unpacked are kept, so a stopped run goes on.
With ``--in-place`` nothing is unpacked: the manifest says where in its shard each utterance lies. ``--hold-out N`` sets
the utterances of N speakers of the split train aside as ``OUT/valid.jsonl``, to choose settings and checkpoints by.
"""

import argparse
import hashlib
import io
import itertools
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from codec.audio import AudioError, AudioReader, AudioWriter, measure
from codec.corpus.manifest import ManifestError, Record, parse_record, summary, write_manifest
from codec.corpus.scan import AUDIO_SUFFIXES, PrepareError
from codec.corpus.shards import key_of, walk
from codec.errors import EXIT_OK, Parser, run_command, say
from codec.files import atomic_write

CHUNK = 1 << 20  # bytes read at once


class File(NamedTuple):
    """A file of a shard: its name, its bytes, and where in the shard these begin."""

    name: PurePosixPath
    content: bytes
    offset: int


def read_file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    """One file of a shard."""
    file = archive.extractfile(member)
    assert file is not None
    content = b"".join(iter(partial(file.read, CHUNK), b""))  # whatever size a damaged header claims
    return File(PurePosixPath(member.name), content, member.offset_data)


def utterances(files: Iterable[File]) -> Iterator[tuple[str, list[File]]]:
    """The files of each key, which stand side by side."""
    for key, group in itertools.groupby(files, lambda file: key_of(str(file.name))):
        chosen = [file for file in group if file.name.suffix.lower() in {".json", *AUDIO_SUFFIXES}]
        if chosen:
            yield key, chosen


def describe(key: str, files: Sequence[File], shard: Path, folder: Path | None) -> Record:
    """The record of one utterance, which is unpacked to ``folder/KEY.wav`` if a folder is given.

    Raises:
        ManifestError, AudioError: it cannot be used.
    """
    meta = [file for file in files if file.name.suffix.lower() == ".json"]
    audio = [file for file in files if file not in meta]
    for kind, some in (("metadata", meta), ("audio", audio)):
        if not some:
            raise ManifestError(f"no {kind}")
        if len(some) > 1:
            raise ManifestError(f"{len(some)} files of {kind}; a key ends at the first dot of a name")
    content = io.BytesIO(audio[0].content)
    if folder is None:
        path, offset, num_bytes = shard, audio[0].offset, len(audio[0].content)
        num_samples, sample_rate = measure(content, audio[0].name.name)
    else:
        path, offset, num_bytes = folder / f"{key}.wav", 0, 0
        if not path.exists():
            unpack(content, path)
        elif not begins_alike(content, path):  # other shards were prepared into the same folder
            raise ManifestError(f"{path} is of other audio with that key; choose another --out, or remove it")
        num_samples, sample_rate = measure(path)
    known = {"num_samples": num_samples, "sample_rate": sample_rate, "offset": offset, "num_bytes": num_bytes}
    return parse_record(meta[0].content, id=key, path=str(path), **known)


def unpack(audio: BinaryIO, path: Path) -> None:
    """Decode to a 16-bit WAV file of one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        AudioReader(audio, path.stem) as reader,
        atomic_write(path) as temporary,
        AudioWriter(temporary, reader.sample_rate, name=str(path)) as writer,
    ):
        for block in reader.blocks():
            writer.write(block)


def begins_alike(audio: BinaryIO, path: Path) -> bool:
    """Whether a file was unpacked from this audio, by its rate, its length and its first block."""
    if measure(audio, path.stem) != measure(path):
        return False
    with AudioReader(audio, path.stem) as packed, AudioReader(path) as file:
        first, there = next(packed.blocks()), next(file.blocks())
        size = min(len(first), len(there))  # by their headers they may have blocks of other lengths
        largest = np.abs(first[:size].clip(-1, 1) - there[:size]).max()
        return bool(largest < 2**-14)  # a step of 16 bits is half of it


def read_shards(shards: Sequence[Path], folder: Path | None, limit: int | None) -> tuple[list[Record], int]:
    """The records of all shards, unpacked into ``folder`` if one is given, and how many utterances could not be used.

    Raises:
        PrepareError: a shard that cannot be read to its end, or two utterances of one key.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}  # key -> its shard
    bad = 0
    for shard in shards:
        files = walk(shard, folder is None, read_file)
        for key, group in tqdm(utterances(files), desc=shard.name, unit=" utt", disable=None):
            if limit is not None and len(records) >= limit:
                return records, bad
            if key in seen:
                side_by_side = "keys must differ, and the files of each stand side by side: tar --sort=name"
                raise PrepareError(f"{shard.name} has {key} again, after {seen[key]}; {side_by_side}")
            seen[key] = shard.name
            try:
                records.append(describe(key, group, shard, folder))
            except (AudioError, ManifestError) as error:
                bad += 1
                say(f"skipped {shard.name}:{key}: {error}")
    return records, bad


def hold_out(records: Sequence[Record], speakers: int) -> tuple[list[Record], list[Record]]:
    """Set all utterances of ``speakers`` speakers aside: (the rest, those), the latter in a mixed order.

    Speakers are chosen, and their utterances mixed, by a hash of their names: the same in every run, and speakers who are
    added to a corpus move nobody else. Records without a speaker stay.
    """
    names = sorted({record.speaker for record in records if record.speaker}, key=_hashed)
    chosen = set(names[:speakers])
    held = sorted((record for record in records if record.speaker in chosen), key=lambda record: _hashed(record.id))
    return [record for record in records if record.speaker not in chosen], held


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def splits(records: Sequence[Record], held_speakers: int) -> dict[str, list[Record]]:
    """The records by split, those of ``held_speakers`` speakers of train as ``valid``."""
    by_split: dict[str, list[Record]] = {}
    for record in records:
        by_split.setdefault(record.split, []).append(record)
    if held_speakers > 0 and "train" in by_split:
        if "valid" in by_split:
            raise PrepareError("--hold-out: the shards have a split valid already; leave it out")
        speakers = len({record.speaker for record in by_split["train"]})
        by_split["train"], by_split["valid"] = hold_out(by_split["train"], held_speakers)
        if not (by_split["train"] and by_split["valid"]):
            raise PrepareError(
                f"--hold-out {held_speakers}: of train, one side would be empty; its speakers are {speakers}"
            )
    return by_split


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    folder = None if args.in_place else args.out / "audio"
    (folder or args.out).mkdir(parents=True, exist_ok=True)
    records, bad = read_shards(args.shards, folder, args.limit)
    if not records:
        hint = (
            f"all {bad} were skipped" if bad else "are there KEY.opus (flac, wav, ...) beside KEY.json in the shards?"
        )
        raise PrepareError(f"no utterance can be used: {hint}")
    by_split = splits(records, args.hold_out)
    for split, chosen in by_split.items():
        write_manifest(args.out / f"{split}.jsonl", chosen)
        print(f"{args.out / split}.jsonl: {summary(chosen)}")
    print(f"{bad} utterances skipped")
    for stale in sorted(args.out.glob("*.jsonl")):
        if stale.stem not in by_split:
            say(f"note: {stale} is of an earlier run and may share speakers with the new manifests")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("shards", nargs="+", type=Path, metavar="SHARD.tar")
    parser.add_argument("--out", required=True, type=Path, help="folder for audio/ and the manifests")
    parser.add_argument("--limit", type=int, help="stop after this many utterances")
    parser.add_argument("--in-place", action="store_true", help="unpack nothing; read the shards where they lie")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="speakers of train for valid.jsonl")
    args = parser.parse_args(argv)
    if args.hold_out < 0 or (args.limit is not None and args.limit < 1):
        parser.error("--hold-out must not be negative, and --limit at least 1")
    return run_command("prepare.py", lambda: prepare(args), "the same command goes on where this one was")


if __name__ == "__main__":
    sys.exit(main())
