"""Tables and plots of a study's result files.

    python recipes/collapse/report.py runs/collapse                              # into the same folder
    python recipes/collapse/report.py runs/collapse runs/filling --into recipes/collapse              # and fill its pages
    python recipes/collapse/report.py recipes/collapse/results.jsonl runs/more --into recipes/collapse     # more cells

Writes results.jsonl (one line per cell, without its curves) and filling.png, and prints the tables, or puts each between the
marks ``<!-- table NAME -->`` and ``<!-- end -->`` of the Markdown pages that stand in the folder, as also that of its
toys.json (toys.py). Of a cell that comes twice the later one counts. Studies are known by their names: filling.yaml has
tables of its own, longer.yaml gives the headline. Cells that no table is for stand in one more, behind the runs.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.files import save_picture, write_text

Result = dict[str, Any]
Column = tuple[str, Callable[[Result], float | None], str]
NAMES = {
    "vq": "plain VQ", "ema_vq": "VQ, EMA with revival", "simvq": "**SimVQ**", "fsq": "FSQ",
    "simvq_learnable": "SimVQ, basis learned too", "simvq_diagonal": "SimVQ, diagonal map",
    "simvq_rotation": "SimVQ, rotation gradient", "vq_rotation": "plain VQ, rotation gradient",
    "factorised_vq": "factorised VQ (8-d, by direction)", "clustered_vq": "CVQ (online clustered)",
    "index_vq": "IBQ (index backpropagation)", "affine_vq": "affine VQ", "lfq": "LFQ", "lattice_vq": "learnable lattice",
    "residual_vq": "residual plain VQ", "residual_simvq": "residual SimVQ", "simvq_data": "SimVQ, basis of latents",
    "residual2_vq": "residual plain VQ, 2 stages", "residual2_simvq": "residual SimVQ, 2 stages",
    "residual8_vq": "residual plain VQ, 8 stages", "residual8_simvq": "residual SimVQ, 8 stages",
}  # fmt: skip
UNCOMMITTED = {"fsq", "lfq", "lattice_vq", "factorised_vq"}  # nothing pulls the latents to what is put in their place
COLOURS = {"vq": "tab:red", "ema_vq": "tab:orange", "simvq": "tab:blue", "fsq": "tab:green"}


def read_results(places: Sequence[Path]) -> list[Result]:
    """The cells of folders of result files, and of files with one line per cell; of two of one name and study the later."""
    results: dict[tuple[Any, ...], Result] = {}
    for place in places:
        files = sorted(place.glob("*-seed*.json")) if place.is_dir() else [place]
        for path in files:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    result = json.loads(line)
                    key = tuple(result[name] for name in ("study", "quantizer", "codebook_size", "start", "seed"))
                    _ = result["measured"]["stages"][0]
                except (ValueError, LookupError, TypeError):
                    raise CodecError(f"{path} is no result of recipes/collapse/run.py") from None
                results[key] = result
        if not files:
            raise CodecError(f"no result files in {place}; recipes/collapse/run.py writes them")
    return list(results.values())


def measured(*path: str | int) -> Callable[[Result], float | None]:
    """A value of the measurement, by its path."""
    return lambda result: reduce(lambda value, key: value[key], path, result["measured"])


def bits_of(result: Result) -> float:
    """Bits a frame: of all stages."""
    return len(result["measured"]["stages"]) * math.log2(result["codebook_size"])


def water_filling(spectrum: Sequence[float], bits: float) -> list[float]:
    """The least squared error of each direction of a Gaussian of these variances, largest first, at so many bits.

    ``D_i = min(level, l_i)``, where ``sum_i max(0, log2(l_i / level) / 2)`` is the bits: of the directions that rise above
    the water each keeps an error of its level, and the others get no bits (Cover and Thomas, Elements of Information Theory).

    >>> water_filling([16.0, 4.0, 1.0], 3)
    [1.0, 1.0, 1.0]
    >>> water_filling([16.0, 4.0, 1.0], 1)
    [4.0, 4.0, 1.0]
    """
    for count in range(len(spectrum), 0, -1):
        level = 2 ** ((sum(math.log2(max(value, 1e-30)) for value in spectrum[:count]) - 2 * bits) / count)
        if level <= spectrum[count - 1]:
            break
    return [min(level, value) for value in spectrum]


def losses(errors: Sequence[float], variances: Sequence[float]) -> list[float]:
    """The share of each direction's variance that is lost."""
    return [error / max(variance, 1e-30) for error, variance in zip(errors, variances, strict=True)]


def passed(errors: Sequence[float], variances: Sequence[float]) -> tuple[float, float]:
    """How many directions get through, each as far as it is not lost; the share of the whole variance that is lost."""
    return sum(1 - share for share in losses(errors, variances)), sum(errors) / sum(variances)


def kept(result: Result) -> tuple[float, float]:
    """``passed`` of a result."""
    return passed(*(result["measured"]["directions"][name] for name in ("error", "variance")))


def above_water(result: Result, name: str) -> int:
    """How many directions reverse water-filling gives bits to, of their "variance" or of what of them is "heard"."""
    spectrum = sorted(result["measured"]["directions"][name], reverse=True)
    return sum(a < b for a, b in zip(water_filling(spectrum, bits_of(result)), spectrum, strict=True))


def predicted(result: Result) -> tuple[float, float]:
    """``kept`` by reverse water-filling of the result's own latents."""
    spectrum = result["measured"]["directions"]["variance"]
    return passed(water_filling(spectrum, bits_of(result)), spectrum)


COLUMNS: list[Column] = [
    ("codes used", measured("stages", 0, "usage"), "{:.1%}"),
    ("perplexity", measured("stages", 0, "perplexity"), "{:.0f}"),
    ("unseen mass", measured("stages", 0, "unseen_mass"), "{:.2%}"),
    ("error", lambda r: None if r["quantizer"] in UNCOMMITTED else r["measured"]["quantization_error"], "{:.2f}"),
    ("dim. latents", measured("effective_dimension", "latents"), "{:.1f}"),
    ("dim. table", measured("effective_dimension", "codebook"), "{:.1f}"),
    ("mel", measured("mel"), "{:.3f}"),
    ("PESQ", measured("pesq"), "{:.3f}"),
    ("CPU s", lambda result: result.get("cpu_seconds"), "{:.0f}"),
]
FILLING: list[Column] = [
    COLUMNS[0],
    ("at most", lambda r: min(1.0, r["measured"]["stages"][0]["frames"] / r["codebook_size"]), "{:.1%}"),
    COLUMNS[1],
    ("dim. latents", measured("effective_dimension", "latents"), "{:.1f}"),
    ("dim. codes", measured("effective_dimension", "quantized"), "{:.1f}"),
    ("carried", lambda result: kept(result)[0], "{:.1f}"),
    ("carried, predicted", lambda result: predicted(result)[0], "{:.1f}"),
    ("error", lambda result: kept(result)[1], "{:.3f}"),
    ("error, predicted", lambda result: predicted(result)[1], "{:.3f}"),
    ("mel", measured("mel"), "{:.3f}"),
    ("without", measured("mel_continuous"), "{:.3f}"),
    *COLUMNS[7:],
]
START_NAMES = {
    "after": "autoencoder finished, table untrained", "matched": "autoencoder first, then matched", "default": "default",
    "first_batch": "matched before the first step", "scratch": "cold",
}  # fmt: skip


def cell_text(results: Sequence[Result], value: Callable[[Result], float | None], form: str) -> str:
    """The mean over seeds; with the lowest and the highest where there are several."""
    values = [v for v in (value(result) for result in results) if v is not None]
    if not values:
        return "-"
    text = form.format(sum(values) / len(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def table(results: Sequence[Result], lead: Sequence[str], columns: Sequence[Column] = COLUMNS) -> str:
    """A Markdown table: a row for each combination of the ``lead`` keys, seeds together; study and V lead if they differ."""
    others = ("study",) if "bits" in lead else ("study", "codebook_size")  # the bits tell V
    lead = list(dict.fromkeys([*(key for key in others if len({result[key] for result in results}) > 1), *lead]))
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in lead), []).append(result)
    rows = []
    for key, chosen in groups.items():
        names = [NAMES.get(str(part), f"{part:,}" if isinstance(part, int) else str(part)) for part in key]
        rows.append([*names, str(len(chosen)), *(cell_text(chosen, value, form) for _, value, form in columns)])
    heads = [{"codebook_size": "V"}.get(key, key) for key in lead]
    return markdown([*heads, "seeds", *(name for name, _, _ in columns)], rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, if it has any rows."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]]) if rows else "No cell of this table was run."


def tables(results: Sequence[Result]) -> dict[str, str]:
    """All tables by name."""
    order = [*NAMES, *sorted({r["quantizer"] for r in results} - NAMES.keys())]
    results = [r | {"bits": round(bits_of(r))} for r in results]
    results.sort(key=lambda r: (r["codebook_size"], order.index(r["quantizer"]), r["start"], r["seed"]))
    longer, filling = ([r for r in results if r["study"] == name] for name in ("longer", "filling"))
    filling.sort(key=lambda r: (bits_of(r), list(START_NAMES).index(r["start"])))
    general = [r for r in results if r["study"] not in ("longer", "filling")]
    single = [r for r in general if len(r["measured"]["stages"]) == 1]
    stacks = [r for r in general if len(r["measured"]["stages"]) > 1]
    most = max((len(r["measured"]["stages"]) for r in stacks), default=0)
    default = [r for r in single if r["start"] == "default"]
    first = [r for r in default if r["seed"] == 0]
    started = {r["codebook_size"] for r in single if r["start"] != "default"}  # otherwise too

    def of(names: Sequence[str], cells: Sequence[Result]) -> list[Result]:
        return [r for r in cells if r["quantizer"] in names]

    def usage(stage: int, r: Result) -> float | None:  # None where there are fewer stages
        return dict(enumerate(each["usage"] for each in r["measured"]["stages"])).get(stage)

    by_stage: list[Column] = [(f"stage {i + 1}", partial(usage, i), "{:.1%}") for i in range(most)]
    main = ("vq", "ema_vq", "simvq", "fsq")
    variants = ("simvq", "simvq_learnable", "simvq_diagonal", "simvq_rotation", "vq_rotation", "vq")
    others = ("factorised_vq", "clustered_vq", "index_vq", "affine_vq", "lfq", "lattice_vq")
    several = {(r["study"], r["codebook_size"], r["quantizer"]) for r in default if r["seed"] != 0}
    headline = [r for r in of(main, default) if (r["study"], r["codebook_size"], r["quantizer"]) in several]
    starts = [r for r in of(main[:3], single) if r["seed"] == 0 and r["codebook_size"] in started]
    parts: dict[str, tuple[list[Result], Sequence[str], Sequence[Column]]] = {
        "headline": (longer or headline, ("codebook_size", "quantizer"), COLUMNS[:5] + COLUMNS[6:]),
        "seeds": (headline, ("codebook_size", "quantizer"), COLUMNS[:5] + COLUMNS[6:8]),
        "sizes": (of(main, first), ("codebook_size", "quantizer"), COLUMNS),
        "starts": (starts, ("codebook_size", "quantizer", "start"), COLUMNS),
        "variants": ([r for r in of(variants, first) if r["codebook_size"] == 8192], ("quantizer",), COLUMNS),
        "others": (of(others, first), ("codebook_size", "quantizer"), COLUMNS),
        "residual": (stacks, ("quantizer", "start"), [*by_stage, COLUMNS[3], *COLUMNS[6:]]),
        "starts at 13 bits": ([r for r in filling if r["bits"] == 13], ("start", "quantizer"),
                              [c for c in FILLING if c[0] not in ("at most", "without")]),
        "filling": ([r for r in filling if r["seed"] == 0], ("bits", "start", "quantizer"), FILLING),
    }  # fmt: skip
    rest = [r for r in results if not any(r in cells for cells, _, _ in parts.values())]
    studies = dict.fromkeys(r["study"] for r in general + longer + filling)
    runs = [runs_line([r for r in results if r["study"] == study]) for study in studies]
    if rest:
        runs += ["Cells that stand in no other table:", table(rest, ("codebook_size", "quantizer", "start"))]
    water = [r for r in filling if r["seed"] == 0 and r["start"] == "after" and r["quantizer"] != "ema_vq"]
    texts = {"water": water_table(water), "runs": "\n\n".join(runs)}
    return {name: table(*part) for name, part in parts.items()} | texts


def water_table(cells: Sequence[Result]) -> str:
    """By bits, what reverse water-filling asks for and what both kinds of table lose of one autoencoder's latents."""
    rows, kinds = [], re.compile(r"(residual\d*_)?(sim)?vq")
    for bits in sorted({bits_of(r) for r in cells}):
        group = [r for r in cells if bits_of(r) == bits]
        lost = {"simvq" in r["quantizer"]: f"{kept(r)[1]:.1%}" for r in group if kinds.fullmatch(r["quantizer"])}
        needs = [str(above_water(group[0], name)) for name in ("variance", "heard")]
        rows.append([f"{bits:.0f}", *needs, f"{predicted(group[0])[1]:.1%}", lost.get(False, "-"), lost.get(True, "-")])
    return markdown(("bits", "above water", "as heard", "a Gaussian must lose", "plain VQ loses", "SimVQ loses"), rows)


def experts_table(rows: Sequence[dict[str, Any]]) -> str:
    """The mixtures of experts in toys.json, whose values are mean, lowest and highest."""
    names = {"router": "the router's rows, frozen", "experts": "the experts"}
    forms = {"usage": "{:.1%} ({:.1%} to {:.1%})", "error": "{:.3f} ({:.3f} to {:.3f})"}
    cells = [[names.get(row["shared"], row["shared"]), *(form.format(*row[name]) for name, form in forms.items())]
             for row in rows]  # fmt: skip
    return markdown(("one map shared by", "experts in use", "relative error"), cells)


def runs_line(results: Sequence[Result]) -> str:
    """What the tables rest on of one study, in one sentence; refuses cells that share no more than its name."""
    name, bases = results[0]["study"], set()
    for r in results:
        frames = f"{r['measured']['stages'][0]['frames']:,} frames of {r['data']['measured']} held out"
        speech = f"trained on {r['data']['train']}; measured on {frames}"
        basis = f"batch {r['batch_size']} x {r['segment_seconds']} s; {speech}"
        bases.add((basis, r["first_step"] + r["steps"], json.dumps(r["weights"], sort_keys=True)))
    if len(bases) > 1:  # a table would take their cells for seeds
        raise CodecError(
            f"studies of different settings or speech are called {name}: report each from a folder of its own"
        )
    steps = sorted({(r["start"], r["first_step"], r["steps"]) for r in results})
    spans = ", ".join(f"{start}: {count} steps from step {begin}" for start, begin, count in steps)
    cpu = sum(r.get("cpu_seconds", 0) for r in results) / 60
    machines = " / ".join(sorted({r["machine"] for r in results}))
    scored = " or ".join(map(str, sorted({r["measured"]["scored"] for r in results})))
    return (
        f"{name}.yaml: {len(results)} cells, {cpu:.0f} CPU minutes where they were noted ({machines}); {spans}; {basis}; "
        f"mel and PESQ over {scored} segments."
    )


def draw_filling(results: Sequence[Result], path: Path) -> None:
    """What is left of each principal direction, and the dimension of the codes, beside reverse water-filling."""
    from matplotlib.figure import Figure

    cells = [r for r in results if r["study"] == "filling" and r["seed"] == 0]
    cells = [r for r in cells if (r["quantizer"], r["start"]) != ("ema_vq", "after")]  # untrained it is plain VQ
    spectra = [r["measured"]["directions"]["variance"] for r in cells if r["start"] == "after"]
    if not spectra:
        return
    spectrum, rates, places = spectra[0], range(12, 90), range(1, len(spectra[0]) + 1)
    figure = Figure((10.2, 4.2), layout="tight")
    left, right = figure.subplots(1, 2)
    least = losses(water_filling(spectrum, 13), spectrum)
    left.fill_between(places, least, color="tab:cyan", alpha=0.2, linewidth=0)
    left.plot(places, least, "k--", linewidth=1)
    most = [passed(water_filling(spectrum, bits), spectrum)[0] for bits in rates]
    right.plot(rates, most, "k--", linewidth=1, label="predicted: reverse water-filling")
    for start, marker in zip(START_NAMES, "osDv^", strict=True):
        for r in (r for r in cells if r["start"] == start):
            kind = next((kind for kind in ("ema_vq", "simvq", "fsq") if kind in r["quantizer"]), "vq")
            directions, colour = r["measured"]["directions"], COLOURS[kind]
            right.plot(bits_of(r), kept(r)[0], marker, color=colour, markersize=6, alpha=0.8)
            if r["quantizer"] == kind and r["codebook_size"] == 8192:
                share = losses(directions["error"], directions["variance"])
                left.plot(places, share, marker + "-", color=colour, markersize=4, linewidth=0.8)
        if any(r["start"] == start for r in cells):
            right.plot([], [], marker, color="0.4", label=START_NAMES[start])
    for kind, colour in COLOURS.items():
        if any(kind == r["quantizer"] for r in cells):
            right.plot([], [], color=colour, label=NAMES[kind].strip("*"), linewidth=3)
    left.text(14, 1.02, "collapse: nothing gets through", fontsize=9)
    left.text(14, 0.3, "under water: these directions\nare not worth a bit", fontsize=9)
    left.set(xlabel="principal direction of the latents, strongest first", ylabel="share of its variance that is lost",
             title="13 bits a frame", ylim=(0, 1.07))  # fmt: skip
    bits = sorted({round(bits_of(r)) for r in cells})
    right.set(xlabel="bits a frame", ylabel="directions carried, of 32", xscale="log", title="other numbers of bits")
    right.set_xticks(bits, [str(count) for count in bits])
    right.minorticks_off()
    right.legend(fontsize=8, frameon=False)
    save_picture(figure, path)


def write_report(places: Sequence[Path], into: Path | None) -> int:
    """Write results, pictures and tables to ``into``, by default the first folder; returns the exit code."""
    results = read_results(places)
    bodies = tables(results)
    into = into or (places[0] if places[0].is_dir() else places[0].parent)
    draw_filling(results, into / "filling.png")
    cells = ({name: value for name, value in result.items() if name != "curve"} for result in results)
    write_text(into / "results.jsonl", "".join(json.dumps(cell) + "\n" for cell in cells))
    pages, toys = sorted(into.glob("*.md")), into / "toys.json"
    if toys.is_file():  # toys.py writes it
        bodies["experts"] = experts_table(json.loads(toys.read_text(encoding="utf-8"))["mixture"])
    marked = re.compile("(<!-- table (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        write_text(page, marked.sub(lambda m: f"{m[1]}{bodies[m[2]]}\n{m[3]}" if m[2] in bodies else m[0], text))
    if not pages:
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
