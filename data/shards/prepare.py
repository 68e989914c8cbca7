"""Make manifests of tar shards of speech (WebDataset layout: KEY.<audio> beside KEY.json).

    python data/shards/prepare.py SHARD.tar [SHARD.tar ...] --out corpora/speech --hold-out 60
    python data/shards/prepare.py SHARD.tar [SHARD.tar ...] --out corpora/speech --hold-out 60 --in-place

Each utterance becomes ``OUT/audio/KEY.wav`` (16-bit, at its own sample rate: random segments are then read without
decoding whole files) and a line of ``OUT/<split>.jsonl``. Utterances already unpacked are kept, so a stopped run goes on.
With ``--in-place`` nothing is unpacked: the manifest says where in its shard each utterance lies. ``--hold-out N`` sets
the utterances of N speakers of the split train aside as ``OUT/valid.jsonl``, to choose settings and checkpoints by.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from codec.corpus.manifest import ManifestError, Record, record_of, summary, write_manifest
from codec.corpus.scan import AUDIO_SUFFIXES, PrepareError
from codec.errors import EXIT_OK, one_line, run_command, say
from codec.files import written_whole


@dataclass(frozen=True)
class Utterance:
    """One utterance of a shard: the bytes of its audio, where they begin in the shard, and what is known of it."""

    key: str
    audio: bytes
    offset: int
    meta: Any


def utterances(shard: Path) -> Iterator[Utterance]:
    """The utterances of one shard; members of one key stand next to each other.

    Raises:
        PrepareError: metadata that is no JSON.
    """
    key, audio, meta, offset = "", None, None, 0
    with tarfile.open(shard) as tar:
        for member in tar:
            if not member.isfile():
                continue
            name = Path(member.name)
            if name.stem != key:
                if (audio is None) != (meta is None):
                    say(f"skipped {shard.name}:{key}: no {'audio' if audio is None else 'metadata'} beside it")
                key, audio, meta = name.stem, None, None
            content = tar.extractfile(member)
            assert content is not None  # isfile() holds
            if name.suffix == ".json":
                try:
                    meta = json.load(content)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise PrepareError(f"{shard}: the metadata of an utterance cannot be read: {error}") from None
            elif name.suffix in AUDIO_SUFFIXES:
                audio, offset = content.read(), member.offset_data
            if audio is not None and meta is not None:
                yield Utterance(key, audio, offset, meta)
                audio = meta = None


def unpack(utterance: Utterance, folder: Path) -> Record:
    """Decode one utterance to ``folder/KEY.wav`` unless it is there already, and describe it."""
    path = folder / f"{utterance.key}.wav"
    if not path.exists():
        samples, sample_rate = soundfile.read(io.BytesIO(utterance.audio), dtype="float32", always_2d=True)
        with written_whole(path) as temporary:
            soundfile.write(temporary, samples.mean(axis=1), sample_rate, subtype="PCM_16")
    return describe(utterance, soundfile.info(path), path=str(path))


def point_into(utterance: Utterance, shard: Path) -> Record:
    """Describe one utterance where it lies."""
    info = soundfile.info(io.BytesIO(utterance.audio))
    return describe(utterance, info, path=str(shard), offset=utterance.offset, num_bytes=len(utterance.audio))


def describe(utterance: Utterance, info: Any, **where: object) -> Record:
    """A record of what the metadata and the audio's own header say."""
    if not isinstance(utterance.meta, dict):
        raise ManifestError("its metadata is no JSON object")
    known = {"id": utterance.key, "num_samples": info.frames, "sample_rate": info.samplerate, **where}
    return record_of(utterance.meta | known)


def read_shards(shards: Sequence[Path], folder: Path | None, limit: int | None) -> tuple[list[Record], int]:
    """The records of all shards, unpacked into ``folder`` if one is given, and how many utterances could not be used.

    Raises:
        PrepareError: a shard that is missing or no tar file.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}  # key -> its shard
    bad = 0
    for shard in shards:
        try:
            for utterance in tqdm(utterances(shard), desc=shard.name, unit=" utt", disable=None):
                if limit is not None and len(records) >= limit:
                    return records, bad
                if utterance.key in seen:
                    raise PrepareError(
                        f"{shard.name} has {utterance.key} again, after {seen[utterance.key]}; keys must differ"
                    )
                seen[utterance.key] = shard.name
                try:
                    records.append(unpack(utterance, folder) if folder else point_into(utterance, shard))
                except (soundfile.LibsndfileError, ManifestError) as error:  # no audio, or metadata that is no record
                    bad += 1
                    say(f"skipped {shard.name}:{utterance.key}: {error}")
        except OSError as error:
            if error.filename:
                raise
            raise PrepareError(f"{shard}: {one_line(error)}") from None
        except (tarfile.TarError, EOFError, zlib.error) as error:
            reason = (str(error).splitlines() or ["it ends early"])[0].rstrip(":")
            raise PrepareError(f"{shard} is no tar file, or a damaged one ({reason}); fetch it again") from None
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
        by_split["train"], by_split["valid"] = hold_out(by_split["train"], held_speakers)
        if not (by_split["train"] and by_split["valid"]):
            raise PrepareError(f"--hold-out {held_speakers}: of train, one side would be empty")
    return by_split


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    folder = None if args.in_place else args.out / "audio"
    (folder or args.out).mkdir(parents=True, exist_ok=True)
    records, bad = read_shards(args.shards, folder, args.limit)
    if not records:
        raise PrepareError("no utterance found: are there KEY.opus (flac, wav, ...) beside KEY.json in the shards?")
    for split, chosen in splits(records, args.hold_out).items():
        write_manifest(args.out / f"{split}.jsonl", chosen)
        print(f"{args.out / split}.jsonl: {summary(chosen)}")
    print(f"{bad} utterances skipped")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
