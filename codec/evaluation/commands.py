"""The commands codec-evaluate and codec-compare."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from codec.errors import CodecError, Parser, positive, run_command, say
from codec.evaluation.results import Result, Results, write_rows
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
HIDDEN = {"lsd", "kbps_entropy", "rtf"}  # metrics that the terminal has no room for, unless they were asked for
COSTLY = "pitch, DistillMOS and token stability take most of the time; for a quick look: --metrics pesq stoi mel "
COSTLY += "--no-stability"


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """codec-evaluate: measure systems on a manifest and write a report. Returns the exit code."""
    about = "Measure a model, folders of reconstructions and classical codecs on the same utterances."
    folder = "a folder of decoded files, named by the utterances' ids or placed like their files, with their bitrate to plot "
    folder += "them at"
    metrics = "default: all whose packages are here; PESQ, STOI and pitch: extra eval"
    parser = Parser("codec-evaluate", description=about, epilog=EVALUATE_EXAMPLES)
    add = parser.add_argument
    add("--manifest", required=True, type=Path, help="JSONL of the utterances (see data/README.md)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the report")
    add("--model", default=ALIAS, help="shipped model, model folder, hub id or none (default: the shipped one)")
    add("--num-quantizers", type=int, nargs="+", metavar="K", help="default: all the model has, and halves of it")
    add("--reconstructions", action="append", default=[], metavar="NAME[@KBPS]=DIR", help=f"{folder}; may be repeated")
    add("--baselines", nargs="*", choices=["opus", "codec2"], default=["opus", "codec2"], help="without a name: none")
    add("--metrics", nargs="+", metavar="NAME", help=metrics)
    add("--no-stability", action="store_true", help="do not measure how codes stand changes of the input")
    add("--no-normalize", action="store_true", help="encode as codec-encode --no-normalize and live pipes do")
    add("--refine-steps", type=positive, default=0, metavar="N", help="encode as codec-encode --refine-steps N does")
    add("--every", type=int, default=1, metavar="N", help="only every Nth utterance")
    add("--examples", type=int, default=5, metavar="N", help="utterances to listen to beside the worst ten")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--device", default="cpu", help="of the model (default: cpu)")
    add("--force", action="store_true", help="throw away another evaluation in DIR")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _evaluate(args), "the same command goes on from here")


def compare_main(argv: Sequence[str] | None = None) -> int:
    """codec-compare: paired differences between two reports. Returns the exit code."""
    about = "Paired differences B - A between two reports on the same utterances, with 95 % intervals."
    parser = Parser("codec-compare", description=about, epilog=COMPARE_EXAMPLES)
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="folder of a report")
    add("b", type=Path, metavar="B", help="folder of the other; may be the same with --pair")
    ids = "systems of A and B (default: those of the same id)"
    add("--pair", action="append", default=[], metavar="ID:ID", help=ids)
    add("--metrics", nargs="+", metavar="NAME", help="default: all that both have, but the speed")
    add("--json", action="store_true", help="JSON instead of a table")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _compare(args))


def _evaluate(args: argparse.Namespace) -> int:
    from codec.corpus.manifest import ManifestError, read_manifest
    from codec.evaluation.measure import Plan
    from codec.evaluation.page.report import write_report
    from codec.evaluation.runner import evaluate, prepare_folder, present_metrics
    from codec.evaluation.summary import summarize
    from codec.evaluation.systems import present_programs
    from codec.workers import available_cores

    if args.every < 1 or args.examples < 0 or (args.workers is not None and args.workers < 1):
        raise CodecError("--every and --workers must be at least 1, --examples not negative")
    records = read_manifest(args.manifest)[:: args.every]
    if not records:
        raise ManifestError(f"{args.manifest} holds no utterances")
    model = "" if args.model == "none" else args.model
    if (args.num_quantizers or args.refine_steps) and not model:
        raise CodecError("--num-quantizers and --refine-steps go with a model")
    metrics, absent = present_metrics(args.metrics)
    classical, missing = present_programs(list(dict.fromkeys(args.baselines)))
    plan = Plan(
        model=model,
        num_quantizers=tuple(args.num_quantizers or ()),
        folders=_folders(args.reconstructions),
        classical=classical,
        metrics=metrics,
        stability=bool(model) and not args.no_stability,
        normalize=not args.no_normalize,
        refine_steps=args.refine_steps,
        device=args.device,
        out=args.out,
    )
    for folder, _ in plan.folders.values():
        if Path(folder) in Path(os.path.realpath(args.out)).parents:
            raise CodecError(f"--out {args.out} lies in {folder}, whose files are measured; choose a folder elsewhere")
    for item in (*absent, *missing):
        say(f"absent: {item.name} ({item.reason})")
    if plan.stability or not args.metrics:
        say(COSTLY)
    workers = min(args.workers or available_cores(), len(records))
    prepare_folder(plan, records, args.force)
    measured, absent = evaluate(plan, records, workers, args.examples), [*absent, *missing]
    say("summing up ...")
    results, rows = summarize(plan, absent, records, measured, args.manifest, workers, args.examples)
    results.write(args.out)
    write_rows(args.out, rows)
    page = write_report(results, rows, args.out)
    print(f"{table(results, () if args.metrics else HIDDEN)}\n\nreport: {page}")
    if not any(result.n for system in results.systems for result in system.results.values()):
        raise CodecError(f"no metric has a value for any of the {len(records)} utterances; see {page}")
    return 0


def _folders(texts: Sequence[str]) -> dict[str, tuple[str, float | None]]:
    folders: dict[str, tuple[str, float | None]] = {}
    for text in texts:
        parts = re.fullmatch(r"([^=@]+)(?:@(\d{1,6}(?:\.\d{1,6})?))?=(.+)", text)
        if not parts or parts[1] in folders:
            raise CodecError(f"--reconstructions takes NAME=DIR or NAME@KBPS=DIR, every NAME once, not {text!r}")
        folders[parts[1]] = os.path.realpath(parts[3]), float(parts[2]) if parts[2] else None
    return folders


def table(results: Results, hidden: Collection[str]) -> str:
    """The main results as text: mean and half the interval's width, and how many utterances failed."""
    metrics = {name: metric for name, metric in results.metrics.items() if name not in hidden}
    rows = [["system", "nominal kbit/s", *(metric.label for metric in metrics.values()), "failed"]]
    for system in results.systems:
        found = [system.results.get(name, Result(None, None, None, 0)) for name in metrics]
        cells = [result.text(f".{metric.digits}f") for result, metric in zip(found, metrics.values(), strict=True)]
        failed = max((result.failed for result in found), default=0)
        rows.append([system.name, "-" if system.kbps is None else f"{system.kbps:g}", *cells, str(failed)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [layout.format(*row) for row in rows]
    level, unit = results.interval.level, results.interval.unit
    about = f"means over the utterances that did not fail, of {results.manifest.utterances}, ± half of the"
    return "\n".join([*lines, f"{about} {100 * level:g} % interval (bootstrap over {unit}, where there are enough)"])


def _compare(args: argparse.Namespace) -> int:
    from codec.evaluation.compare import Report, compare, unlike

    pairs = [(first, second) for first, _, second in (text.partition(":") for text in args.pair)]
    if not all(map(all, pairs)):
        raise CodecError(f"--pair takes ID:ID, not {' '.join(args.pair)}")
    a, b = Report(args.a), Report(args.b)
    differences = compare(a, b, pairs)
    for note in unlike(a, b):
        say(f"note: {note}")
    known = {difference.metric for difference in differences}
    if missing := [name for name in args.metrics or () if name not in known]:
        raise CodecError(f"--metrics {missing[0]}: not compared; there are {', '.join(sorted(known)) or 'none'}")
    if not known:
        raise CodecError("no metric has values of the same files for both systems; each report says why")
    differences = [each for each in differences if each.metric in (args.metrics or known)]
    if args.json:
        print(json.dumps([asdict(difference) | {"clear": difference.clear} for difference in differences], indent=1))
        return 0
    for (system_a, system_b), group in groupby(differences, lambda each: (each.system_a, each.system_b)):
        print(f"{system_a} in A, {system_b} in B: metric, A, B, B - A with its 95 % interval; * where it leaves out 0")
        for difference in group:
            print(difference.text(a.results.metrics[difference.metric]))
    return 0
