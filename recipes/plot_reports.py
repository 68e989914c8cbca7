"""Draw what codec-evaluate measured: quality against bitrate of one report, or against training steps over several.

python recipes/plot_reports.py report --out quality.png
python recipes/plot_reports.py 0=reports/start 1400=reports/1400 2600=reports/2600 --out steps.png
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.evaluation.page.plots import log_ticks
from codec.evaluation.results import Results
from codec.files import save_picture

Point = tuple[float, float, float, float]  # x, mean, and how far its interval goes below and above


def lines_of(reports: Sequence[tuple[int, Results]], metric: str, by_step: bool) -> dict[str, list[Point]]:
    """A metric against steps, a line per bitrate of the model, or against the files' bitrate, a line per family."""
    lines: dict[str, list[Point]] = {}
    for step, results in reports:
        for system in results.systems:
            result, x = system.results.get(metric), step if by_step else system.rate or 0.0
            if result and result.mean is not None and (system.kind == "model" if by_step else system.rate):
                name = f"{system.kbps:g} kbit/s" if by_step else system.family
                low, high = (result.mean if end is None else end for end in (result.low, result.high))
                lines.setdefault(name, []).append((x, result.mean, result.mean - low, high - result.mean))
    return {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}


def plot(args: argparse.Namespace) -> int:
    """Read the reports and draw one panel per metric, in which bars are intervals; returns the exit code."""
    from matplotlib.figure import Figure

    single = len(args.reports) == 1 and "=" not in args.reports[0]
    parts = [("0", "=", args.reports[0])] if single else [text.partition("=") for text in args.reports]
    if odd := ["".join(each) for each in parts if not (each[1] and each[0].isdecimal() and len(each[0]) < 16)]:
        raise CodecError(f"several reports are given as STEP=REPORT, not {odd[0]!r}")
    reports = [(int(step), Results.read(Path(folder))) for step, _, folder in parts]
    for (_, _, folder), (_, results) in zip(parts, reports, strict=True):
        if missing := [name for name in args.metrics if name not in results.metrics]:
            raise CodecError(f"{folder} has no metric {missing[0]}; it has {', '.join(results.metrics)}")
    panels = {reports[0][1].metrics[name]: lines_of(reports, name, not single) for name in args.metrics}
    if empty := [metric.label for metric, lines in panels.items() if not lines]:
        raise CodecError(f"no {'system with a bitrate' if single else 'model'} has a value of {empty[0]}")
    figure = Figure((5 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    names = dict.fromkeys(name for lines in panels.values() for name in lines)  # each looks alike in all panels
    for axis, (metric, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, marker in zip(names, itertools.cycle("osD^v<>"), strict=False):
            x, means, *bars = zip(*lines.get(name, [(math.nan, math.nan, 0.0, 0.0)]), strict=True)
            axis.errorbar(x, means, yerr=bars, label=name, marker=marker, capsize=2)
        axis.set_title(metric.label)
        axis.set_ylabel(metric.unit)
        axis.set_xlabel("kbit/s" if single else "training step")
        if single:
            axis.set_xscale("log")
            ticks = log_ticks(*(end(point[0] for line in lines.values() for point in line) for end in (min, max)))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper")
    save_picture(figure, args.out, args.force)
    return EXIT_OK


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="one folder, or STEP=REPORT several times")
    parser.add_argument("--metrics", nargs="+", default=["pesq", "stoi"], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("quality.png"))
    parser.add_argument("--force", action="store_true", help="overwrite an existing picture")
    args = parser.parse_args()
    return run_command(parser.prog, lambda: plot(args))


if __name__ == "__main__":
    sys.exit(main())
