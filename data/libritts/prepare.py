"""Write the manifests of LibriTTS or LibriTTS-R, and download the corpus where it is not there yet.

    python data/libritts/prepare.py --root LibriTTS --out manifests/
    python data/libritts/prepare.py --root corpora --out manifests/ --download --splits dev-clean train-clean-100
    python data/libritts/prepare.py --root corpora --out manifests/ --corpus libritts-r --exclude *_bad_sample_list.txt

The corpus is laid out as SPLIT/SPEAKER/CHAPTER/SPEAKER_CHAPTER_PARAGRAPH_UTTERANCE.wav, with the normalized
transcripts beside the audio. Each split becomes OUT/SPLIT.jsonl, and what was skipped is named in OUT/SPLIT.skipped.tsv.

Both corpora are CC BY 4.0. LibriTTS-R comes with lists of the utterances whose restoration may have failed
(libritts_r_failed_speech_restoration_examples.tar.gz at https://www.openslr.org/141/). Its authors advise to leave
those out of training: unpack the lists and pass them to --exclude.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codec.corpus.fetch import fetch, unpack
from codec.corpus.manifest import Record, write_manifest
from codec.corpus.scan import BadFile, PrepareError, probe, report_bad
from codec.errors import EXIT_OK, Parser, run_command

MIRROR = "https://www.openslr.org/resources"
NAME = re.compile(r"(?P<speaker>\d+)_(?P<chapter>\d+)_\d+_\d+")
SAMPLE_RATE = 24000  # of every file of both corpora


@dataclass(frozen=True)
class Published:
    """What a complete split of LibriTTS holds.

    Files as the TensorFlow Datasets catalog counts them, hours as icefall's recipe measured them; the speakers add up to
    the 2,456 of the LibriTTS paper (https://arxiv.org/abs/1904.02882).
    """

    files: int
    hours: float
    speakers: int


SPLITS = {
    "train-clean-100": Published(33236, 53.8, 247),
    "train-clean-360": Published(116500, 191.3, 904),
    "train-other-500": Published(205044, 310.1, 1160),
    "dev-clean": Published(5736, 9.0, 40),
    "dev-other": Published(4613, 6.4, 33),
    "test-clean": Published(4837, 8.6, 39),
    "test-other": Published(5120, 6.7, 33),
}


@dataclass(frozen=True)
class Corpus:
    """One of the two corpora.

    Attributes:
        title: for messages.
        source: as in the manifest and on the command line.
        folder: what its archives unpack to.
        resource: its number at OpenSLR.
        archives: split -> name of its archive.
        checksums: split -> "algorithm:hex digest" of its archive. MD5 tells damage; against an archive that somebody made
            to deceive it is no guard.
    """

    title: str
    source: str
    folder: str
    resource: int
    archives: Mapping[str, str]
    checksums: Mapping[str, str]


LIBRITTS = Corpus(
    title="LibriTTS",
    source="libritts",
    folder="LibriTTS",
    resource=60,
    archives={split: f"{split}.tar.gz" for split in SPLITS},
    checksums={  # those torchaudio verifies, torchaudio/datasets/libritts.py
        "train-clean-100": "sha256:c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b",
        "train-clean-360": "sha256:ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886",
        "train-other-500": "sha256:e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df",
        "dev-clean": "sha256:da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a",
        "dev-other": "sha256:d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c",
        "test-clean": "sha256:234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5",
        "test-other": "sha256:33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d",
    },
)
LIBRITTS_R = Corpus(
    title="LibriTTS-R",
    source="libritts-r",
    folder="LibriTTS_R",
    resource=141,
    archives={split: f"{split.replace('-', '_')}.tar.gz" for split in SPLITS},
    checksums={  # OpenSLR's md5sum.txt, which mlx-data verifies too; OpenSLR publishes no other kind
        "train-clean-100": "md5:6df668d8f5f33e70876bfa33862ad02b",
        "train-clean-360": "md5:382eb3e64394b3da6a559f864339b22c",
        "train-other-500": "md5:a37a8e9f4fe79d20601639bf23d1add8",
        "dev-clean": "md5:2c1f5312914890634cc2d15783032ff3",
        "dev-other": "md5:62d3a80ad8a282b6f31b3904f0507e4f",
        "test-clean": "md5:4d373d453eb96c0691e598061bbafab7",
        "test-other": "md5:dbc0959d8bdb6d52200595cabc9995ae",
    },
)
CORPORA = {corpus.source: corpus for corpus in (LIBRITTS, LIBRITTS_R)}


def corpus_folder(corpus: Corpus, root: Path) -> Path:
    """Where the corpus is or is to be: ``root``, or the corpus's own folder in it."""
    root = root.absolute()
    inner = root / corpus.folder
    if inner.is_dir():
        return inner
    refuse_other(corpus, root.name, root)
    is_corpus = root.name == corpus.folder or any((root / split).is_dir() for split in SPLITS)
    return root if is_corpus else inner


def refuse_other(corpus: Corpus, folder: str, root: Path) -> None:
    """Raise PrepareError if ``folder`` is the name of another corpus: its manifests would bear the wrong source."""
    for other in CORPORA.values():
        if other is not corpus and other.folder == folder:
            raise PrepareError(f"{root} holds {other.title}, not {corpus.title}: pass --corpus {other.source}")


def fetch_splits(corpus: Corpus, splits: Sequence[str], root: Path, mirror: str) -> None:
    """Download, verify and unpack the splits that are not there yet; the archives are kept beside the splits."""
    base = corpus_folder(corpus, root)
    base.mkdir(parents=True, exist_ok=True)
    for split in splits:
        if (base / split).is_dir():
            print(f"{base / split} is there already")
            continue
        archive = base / corpus.archives[split]
        url = f"{mirror.rstrip('/')}/{corpus.resource}/{archive.name}"
        fetch(url, archive, corpus.checksums[split])
        unpack(archive, corpus.folder, base)
        if not (base / split).is_dir():
            raise PrepareError(f"{archive} does not hold {split}")


def find_splits(corpus: Corpus, root: Path, splits: Sequence[str] | None) -> dict[str, Path]:
    """The folders of these splits, or of those present."""
    if not root.is_dir():
        raise PrepareError(f"no such folder: {root}")
    base = corpus_folder(corpus, root)
    present = {split: base / split for split in SPLITS if (base / split).is_dir()}
    if not present:
        for inner in root.iterdir():
            refuse_other(corpus, inner.name, root)
        raise PrepareError(
            f"no split of {corpus.title} found: looked for {', '.join(SPLITS)} in {root} and {root / corpus.folder}"
        )
    missing = [split for split in splits or [] if split not in present]
    if missing:
        raise PrepareError(f"no {', '.join(missing)} in {base}: pass --download to fetch what is missing")
    return {split: present[split] for split in splits or present}


def read_excluded(files: Sequence[Path]) -> set[str]:
    """Utterance ids, one per line, bare or as paths ("./dev-clean/84/121123/84_121123_000009_000008.wav")."""
    lines: list[str] = []
    for file in files:
        lines += (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    return {line.rsplit("/", 1)[-1].removesuffix(".wav") for line in lines if line and not line.startswith("#")}


@dataclass(frozen=True)
class Scan:
    """What was found in one split."""

    good: list[Record]
    bad: list[BadFile]
    excluded: int

    @property
    def hours(self) -> float:
        return sum(record.duration for record in self.good) / 3600

    @property
    def speakers(self) -> int:
        return len({speaker_of(record) for record in self.good})


def speaker_of(record: Record) -> str:
    """The speaker, from the file's name."""
    return record.id.partition("_")[0]


def text_of(path: Path) -> str:
    """What is said, from the file beside the audio, or "" where there is none."""
    try:
        return path.with_suffix(".normalized.txt").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def scan_split(folder: Path, excluded: set[str], limit: int | None, min_seconds: float) -> Scan:
    """Look at every audio file of a split, in sorted order."""
    paths = sorted(folder.glob("*/*/*.wav"), key=lambda path: path.as_posix())
    misplaced = [path for path in paths if not _named_as_placed(path)]
    wrong = [BadFile(path, "not named SPEAKER_CHAPTER_PARAGRAPH_UTTERANCE.wav after its folders") for path in misplaced]
    unusable = excluded.union(path.stem for path in misplaced)
    paths_left = [path for path in paths if path.stem not in unusable]
    good, bad = probe(paths_left, min_seconds, limit, label=folder.name)
    return Scan(good, wrong + bad, len({path.stem for path in paths} & excluded))


def _named_as_placed(path: Path) -> bool:
    match = NAME.fullmatch(path.stem)
    return match is not None and (match["speaker"], match["chapter"]) == (path.parts[-3], path.parts[-2])


def records(corpus: Corpus, split: str, good: Sequence[Record]) -> list[Record]:
    """The manifest records of a split; ``train-clean-100`` is of the split "train"."""
    return [
        replace(
            record,
            speaker=speaker_of(record),
            split=split.partition("-")[0],
            language="en",
            source=corpus.source,
            licence="CC-BY-4.0",
            text=text_of(Path(record.path)),
        )
        for record in good
    ]


def print_validation(scans: Mapping[str, Scan]) -> None:
    """What was found, next to what LibriTTS holds; LibriTTS-R has the same utterances but for a few."""
    print(f"{'split':16}{'files':>8}{'hours':>8}{'speakers':>10}{'skipped':>9}{'excluded':>10}   LibriTTS as published")
    for split, scan in scans.items():
        row = f"{split:16}{len(scan.good):8}{scan.hours:8.2f}{scan.speakers:10}{len(scan.bad):9}{scan.excluded:10}"
        known = SPLITS[split]
        print(f"{row}   {known.files} files, {known.hours} h, {known.speakers} speakers")
    rates = {record.sample_rate for scan in scans.values() for record in scan.good} - {SAMPLE_RATE}
    if rates:
        print(f"note: there are files of {', '.join(map(str, sorted(rates)))} Hz, the corpus has {SAMPLE_RATE} Hz")


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    corpus = CORPORA[args.corpus]
    excluded = read_excluded(args.exclude)
    if args.download:
        fetch_splits(corpus, args.splits, args.root, args.mirror)
    scans = {}
    for split, folder in find_splits(corpus, args.root, args.splits).items():
        scan = scan_split(folder, excluded, args.limit, args.min_seconds)
        report_bad(scan.bad, args.out / f"{split}.skipped.tsv")
        if not scan.good:
            raise PrepareError(f"no usable file in {folder} ({len(scan.bad)} skipped, {scan.excluded} excluded)")
        write_manifest(args.out / f"{split}.jsonl", records(corpus, split, scan.good))
        scans[split] = scan
    print_validation(scans)
    print(f"manifests of {corpus.title} written to {args.out}: {', '.join(f'{split}.jsonl' for split in scans)}")
    unused = len(excluded) - sum(scan.excluded for scan in scans.values())
    if unused:
        print(f"note: {unused} of {len(excluded)} utterances to exclude are not in these splits")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--root", required=True, type=Path, help="the corpus, or the folder that holds it")
    parser.add_argument("--out", required=True, type=Path, help="folder for the manifests")
    parser.add_argument("--corpus", choices=sorted(CORPORA), default=LIBRITTS.source, help="default: %(default)s")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), metavar="SPLIT", help="default: those present")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N files of each split, evenly spread")
    parser.add_argument("--min-seconds", type=float, default=0.5, help="skip shorter files; default: %(default)s")
    parser.add_argument("--exclude", nargs="+", type=Path, default=[], metavar="FILE", help="lists of ids to leave out")
    parser.add_argument("--download", action="store_true", help="fetch the --splits that are not there")
    parser.add_argument("--mirror", default=MIRROR, metavar="URL", help="of OpenSLR's resources; default: %(default)s")
    args = parser.parse_args(argv)
    if args.download and not args.splits:
        parser.error("--download needs --splits: all seven archives together are more than 80 GB")
    if args.mirror != MIRROR and not args.download:
        parser.error("--mirror goes with --download")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return run_command("prepare.py", lambda: prepare(args), "the same command goes on where this one was")


if __name__ == "__main__":
    sys.exit(main())
