"""Unpack tar shards of speech (WebDataset layout: KEY.<audio> beside KEY.json) into WAV files and a manifest.

    python data/shards/prepare.py SHARD.tar [SHARD.tar ...] --out corpora/speech

Each utterance becomes ``OUT/audio/KEY.wav`` (16-bit, at its own sample rate: random segments are then read without
decoding whole files) and a line of ``OUT/<split>.jsonl``. Utterances already unpacked are kept, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile
from tqdm import tqdm

from codec.errors import one_line
from codec.files import written_whole
from codec.manifest import Record, summary, write_manifest
from codec.scan import AUDIO_SUFFIXES, PrepareError


def utterances(shard: Path) -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """Yield (key, audio bytes, metadata) of one shard; members of one key stand next to each other."""
    key, audio, meta = "", None, None
    with tarfile.open(shard) as tar:
        for member in tar:
            if not member.isfile():
                continue
            name = Path(member.name)
            if name.stem != key:
                key, audio, meta = name.stem, None, None
            content = tar.extractfile(member)
            assert content is not None  # isfile() holds
            if name.suffix == ".json":
                meta = json.load(content)
            elif name.suffix in AUDIO_SUFFIXES:
                audio = content.read()
            if audio is not None and meta is not None:
                yield key, audio, meta
                audio = meta = None


def unpack(key: str, audio: bytes, meta: dict[str, object], folder: Path) -> Record:
    """Decode one utterance to ``folder/KEY.wav`` unless it is there already, and describe it."""
    path = folder / f"{key}.wav"
    if not path.exists():
        samples, sample_rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
        with written_whole(path) as temporary:
            soundfile.write(temporary, samples.mean(axis=1), sample_rate, subtype="PCM_16")
    info = soundfile.info(path)
    known = {k: v for k, v in meta.items() if k in Record.__dataclass_fields__}
    known |= {"id": key, "path": str(path), "num_samples": info.frames, "sample_rate": info.samplerate}
    return Record(**known)  # type: ignore[arg-type]


def unpack_shards(shards: Sequence[Path], folder: Path, limit: int | None) -> tuple[list[Record], int]:
    """The records of all shards, and how many utterances could not be used.

    Raises:
        PrepareError: a shard that is missing or no tar file.
    """
    records: list[Record] = []
    bad = 0
    for shard in shards:
        try:
            for key, audio, meta in tqdm(utterances(shard), desc=shard.name, unit=" utt", disable=None):
                if limit is not None and len(records) >= limit:
                    return records, bad
                try:
                    records.append(unpack(key, audio, meta, folder))
                except (soundfile.LibsndfileError, TypeError) as error:  # no audio, or metadata that is no record
                    bad += 1
                    print(f"skipped {shard.name}:{key}: {error}", file=sys.stderr)
        except OSError as error:
            raise PrepareError(one_line(error) if error.filename else f"{shard}: {one_line(error)}") from None
        except (tarfile.TarError, EOFError, zlib.error) as error:
            reason = (str(error).splitlines() or ["it ends early"])[0].rstrip(":")
            raise PrepareError(f"{shard} is no tar file, or a damaged one ({reason}); fetch it again") from None
        except ValueError as error:  # no JSON, or no text
            raise PrepareError(f"{shard}: the metadata of an utterance cannot be read: {one_line(error)}") from None
    return records, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", type=Path, metavar="SHARD.tar")
    parser.add_argument("--out", required=True, type=Path, help="folder for audio/ and the manifests")
    parser.add_argument("--limit", type=int, help="stop after this many utterances")
    args = parser.parse_args()

    folder = args.out / "audio"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records, bad = unpack_shards(args.shards, folder, args.limit)
        if not records:
            raise PrepareError("no utterance found: are there KEY.opus (flac, wav, ...) beside KEY.json in the shards?")
        for split in sorted({record.split for record in records}):
            chosen = [record for record in records if record.split == split]
            write_manifest(args.out / f"{split}.jsonl", chosen)
            print(f"{args.out / split}.jsonl: {summary(chosen)}")
    except (PrepareError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"{bad} utterances skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
