"""The commands codec-evaluate and codec-compare."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec import __version__
from codec.errors import CodecError, run_command
from codec.pretrained import ALIAS

EVALUATE_EXAMPLES = """examples:
  codec-evaluate --manifest dev.jsonl --out report                     the shipped model beside Opus and Codec2
  codec-evaluate --manifest dev.jsonl --model models/mine --out mine --num-quantizers 8 4
  codec-evaluate --manifest dev.jsonl --model none --reconstructions other@3.2=decoded/ --out other
  codec-compare report mine                                            paired differences on the same files
The same command again goes on with an evaluation that was stopped.
"""
COMPARE_EXAMPLES = """examples:
  codec-compare report_a report_b
  codec-compare report report --pair opus-6:model-8 --metrics pesq stoi
"""
TABLE_METRICS = ("pesq", "stoi", "estoi", "mel", "si_sdr", "vuv_f1", "f0_rmse", "kbps_file", "distillmos")


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """codec-evaluate: measure systems on a manifest and write a report. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="codec-evaluate",
        description="Measure a model, folders of reconstructions and classical codecs on the same utterances.",
        epilog=EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--manifest", required=True, type=Path, help="JSONL of the utterances (see data/README.md)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument(
        "--model",
        default=ALIAS,
        help="shipped model, model folder or hub id; none for no model (default: the shipped one)",
    )
    parser.add_argument(
        "--num-quantizers", type=int, nargs="+", metavar="K", help="default: all the model has, and halves of it"
    )
    parser.add_argument(
        "--reconstructions",
        action="append",
        default=[],
        metavar="NAME[@KBPS]=DIR",
        help="a folder of decoded files, named by the utterances' ids or like their files, with their bitrate to plot "
        "them at, in kbit/s; may be repeated",
    )
    parser.add_argument(
        "--baselines", nargs="*", choices=["opus", "codec2"], default=["opus", "codec2"], help="none: --baselines"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="default: all whose packages are here; PESQ, STOI and pitch: extra eval",
    )
    parser.add_argument(
        "--no-stability", action="store_true", help="do not measure how codes stand changes of the input"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth utterance")
    parser.add_argument(
        "--examples", type=int, default=5, metavar="N", help="utterances to listen to beside the worst ten"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--device", default="cpu", help="of the model (default: cpu)")
    parser.add_argument("--force", action="store_true", help="throw away another evaluation in DIR")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _evaluate(args), "the same command goes on from here")


def compare_main(argv: Sequence[str] | None = None) -> int:
    """codec-compare: paired differences between two reports. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="codec-compare",
        description="Paired differences B - A between two reports on the same utterances, with 95 % intervals.",
        epilog=COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("a", type=Path, metavar="A", help="folder of a report")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the other; may be the same with --pair")
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="ID:ID",
        help="systems of A and B (default: those of the same id)",
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="default: all that both have")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _compare(args))


def _evaluate(args: argparse.Namespace) -> int:
    from codec.corpus.manifest import ManifestError, read_manifest
    from codec.evaluation.page.report import write_report
    from codec.evaluation.results import read_metrics, read_rows
    from codec.evaluation.runner import evaluate, make_plan
    from codec.evaluation.summary import summarise

    if args.every < 1 or args.examples < 0 or (args.workers is not None and args.workers < 1):
        raise CodecError("--every and --workers must be at least 1, --examples not negative")
    records = read_manifest(args.manifest)[:: args.every]
    if not records:
        raise ManifestError(f"{args.manifest} holds no utterances")
    if len({record.id for record in records}) < len(records):
        raise ManifestError(f"{args.manifest} has several utterances of one id")
    folders = _folders(args.reconstructions)
    model = "" if args.model == "none" else args.model
    if not (model or folders or args.baselines):
        raise CodecError("nothing to measure: no model, no --reconstructions, no --baselines")
    plan, absent = make_plan(
        model=model,
        stages=_stages(model, args.num_quantizers),
        folders=folders,
        classical=args.baselines,
        metrics=args.metrics,
        stability=not args.no_stability,
        out=args.out,
        device=args.device,
    )
    for item in absent:
        print(f"absent: {item['name']} ({item['reason']})", file=sys.stderr)
    workers = args.workers or _cores()
    evaluate(plan, records, args.out, workers, args.force)
    print("summing up ...", file=sys.stderr, flush=True)
    summary = summarise(plan, absent, records, args.manifest, args.out, args.examples, workers)
    results = read_metrics(args.out)
    page = write_report(results, read_rows(args.out, results), args.out)
    print(table(summary))
    print(f"\nreport: {page}")
    if not any(result["n"] for system in summary["systems"] for result in system["results"].values()):
        raise CodecError(f"no metric has a value for any of the {len(records)} utterances; the report says why")
    return 0


def _stages(model: str, asked: Sequence[int] | None) -> list[int]:
    """Numbers of quantizers to measure, checked against the model's."""
    if not model:
        if asked:
            raise CodecError("--num-quantizers goes with a model")
        return []
    from codec.model import Codec

    most = Codec.from_pretrained(model).num_quantizers
    for count in asked or ():
        if not 1 <= count <= most:
            raise CodecError(f"--num-quantizers {count}: the model has 1 to {most}")
    return sorted(set(asked or [most >> shift for shift in range(most.bit_length())]), reverse=True)


def _folders(given: Sequence[str]) -> dict[str, tuple[str, float | None]]:
    folders: dict[str, tuple[str, float | None]] = {}
    for text in given:
        found = re.fullmatch(r"(?P<name>[^=@]+)(@(?P<kbps>\d+(\.\d+)?))?=(?P<folder>.+)", text)
        if not found:
            raise CodecError(f"--reconstructions takes NAME=DIR or NAME@KBPS=DIR, not {text!r}")
        name, kbps = found["name"], found["kbps"]
        if name in folders:
            raise CodecError(f"--reconstructions: {name} is given twice")
        folders[name] = str(Path(found["folder"]).resolve()), None if kbps is None else float(kbps)
    return folders


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def table(summary: dict[str, Any]) -> str:
    """The main results as text: mean and half the interval's width, and how many utterances failed."""
    names = [name for name in TABLE_METRICS if name in summary["metrics"]]
    labels = [summary["metrics"][name]["label"] for name in names]
    rows = [["system", "nominal kbit/s", *labels, "failed"]]
    for system in summary["systems"]:
        cells = [system["name"], f"{system['kbps']:g}" if system["kbps"] is not None else "-"]
        failed = 0
        for name in names:
            result = system["results"].get(name)
            cells.append(_cell(result, summary["metrics"][name]["digits"]))
            failed = max(failed, result["failed"] if result else 0)
        rows.append([*cells, str(failed)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]))
    interval = summary["interval"]
    note = f"means over the utterances that did not fail, of {summary['manifest']['utterances']}"
    if any("±" in cell for row in rows for cell in row):
        note += f", ± half of the {100 * interval['level']:g} % interval (bootstrap over {interval['unit']})"
    else:
        note += f"; no intervals, as there are too few {interval['unit']}"
    return "\n".join([*lines, note])


def _cell(result: dict[str, Any] | None, digits: int) -> str:
    if result is None or result["mean"] is None:
        return "-"
    text = f"{result['mean']:.{digits}f}"
    return text if result["low"] is None else f"{text} ±{(result['high'] - result['low']) / 2:.{digits}f}"


def _compare(args: argparse.Namespace) -> int:
    from codec.evaluation.compare import Difference, compare, plain, read_report, unlike

    pairs = []
    for text in args.pair:
        first, colon, second = text.partition(":")
        if not (first and colon and second):
            raise CodecError(f"--pair takes ID:ID, not {text!r}")
        pairs.append((first, second))
    a, b = read_report(args.a), read_report(args.b)
    found = compare(a, b, pairs)
    for note in unlike(a, b):
        print(f"note: {note}", file=sys.stderr)
    if args.metrics:
        known = {difference.metric for difference in found}
        for name in args.metrics:
            if name not in known:
                raise CodecError(f"--metrics {name}: not in both reports; there are {', '.join(sorted(known))}")
        found = [difference for difference in found if difference.metric in args.metrics]
    if args.json:
        print(json.dumps(plain(found), indent=1))
        return 0

    def line(difference: Difference) -> str:
        digits = a.summary["metrics"][difference.metric]["digits"]
        gap = difference.difference
        ends = f"[{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]" if gap.low is not None else "[no interval]"
        share = "" if difference.share_better is None else f"  B better on {100 * difference.share_better:3.0f} %"
        unpaired = f", {difference.unpaired} unpaired" if difference.unpaired else ""
        label = a.summary["metrics"][difference.metric]["label"]
        return (
            f"  {label:<22} {difference.mean_a:>9.{digits}f} {difference.mean_b:>9.{digits}f}  {gap.mean:+.{digits}f} {ends}"
            f"{' *' if difference.clear else ''}{share}  (n {gap.n}{unpaired})"
        )

    shown = None
    for difference in found:
        if (difference.system_a, difference.system_b) != shown:
            shown = (difference.system_a, difference.system_b)
            print(
                f"{shown[0]} in A, {shown[1]} in B: metric, A, B, B - A with its 95 % interval; * where it leaves out 0"
            )
        print(line(difference))
    return 0
