"""Codes of a whole corpus, as Parquet shards, on Ray Data: on this machine, or on a cluster.

    python recipes/tokenize/run.py corpora/speech/train.jsonl --out tokens/speech
    python recipes/tokenize/run.py shard-0.tar shard-1.tar --out tokens/shards --workers 8
    python recipes/tokenize/run.py /shared/audio --out /shared/tokens --address auto --device cuda --workers 16

Each OUT/codes-NNNNN.parquet holds the codes of --shard-size utterances, in the order of the input, and is written whole or
not at all; the same command again goes on with those that are missing. What could not be read is named in OUT/skipped.tsv.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import hashlib
import json
import logging
import os
import pickle
import signal
import sys
import tarfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from codec.audio import resample
from codec.cli.jobs import files_below
from codec.corpus.manifest import ManifestError, Record, parse_record, read_manifest
from codec.corpus.scan import AUDIO_SUFFIXES, BadFile, PrepareError, read_record, reason_of, report_bad
from codec.corpus.shards import key_of, walk
from codec.errors import EXIT_FAILURE, EXIT_OK, CodecError, Parser, one_line, positive, run_command, say
from codec.files import atomic_write
from codec.level import LEVEL_DB, check_peak, gain_of
from codec.model import Codec
from codec.pretrained import DEFAULT_MODEL

TARS = {".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz"}
SECONDS_AT_ONCE = 400  # of audio on a GPU: 30,000 frames of the shipped models
READ_AHEAD = 4  # times as much is read before it is sorted by length


def find_records(inputs: Sequence[Path]) -> list[Record]:
    """The utterances of manifests, folders and tar shards, in a fixed order; lengths are known of manifests alone.

    Raises:
        CodecError: an input that cannot be used, no audio at all, or two utterances with one id.
    """
    records: list[Record] = []
    for path in map(Path.absolute, inputs):
        read = in_folder if path.is_dir() else in_tar if path.suffix.lower() in TARS else read_manifest
        records += read(path)
    for name, times in Counter(record.id for record in records).items():
        if times > 1:
            raise PrepareError(f"id {name!r} stands {times} times in the input; leave one out (in tars: up to a dot)")
    if not records:
        raise PrepareError("no audio in the input")
    return records


def in_folder(root: Path) -> list[Record]:
    """The audio below a folder, whose subfolders are taken for the speakers, as ``data/folder/prepare.py`` does."""
    names = [path.relative_to(root) for path in files_below(root, AUDIO_SUFFIXES)]
    speakers = [name.parts[0] if len(name.parts) > 1 else "" for name in names]
    return [Record(n.as_posix(), str(root / n), 0, 0, speaker) for n, speaker in zip(names, speakers, strict=True)]


def in_tar(path: Path) -> list[Record]:
    """The audio of a tar shard, KEY.opus (flac, wav, ...), where it lies; its speaker from KEY.json if there is one.

    Raises:
        PrepareError: a KEY.json that is no JSON object; and as :func:`walk`.
    """
    records, speakers, facts = [], {}, {"num_samples": 1, "sample_rate": 1, "offset": 0, "num_bytes": 0}

    def take(archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        key, suffix = key_of(member.name), PurePosixPath(member.name).suffix.lower()
        if suffix == ".json" and (file := archive.extractfile(member)):
            try:
                speakers[key] = parse_record(file.read(), **facts, id=key, path=key).speaker
            except ManifestError as error:
                raise PrepareError(f"{path}: {member.name}: {error}; pack it again") from None
        elif suffix in AUDIO_SUFFIXES:
            num_bytes = member.size or 1  # 0: all of the tar
            records.append(Record(key, str(path), 0, 0, offset=member.offset_data, num_bytes=num_bytes))

    deque(walk(path, True, take), 0)
    if silent := speakers.keys() - {record.id for record in records}:
        say(f"{path}: without audio of a kind that is read, and passed over: {len(silent)}, the first {min(silent)}")
    return [replace(record, speaker=speakers.get(record.id, "")) for record in records]


class Tokenizer:
    """A worker of Ray Data: it writes shards to ``out``, in each the ``facts`` of the model and what is true of it alone.

    Attributes:
        at_once: seconds of audio, with their padding, that are computed together; 0 computes each utterance by itself.
    """

    def __init__(self, model: str, device: str, out: Path, facts: dict[str, Any]) -> None:
        torch.set_num_threads(1)  # Ray has a worker per core
        self.codec, self.out, self.facts = Codec.from_pretrained(model, device), out, facts
        self.refine_steps: int = facts.get("refine_steps", 0)
        self.at_once = 0 if device == "cpu" or self.refine_steps else SECONDS_AT_ONCE
        assert self.codec.fingerprint == facts["fingerprint"], "the workers' model is another one"

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Write the shard ``{"name", "records"}``; returns its name, its seconds of audio, and why it was not written."""
        import pyarrow as pa
        from pyarrow import parquet

        kinds = [("id", pa.string()), ("speaker", pa.string()), ("duration", pa.float64()), ("num_samples", pa.int64())]
        kinds += [("gain_db", pa.float64()), ("num_quantizers", pa.int32()), ("codes", pa.list_(pa.list_(pa.int32())))]
        skipped: list[tuple[str, str]] = []
        rows = list(self.rows(pickle.loads(shard["records"]), skipped))
        seconds = sum(row["duration"] for row in rows)
        note = json.dumps(self.facts | {"seconds": seconds, "skipped": skipped})
        table, why = pa.Table.from_pylist(rows, pa.schema(kinds, {"codec": note})), ""
        try:
            with atomic_write(self.out / shard["name"]) as temporary:
                parquet.write_table(table, temporary, compression="zstd")
        except OSError as error:  # of a full disk; Ray would show a traceback of its own
            why = one_line(error)
        return {"name": shard["name"], "seconds": seconds, "error": why}

    def rows(self, records: list[Record], skipped: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """What the shard says of each utterance, in their order; what cannot be read is named in ``skipped``."""
        rows, waveforms, count = [], [], self.facts["num_quantizers"]
        for record in records:
            try:
                samples, rate = read_record(record)
                gain_db = gain_of([samples], rate)
                waveform = resample(samples, rate, self.codec.sample_rate)
                check_peak(waveform)
            except (CodecError, FileNotFoundError, PermissionError, IsADirectoryError) as error:  # not of the machine
                place = f"{record.path}:{record.id}" if record.num_bytes else record.path
                skipped.append((place, reason_of(error, record.path)))
                continue
            facts = {"duration": len(samples) / rate, "num_samples": len(waveform), "num_quantizers": count}
            rows.append({"id": record.id, "speaker": record.speaker, "gain_db": gain_db} | facts)
            waveforms.append(torch.from_numpy(waveform))
            if sum(map(len, waveforms)) >= READ_AHEAD * self.at_once * self.codec.sample_rate:
                yield from self.encoded(rows, waveforms)
                rows, waveforms = [], []
        yield from self.encoded(rows, waveforms)

    def encoded(self, rows: list[dict[str, Any]], waveforms: list[Tensor]) -> list[dict[str, Any]]:
        """The rows with their codes: those of utterances of similar lengths are computed together."""
        rate, count = self.codec.sample_rate, self.facts["num_quantizers"]
        for batch in batches(list(map(len, waveforms)), self.at_once * rate):
            lengths = [len(waveforms[i]) for i in batch]
            padded = nn.utils.rnn.pad_sequence([waveforms[i] for i in batch], batch_first=True)[:, None]
            gains = [rows[i]["gain_db"] for i in batch]
            codes = self.codec.encode(padded, rate, count, lengths, gains, not self.at_once, self.refine_steps)
            for i, length, own in zip(batch, lengths, codes.cpu().numpy(), strict=True):
                rows[i]["codes"] = list(own[:, : self.codec.num_frames(length)])
        return rows


def batches(lengths: list[int], most: int) -> Iterator[list[int]]:
    """The places of ``lengths``, similar ones together, in batches of at most ``most`` with their padding, or of one.

    >>> list(batches([50, 11, 10, 49], 100))
    [[2, 1], [3, 0]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[place] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def facts_of(shard: Path) -> dict[str, Any]:
    """What a shard says of itself."""
    from pyarrow import parquet

    try:
        return dict(json.loads(parquet.read_schema(shard).metadata[b"codec"]))
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are of the first two kinds
        raise PrepareError(f"{shard} is no shard, or a damaged one; remove it ({one_line(error)})") from None


def work(shards: list[dict[str, Any]], args: argparse.Namespace, *settings: object) -> Iterator[dict[str, Any]]:
    """What the workers give for each of the shards, on a cluster or on one that is started here."""
    import ray.data

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler, _ = signal.getsignal(signal.SIGTERM), ray.init(args.address, logging_level="ERROR")
    signal.signal(signal.SIGTERM, handler)  # ray's own would abort
    logging.getLogger("ray.data").setLevel("ERROR")
    cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    if args.device == "cuda" and not gpus:
        raise PrepareError("Ray finds no GPU; take --device cpu")
    workers = min(args.workers or (gpus if args.device == "cuda" else cpus), cpus, len(shards))
    share = 1 / -(-workers // gpus) if args.device == "cuda" else 0
    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)  # no queues: none idles at the end
    tasks = ray.data.from_items(shards, override_num_blocks=len(shards))
    yield from tasks.map(Tokenizer, fn_constructor_args=settings, compute=pool, num_cpus=1, num_gpus=share).iter_rows()


def tokenize(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    codec, records, size = Codec.from_pretrained(args.model), find_records(args.inputs), args.shard_size
    count, out = args.num_quantizers or codec.num_quantizers, args.out.resolve()
    codec.bitrate_of(count)  # refuses what the model does not have
    facts = {"model": codec.name, "fingerprint": codec.fingerprint, "sample_rate": codec.sample_rate}
    facts |= {"hop_length": codec.hop_length, "codebook_size": codec.codebook_size, "num_quantizers": count}
    facts |= {"level_db": LEVEL_DB}  # of active speech before the encoder
    facts |= {"refine_steps": args.refine_steps} if args.refine_steps else {}
    decides = [facts, size, [(record.id, record.path, record.offset, record.num_samples) for record in records]]
    facts["input"] = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    shards = {f"codes-{i // size:05d}.parquet": records[i : i + size] for i in range(0, len(records), size)}
    out.mkdir(parents=True, exist_ok=True)
    for half in out.glob(".codes-*.tmp.parquet"):  # of a killed run
        half.unlink()
    there = {path.name for path in out.glob("codes-*.parquet")}
    if any(facts_of(out / name)["input"] != facts["input"] for name in there):
        raise PrepareError(
            f"{out} holds shards of another input (its paths count, too), model or setting; take another --out"
        )
    missing = [{"name": name, "records": pickle.dumps(shards[name])} for name in shards if name not in there]
    say(f"{len(shards)} shards, {len(missing)} of them to do")
    start, seconds = time.monotonic(), 0.0
    for done, row in enumerate(work(missing, args, args.model, args.device, out, facts) if missing else (), start=1):
        if row["error"]:
            raise PrepareError(row["error"])
        seconds += row["seconds"]
        say(f"{row['name']}: {done} of {len(missing)}, {seconds / (time.monotonic() - start):.1f} h/h")
    every = [facts_of(out / name) for name in shards]
    bad = [BadFile(Path(path), reason) for each in every for path, reason in each["skipped"]]
    report_bad(bad, out / "skipped.tsv")
    hours, rate = sum(each["seconds"] for each in every) / 3600, seconds / (time.monotonic() - start)
    print(f"{out}: {len(records) - len(bad)} utterances, {hours:.2f} h, {len(bad)} skipped")
    print(f"this run: {seconds / 3600:.2f} h, {rate:.1f} hours of audio per hour, its start included")
    return EXIT_OK if len(bad) < len(records) else EXIT_FAILURE


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="manifests, folders or tar shards")
    parser.add_argument("--out", required=True, type=Path, help="folder for the Parquet shards")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as for codec-encode (default: %(default)s)")
    parser.add_argument("--num-quantizers", type=positive, metavar="K", help="stages to keep (default: all)")
    parser.add_argument("--refine-steps", type=positive, default=0, metavar="N", help="as for codec-encode")
    parser.add_argument("--shard-size", type=positive, default=250, help="utterances a shard (default: %(default)s)")
    parser.add_argument("--address", default="local", help="of a Ray cluster, or auto (default: one started here)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the workers compute on")
    parser.add_argument("--workers", type=positive, metavar="N", help="default: one per CPU core, or per GPU")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)  # of what is passed over
    return run_command("run.py", lambda: tokenize(args), "the same command goes on where this one was")


if __name__ == "__main__":
    sys.exit(main())
