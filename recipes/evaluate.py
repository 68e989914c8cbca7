"""Measure a model on a manifest: PESQ, STOI, SI-SDR, mel distance and codebook health at several bitrates.

    python recipes/evaluate.py --manifest manifests/dev.jsonl
    python recipes/evaluate.py --manifest manifests/dev.jsonl --model runs/mine/export --num-quantizers 8 4 --out mine.json

A value that a metric cannot give (an utterance too short for PESQ, say) is counted and left out of the mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from codec.audio import AudioError, AudioReader
from codec.files import written_whole
from codec.health import CodebookCounter
from codec.manifest import ManifestError, Record, read_manifest
from codec.metrics import METRICS, MetricError, Waveform
from codec.model import Codec
from codec.pretrained import DEFAULT_MODEL, ModelError


def measure(
    codec: Codec, records: Sequence[Record], stages: Sequence[int]
) -> tuple[list[dict[str, Any]], CodebookCounter]:
    """One row an utterance and a number of quantizers, and the codes counted over all utterances."""
    counter = CodebookCounter(codec.num_quantizers, codec.codebook_size)
    rows = []
    for record in tqdm(records, unit=" utt", disable=None):
        with AudioReader(record.path) as reader:
            reference = np.concatenate(list(reader.blocks()))
            rate = reader.sample_rate
        codes = codec.encode(torch.from_numpy(reference), rate, max(stages))
        counter.add(codes)
        for count in stages:
            estimate = decode_at(codec, codes[:, :count], rate, len(reference))
            rows.append({"id": record.id, "num_quantizers": count} | score(reference, estimate, rate))
    return rows, counter


def decode_at(codec: Codec, codes: torch.Tensor, sample_rate: int, num_samples: int) -> Waveform:
    """Decoded waveform ``[T]`` at the original's sample rate and length."""
    from codec.audio import resample

    return resample(codec.decode(codes)[0, 0].cpu().numpy(), codec.sample_rate, sample_rate)[:num_samples]


def score(reference: Waveform, estimate: Waveform, sample_rate: int) -> dict[str, float | None]:
    """Every metric of a pair; None where it has no value."""
    values: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            values[name] = metric(reference, estimate, sample_rate)
        except MetricError as error:
            values[name] = None
            tqdm.write(f"not counted: {error}", file=sys.stderr)
    return values


def summarise(codec: Codec, rows: list[dict[str, Any]], counter: CodebookCounter) -> dict[str, Any]:
    """Means over utterances for each number of quantizers, with how many values each mean rests on."""
    levels = []
    for count in dict.fromkeys(row["num_quantizers"] for row in rows):
        chosen = [row for row in rows if row["num_quantizers"] == count]
        level: dict[str, Any] = {"num_quantizers": count, "kbps": codec.bitrate / codec.num_quantizers * count / 1000}
        for name in METRICS:
            values = [row[name] for row in chosen if row[name] is not None]
            level[name] = float(np.mean(values)) if values else None
            level[f"{name}_failed"] = len(chosen) - len(values)
        levels.append(level | {"utterances": len(chosen)})
    return {"model": codec.name, "fingerprint": codec.fingerprint, "levels": levels,
            "codebooks": [asdict(stage) for stage in counter.stages()]}  # fmt: skip


def print_summary(summary: dict[str, Any]) -> None:
    """The summary as two tables."""
    print(
        f"{'quantizers':>10} {'kbit/s':>7} "
        + " ".join(f"{name:>8}" for name in METRICS)
        + f" {'utts':>5} {'failed':>7}"
    )
    for level in summary["levels"]:
        cells = " ".join(f"{level[name]:8.3f}" if level[name] is not None else f"{'-':>8}" for name in METRICS)
        failed = sum(level[f"{name}_failed"] for name in METRICS)
        print(f"{level['num_quantizers']:>10} {level['kbps']:>7.3g} {cells} {level['utterances']:>5} {failed:>7}")
    print(f"\n{'stage':>10} {'frames':>7} {'usage':>8} {'perplex.':>8} {'unseen':>8}")
    for index, stage in enumerate(summary["codebooks"], start=1):
        print(
            f"{index:>10} {stage['frames']:>7} {stage['usage']:8.3f} {stage['perplexity']:8.1f} {stage['unseen_mass']:8.4f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="shipped model, model folder or hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-quantizers", type=int, nargs="+", metavar="K", help="default: all, and halves of it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth utterance")
    parser.add_argument("--out", type=Path, help="write summary and rows as JSON")
    args = parser.parse_args()
    try:
        codec = Codec.from_pretrained(args.model, args.device)
        records = read_manifest(args.manifest)[:: args.every]
        if not records:
            raise ManifestError(f"{args.manifest} holds no utterances")
        halves = [codec.num_quantizers >> shift for shift in range(codec.num_quantizers.bit_length())]
        rows, counter = measure(codec, records, args.num_quantizers or halves)
    except (ModelError, ManifestError, AudioError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = summarise(codec, rows, counter)
    print_summary(summary)
    if args.out:
        with written_whole(args.out) as temporary:
            temporary.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
