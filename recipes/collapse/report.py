"""Tables and plots of a study's result files.

    python recipes/collapse/report.py runs/collapse                              # into the same folder
    python recipes/collapse/report.py runs/collapse runs/collapse_longer --into recipes/collapse     # and fill its README
    python recipes/collapse/report.py recipes/collapse/results.jsonl runs/more --into recipes/collapse     # more cells

Writes results.jsonl (one line per cell, curves at every tenth step), curves.png and quality.png, and prints the tables, or
puts each between the marks ``<!-- table NAME -->`` and ``<!-- end -->`` of a README.md that stands in the folder. Of a cell
that comes twice the later one counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.files import atomic_write

Result = dict[str, Any]
Column = tuple[str, Callable[[Result], float | None], str]
NAMES = {
    "vq": "plain VQ", "ema_vq": "VQ, EMA with revival", "simvq": "**SimVQ**", "fsq": "FSQ",
    "simvq_learnable": "SimVQ, basis learned too", "simvq_diagonal": "SimVQ, diagonal map",
    "simvq_rotation": "SimVQ, rotation gradient", "vq_rotation": "plain VQ, rotation gradient",
    "factorised_vq": "factorised VQ (8-d, by direction)", "clustered_vq": "CVQ (online clustered)",
    "index_vq": "IBQ (index backpropagation)", "affine_vq": "affine VQ", "lfq": "LFQ", "lattice_vq": "learnable lattice",
    "residual_vq": "residual plain VQ", "residual_simvq": "residual SimVQ",
}  # fmt: skip
UNCOMMITTED = {"fsq", "lfq", "lattice_vq", "factorised_vq"}  # nothing pulls the latents to what is put in their place
THINNED = 10  # steps between the kept points of a curve
COLOURS = {"vq": "tab:red", "ema_vq": "tab:orange", "simvq": "tab:blue", "fsq": "tab:green"}


class ResultError(CodecError):
    """A place holds no results; the message says where they come from."""


def read_results(places: Sequence[Path]) -> list[Result]:
    """The cells of folders of result files, and of files with one line per cell; of two of one name and length the later."""
    results: dict[tuple[Any, ...], Result] = {}
    for place in places:
        files = sorted(place.glob("*-seed*.json")) if place.is_dir() else [place]
        for path in files:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    result = json.loads(line)
                    key = tuple(result[name] for name in ("quantizer", "codebook_size", "start", "seed", "steps"))
                    _ = result["measured"]["stages"][0]
                except (ValueError, LookupError, TypeError):
                    raise ResultError(f"{path} is no result of recipes/collapse/run.py") from None
                results[key] = result
        if not files:
            raise ResultError(f"no result files in {place}; recipes/collapse/run.py writes them")
    return list(results.values())


def thinned(result: Result) -> Result:
    """The result with every tenth point of its curves, which is what the plots show of a cell anyway."""
    steps = result.get("curve", {}).get("step", [])
    if len(steps) < 2 or steps[1] - steps[0] >= THINNED:
        return result
    return result | {"curve": {name: values[::THINNED] for name, values in result["curve"].items()}}


def first(name: str) -> Callable[[Result], float | None]:
    """A value of the first stage's health."""
    return lambda result: result["measured"]["stages"][0][name]


def measured(*path: str) -> Callable[[Result], float | None]:
    """A value of the measurement, by its path."""

    def read(result: Result) -> float | None:
        value: Any = result["measured"]
        for key in path:
            value = value[key]
        return value

    return read


def stage_usage(index: int) -> Callable[[Result], float | None]:
    """Share of one stage's codes used."""
    return lambda result: result["measured"]["stages"][index]["usage"]


COLUMNS: list[Column] = [
    ("codes used", first("usage"), "{:.1%}"),
    ("perplexity", first("perplexity"), "{:.0f}"),
    ("unseen mass", first("unseen_mass"), "{:.2%}"),
    ("error", lambda r: None if r["quantizer"] in UNCOMMITTED else r["measured"]["quantization_error"], "{:.2f}"),
    ("dim. latents", measured("effective_dimension", "latents"), "{:.1f}"),
    ("dim. table", measured("effective_dimension", "codebook"), "{:.1f}"),
    ("mel", measured("mel"), "{:.3f}"),
    ("PESQ", measured("pesq"), "{:.3f}"),
    ("CPU s", lambda result: result.get("cpu_seconds"), "{:.0f}"),
]


def cell_text(results: Sequence[Result], value: Callable[[Result], float | None], form: str) -> str:
    """The mean over seeds; with the lowest and the highest where there are several."""
    values = [v for v in (value(result) for result in results) if v is not None]
    if not values:
        return "-"
    text = form.format(sum(values) / len(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def table(results: Sequence[Result], lead: Sequence[str], columns: Sequence[Column] = COLUMNS) -> str:
    """A Markdown table: a row for each combination of the ``lead`` keys, seeds together."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in lead), []).append(result)
    heads = [{"codebook_size": "V", "quantizer": "quantizer", "start": "start"}[key] for key in lead]
    lines = ["| " + " | ".join([*heads, "seeds", *(name for name, _, _ in columns)]) + " |"]
    lines.append("|" + "---|" * (len(heads) + 1 + len(columns)))
    for key, chosen in groups.items():
        names = [NAMES.get(str(part), f"{part:,}" if isinstance(part, int) else str(part)) for part in key]
        values = [cell_text(chosen, value, form) for _, value, form in columns]
        lines.append("| " + " | ".join([*names, str(len(chosen)), *values]) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Not yet run."


def stages_table(results: Sequence[Result]) -> str:
    """Residual stacks: the share of codes used, stage by stage."""
    count = max((len(result["measured"]["stages"]) for result in results), default=0)
    columns: list[Column] = [(f"stage {i + 1}", stage_usage(i), "{:.1%}") for i in range(count)]
    return table(results, ("quantizer", "start"), [*columns, COLUMNS[3], COLUMNS[6], COLUMNS[7], COLUMNS[8]])


def last_step(result: Result) -> int:
    """Where training ended, counted with the warm-up."""
    return int(result["first_step"] + result["steps"])


def is_longer(result: Result, results: Sequence[Result]) -> bool:
    """Whether it was trained longer than the shortest: such cells have their own table and panel."""
    return last_step(result) > min(last_step(r) for r in results)


def tables(results: Sequence[Result]) -> dict[str, str]:
    """All tables by name."""
    order = list(NAMES)
    results = sorted(results, key=lambda r: (r["codebook_size"], order.index(r["quantizer"]), r["start"], r["seed"]))
    results, longer = [r for r in results if not is_longer(r, results)], [r for r in results if is_longer(r, results)]
    single = [r for r in results if len(r["measured"]["stages"]) == 1]

    def pick(names: Sequence[str], start: str | None = "default", size: int | None = None) -> list[Result]:
        return [
            r for r in single
            if r["quantizer"] in names and start in (None, r["start"]) and size in (None, r["codebook_size"])
        ]  # fmt: skip

    main = ("vq", "ema_vq", "simvq", "fsq")
    variants = ("simvq", "simvq_learnable", "simvq_diagonal", "simvq_rotation", "vq_rotation", "vq")
    others = ("factorised_vq", "clustered_vq", "index_vq", "affine_vq", "lfq", "lattice_vq")
    several = {(r["codebook_size"], r["quantizer"]) for r in pick(main) if r["seed"] != 0}
    headline = [r for r in pick(main) if (r["codebook_size"], r["quantizer"]) in several]
    return {
        "headline": table(longer or headline, ("codebook_size", "quantizer"), COLUMNS[:5] + COLUMNS[6:]),
        "seeds": table(headline, ("codebook_size", "quantizer"), COLUMNS[:5] + COLUMNS[6:8]),
        "sizes": table([r for r in pick(main) if r["seed"] == 0], ("codebook_size", "quantizer")),
        "starts": table([r for r in pick(("vq", "ema_vq", "simvq"), None) if r["seed"] == 0 and
                         any(o["start"] != "default" and o["codebook_size"] == r["codebook_size"] for o in single)],
                        ("codebook_size", "quantizer", "start")),
        "variants": table([r for r in pick(variants, size=8192) if r["seed"] == 0], ("quantizer",)),
        "others": table([r for r in pick(others) if r["seed"] == 0], ("codebook_size", "quantizer")),
        "residual": stages_table([r for r in results if len(r["measured"]["stages"]) > 1]),
        "runs": "\n\n".join(runs_line(part) for part in (results, longer) if part),
    }  # fmt: skip


def runs_line(results: Sequence[Result]) -> str:
    """What the tables rest on, in one sentence."""
    if not results:
        return "Not yet run."
    r = results[0]
    steps = sorted({(x["start"], x["first_step"], x["steps"]) for x in results})
    spans = ", ".join(f"{start}: {count} steps from step {begin}" for start, begin, count in steps)
    return (
        f"{len(results)} cells in {sum(x['seconds'] for x in results) / 60:.0f} minutes ({r['machine']}); {spans}; batch "
        f"{r['batch_size']} x {r['segment_seconds']} s; trained on {r['data']['train']}; measured on "
        f"{r['measured']['stages'][0]['frames']:,} frames of {r['data']['measured']} held out; mel and PESQ over "
        f"{r['measured']['scored']} segments."
    )


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Share of the codes hit within the last steps, over training; one panel per codebook size."""
    from matplotlib import pyplot

    chosen = [r for r in results if r["quantizer"] in COLOURS and r["start"] == "default"]
    if not all("curve" in r for r in chosen):
        print(f"{path.name} is left as it is: not every cell has its curve", file=sys.stderr)
        return
    panels = sorted({(last_step(r), r["codebook_size"]) for r in chosen})
    if not panels:
        return
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.4 * columns, 3.1 * rows), squeeze=False)
    for axis, (steps, size) in zip(axes.flat, panels, strict=False):
        for r in (r for r in chosen if (last_step(r), r["codebook_size"]) == (steps, size)):
            share = [count / size for count in r["curve"]["codes_in_window"]]
            axis.plot(r["curve"]["step"], share, color=COLOURS[r["quantizer"]], linewidth=1.2)
        axis.set(title=f"V = {size:,}, to step {steps:,}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.supylabel("share of codes hit in the last 50 steps", fontsize=10)
    for name, colour in COLOURS.items():
        axes[0][0].plot([], [], color=colour, label=NAMES[name].strip("*"))
    axes[0][0].legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, path)


def draw_quality(results: Sequence[Result], path: Path) -> None:
    """Codes used against mel distance, every single-stage cell: usage is not quality."""
    from matplotlib import pyplot

    chosen = [r for r in results if len(r["measured"]["stages"]) == 1 and r["measured"]["mel"] is not None]
    chosen = [r for r in chosen if not is_longer(r, chosen)]
    if not chosen:
        return
    figure, axis = pyplot.subplots(figsize=(6.4, 4.2))
    markers = {1024: "o", 8192: "s", 65536: "^", 262144: "D"}
    for r in chosen:
        colour = COLOURS.get(r["quantizer"], "0.55")
        face = colour if r["start"] == "default" else "none"
        axis.plot(r["measured"]["stages"][0]["usage"], r["measured"]["mel"], markers.get(r["codebook_size"], "x"),
                  color=colour, markerfacecolor=face, markersize=6)  # fmt: skip
    for name, colour in COLOURS.items():
        axis.plot([], [], "s", color=colour, label=NAMES[name].strip("*"))
    axis.plot([], [], "s", color="0.55", label="others")
    for size in sorted({r["codebook_size"] for r in chosen}):
        axis.plot([], [], markers.get(size, "x"), color="k", label=f"V = {size:,}")
    axis.plot([], [], "s", color="k", markerfacecolor="none", label="other start")
    axis.set(xscale="log", xlabel="share of codes used", ylabel="mel distance (lower is better)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2, loc="upper center")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure whole, and close it."""
    from matplotlib import pyplot

    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)


def filled(text: str, bodies: dict[str, str]) -> str:
    """A page with every marked table replaced."""
    for name, body in bodies.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(begin)
        if mark:
            text = before + mark + body + "\n" + end + rest.partition(end)[2]
    return text


def write_report(places: Sequence[Path], into: Path | None) -> int:
    """Write results, pictures and tables to ``into``, by default the first folder; returns the exit code."""
    results = read_results(places)
    import matplotlib

    matplotlib.use("Agg")
    into = into or (places[0] if places[0].is_dir() else places[0].parent)
    draw_curves(results, into / "curves.png")
    draw_quality(results, into / "quality.png")
    with atomic_write(into / "results.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(thinned(result)) + "\n" for result in results), encoding="utf-8")
    bodies, page = tables(results), into / "README.md"
    if page.is_file():
        text = filled(page.read_text(encoding="utf-8"), bodies)
        with atomic_write(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        print("\n\n".join(f"{name}\n{body}" for name, body in bodies.items()))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="folders of result files, or a results.jsonl")
    parser.add_argument("--into", type=Path, help="where pictures and tables go; default the first folder")
    args = parser.parse_args(argv)
    return run_command("report.py", lambda: write_report(args.results, args.into))


if __name__ == "__main__":
    sys.exit(main())
