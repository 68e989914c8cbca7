"""Draw the curves of one or more training runs from their metrics.jsonl.

python recipes/plot.py runs/default --out curves.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

CURVES = ["loss/mel", "loss/stft", "loss/commitment", "valid/mel", "valid/stft", "learning_rate"]


def read_curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--curves", nargs="+", default=CURVES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args()
    missing = [str(run) for run in args.runs if not (run / "metrics.jsonl").is_file()]
    if missing:
        print(f"error: no metrics.jsonl in {', '.join(missing)}", file=sys.stderr)
        return 1
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(args.curves) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False)
    for axis, name in zip(axes.flat, args.curves, strict=False):
        for run in args.runs:
            axis.plot(*read_curve(run, name), label=run.name, linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
