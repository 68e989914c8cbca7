"""Draw the curves of one or more training runs from their metrics.jsonl.

python recipes/plot.py runs/default --out curves.png
python recipes/plot.py runs/one runs/two --curves valid/mel "codebook/usage_*" --out compared.png
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import fnmatch
import sys
from pathlib import Path

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.files import save_picture
from codec.training.tracking import read_scalars

CURVES = ["loss/mel", "loss/stft", "loss/commitment", "valid/mel", "valid/stft", "learning_rate"]
CURVES += ["codebook/usage_*", "codebook/perplexity_*", "latents/effective_dimension"]


def read_curves(run: Path, pattern: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of the scalars of a run that match a pattern, by name."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_scalars(run / "metrics.jsonl"):
        for name in fnmatch.filter(line, pattern):
            steps, values = curves.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(line[name])
    return curves


def plot(args: argparse.Namespace) -> int:
    """Draw one picture with a panel per pattern; a run keeps its color, the curves of one pattern grow paler."""
    from matplotlib.figure import Figure

    if missing := [str(run) for run in args.runs if not (run / "metrics.jsonl").is_file()]:
        raise CodecError(f"no metrics.jsonl in {', '.join(missing)}")
    panels = {pattern: [read_curves(run, pattern) for run in args.runs] for pattern in args.curves or CURVES}
    for pattern in [pattern for pattern, curves_of_runs in panels.items() if not any(curves_of_runs)]:
        if args.curves:
            raise CodecError(f"no curve is named {pattern} in {', '.join(map(str, args.runs))}")
        del panels[pattern]
    if not panels:
        raise CodecError(f"no curve yet in {', '.join(map(str, args.runs))}")
    rows = -(-len(panels) // 3)
    figure = Figure((13.5, 3 * rows), layout="tight")
    for number, (pattern, curves_of_runs) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(rows, 3, number)
        for index, (run, curves) in enumerate(zip(args.runs, curves_of_runs, strict=True)):
            axis.plot([], [], color=f"C{index % 10}", label=run.resolve().name)  # for the legend
            for stage, points in enumerate(curves.values()):
                marker, paler = "." if len(points[0]) == 1 else None, 1 - 0.8 * stage / len(curves)
                axis.plot(*points, marker=marker, linewidth=1, color=f"C{index % 10}", alpha=paler)
        axis.set_title(pattern)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    save_picture(figure, args.out, args.force)
    return EXIT_OK


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    curves = "scalars of the run; NAME_* draws all of that kind (default: the usual ones, as far as the runs have them)"
    parser.add_argument("--curves", nargs="+", metavar="NAME", help=curves)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    parser.add_argument("--force", action="store_true", help="overwrite an existing picture")
    args = parser.parse_args()
    return run_command("plot.py", lambda: plot(args))


if __name__ == "__main__":
    sys.exit(main())
