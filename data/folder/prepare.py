"""Write the manifests of any folder of audio, of all kinds that codec-encode takes, at any depth.

    python data/folder/prepare.py --root DIR --out manifests/
    python data/folder/prepare.py --root DIR --out manifests/ --speaker-from none --dev-fraction 0.05 --licence CC0-1.0

Writes OUT/train.jsonl, and OUT/dev.jsonl and OUT/test.jsonl as far as their fractions ask for them; what was skipped is
named in OUT/skipped.tsv. Hidden files and folders (.name) are passed over, links to folders are not followed.

The speaker of DIR/anna/2021/a.wav is "anna"; that of a file right in DIR is unknown, and counts as one of its own. The split
depends on the seed and on the names of the speakers (or of the files) alone, so it is the same on every machine.
"""

import argparse
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from codec.cli.jobs import files_below
from codec.corpus.manifest import Record, summary, write_manifest
from codec.corpus.scan import AUDIO_SUFFIXES, PrepareError, probe, report_bad
from codec.errors import EXIT_OK, Parser, run_command, say

SPLITS = ("train", "dev", "test")


def find_audio(root: Path) -> list[Path]:
    """Every audio file below ``root``, sorted by its path."""
    if not root.is_dir():
        raise PrepareError(f"no such folder: {root}")
    paths = files_below(root, AUDIO_SUFFIXES)
    if not paths:
        raise PrepareError(f"no audio in {root}")
    return sorted(paths, key=lambda path: path.as_posix())


def speaker_of(name: Path) -> str:
    """The name of the folder that the file is in, right below the root; "" for a file in the root itself."""
    return name.parts[0] if len(name.parts) > 1 else ""


def assign_splits(items: Iterable[str], dev_fraction: float, test_fraction: float, seed: int) -> dict[str, str]:
    """Item -> split, whatever the order of the items: they are drawn in the order of their hashes with the seed.

    A split with a fraction above 0 gets at least one item, and so does train.
    """
    drawn = sorted(
        set(items), key=lambda item: hashlib.sha256(f"{seed}\0{item}".encode(errors="surrogateescape")).digest()
    )
    needed = 1 + (dev_fraction > 0) + (test_fraction > 0)
    if len(drawn) < needed:
        raise PrepareError(f"{len(drawn)} cannot be split into {needed}")
    num_dev, num_test = (max(round(f * len(drawn)), 1) if f > 0 else 0 for f in (dev_fraction, test_fraction))
    while num_dev + num_test >= len(drawn):  # rounded up, in a set of a few items
        num_dev, num_test = (num_dev - 1, num_test) if num_dev > num_test else (num_dev, num_test - 1)
    sizes = {"dev": num_dev, "test": num_test, "train": len(drawn) - num_dev - num_test}
    splits = [split for split, size in sizes.items() for _ in range(size)]
    return dict(zip(drawn, splits, strict=True))


def records(good: Sequence[Record], args: argparse.Namespace) -> list[Record]:
    """The manifest records, without their splits."""
    names = [Path(record.path).relative_to(args.root) for record in good]
    return [
        dataclasses.replace(
            record,
            id=name.as_posix(),
            speaker=speaker_of(name) if args.speaker_from == "folder" else "",
            language=args.language,
            source=args.source,
            licence=args.licence,
        )
        for record, name in zip(good, names, strict=True)
    ]


def split_records(records: Sequence[Record], args: argparse.Namespace) -> dict[str, list[Record]]:
    """Split -> its records, by whole speakers or by file; says which."""
    num_speakers = len({record.speaker for record in records})
    by = args.split_by or ("speaker" if num_speakers > 1 else "file")
    if by == "speaker" and num_speakers == 1 and not records[0].speaker:
        raise PrepareError("--split-by speaker: no file lies in the folder of a speaker; take --split-by file")
    keys = [(by == "speaker" and record.speaker) or record.id for record in records]
    try:
        split_of = assign_splits(keys, args.dev_fraction, args.test_fraction, args.seed)
    except PrepareError as error:
        raise PrepareError(f"too few {by}s: {error}; change --split-by or the fractions") from None
    counts = {split: list(split_of.values()).count(split) for split in SPLITS}
    print(f"split by {by} with seed {args.seed}: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS))
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record, key in zip(records, keys, strict=True):
        splits[split_of[key]].append(dataclasses.replace(record, split=split_of[key]))
    return {split: chosen for split, chosen in splits.items() if chosen}


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    good, bad = probe(find_audio(args.root), args.min_seconds, args.limit, label=args.root.name)
    report_bad(bad, args.out / "skipped.tsv")
    if not good:
        raise PrepareError(f"no usable file in {args.root} ({len(bad)} skipped)")
    splits = split_records(records(good, args), args)
    for split, chosen in splits.items():
        write_manifest(args.out / f"{split}.jsonl", chosen)
        print(f"{args.out / split}.jsonl: {summary(chosen)}")
    print(f"files skipped: {len(bad)}")
    for split in SPLITS:
        stale = args.out / f"{split}.jsonl"
        if split not in splits and stale.exists():
            say(f"note: {stale} is of an earlier run and may share speakers with the new manifests")
    return EXIT_OK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the process with status 2 where it makes no sense."""
    parser = Parser(description=__doc__)
    parser.add_argument("--root", required=True, type=Path, help="the folder of audio")
    parser.add_argument("--out", required=True, type=Path, help="folder for the manifests")
    parser.add_argument("--speaker-from", choices=["folder", "none"], default="folder", help="default: %(default)s")
    parser.add_argument("--split-by", choices=["speaker", "file"], help="default: speaker where there are several")
    parser.add_argument("--dev-fraction", type=float, default=0.02, help="share of dev; default: %(default)s")
    parser.add_argument("--test-fraction", type=float, default=0.0, help="share of test; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the split; default: %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N files, evenly spread")
    parser.add_argument("--min-seconds", type=float, default=0.5, help="skip shorter files; default: %(default)s")
    parser.add_argument("--language", default="", help="noted in the manifest, such as en")
    parser.add_argument("--source", default="", help="noted in the manifest: the name of the corpus")
    parser.add_argument("--licence", default="", help="noted in the manifest, such as CC-BY-4.0")
    args = parser.parse_args(argv)
    if args.speaker_from == "none" and args.split_by == "speaker":
        parser.error("--split-by speaker needs speakers: not with --speaker-from none")
    if not (args.dev_fraction >= 0 and args.test_fraction >= 0 and args.dev_fraction + args.test_fraction < 1):
        parser.error("--dev-fraction and --test-fraction must be at least 0 and leave something for train")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)  # of what is passed over
    return run_command("prepare.py", lambda: prepare(args), "the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
