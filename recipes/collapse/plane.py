"""Collapse on a plane, where it can be seen: the project's own VQ and SimVQ with two dimensions.

    python recipes/collapse/plane.py --out recipes/collapse

Writes plane.gif (codes over the steps), step.png (what one step moves), remedies.png and plane.json (all numbers).
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import itertools
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.errors import EXIT_OK, Parser, run_command
from codec.files import atomic_write, save_picture, write_json
from codec.health import effective_dimension, stage_health
from codec.quantizers import SimVQ, build_quantizer

CODES = 256  # on the plane
BATCH = 64  # points per step
WINDOW = 30  # a code that nothing was nearest to for so many steps is drawn as dead
COLOURS = {"vq": "tab:red", "simvq": "tab:blue"}
TITLES = {"vq": "plain VQ", "simvq": "SimVQ: one linear layer"}


def quantizer_2d(kind: str, codes: int, seed: int, **settings: Any) -> Any:
    """VQ or SimVQ, each with its ``codebook [V, 2]`` and no projection; both draw the same table for one seed."""
    torch.manual_seed(seed)
    return build_quantizer(QuantizerConfig(kind=kind, codebook_size=codes, codebook_dim=2, **settings), 2)


def cloud(count: int, generator: torch.Generator) -> Tensor:
    """One slanted cloud away from the origin, ``[count, 2]``."""
    mix = torch.tensor([[0.8, 0.4], [0.0, 0.25]])
    return torch.randn(count, 2, generator=generator) @ mix + torch.tensor([3.0, 1.8])


def islands(count: int, generator: torch.Generator) -> Tensor:
    """Five small islands, ``[count, 2]``: what a linear map cannot make of one cloud."""
    centres = torch.tensor([[0.0, 2.2], [2.1, 2.4], [3.3, 0.6], [1.6, -0.6], [-0.7, -0.4]])
    which = torch.randint(0, len(centres), (count,), generator=generator)
    return centres[which] + 0.22 * torch.randn(count, 2, generator=generator)


SHAPES = {"cloud": cloud, "islands": islands}


# ---- codes over the steps -----------------------------------------------------------------------------------------------


class History(NamedTuple):
    """A run on the plane: ``tables [S, V, 2]`` and ``alive [S, V]``, whether a code was hit in the last WINDOW steps."""

    tables: Tensor
    alive: Tensor
    usage: float
    moved: float


def follow(kind: str, shape: str, steps: int, seed: int = 0) -> History:
    """Train the codes alone, on fixed points, by SGD on the codebook loss; ``usage`` is measured on 20,000 new points.

    ``moved`` is the share of codes that are not where they began.
    """
    quantizer = quantizer_2d(kind, CODES, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    recent: deque[Tensor] = deque(maxlen=WINDOW)
    tables, alive = [], []
    for _ in range(steps):
        points = SHAPES[shape](BATCH, generator).t()[None]
        tables.append(quantizer.codebook.clone())
        output = quantizer(points)
        recent.append(output.codes.flatten())
        alive.append(torch.bincount(torch.cat(tuple(recent)), minlength=CODES) > 0)
        optimizer.zero_grad()
        output.codebook_loss.mean().backward()
        optimizer.step()
    codes = quantizer(SHAPES[shape](20_000, generator).t()[None]).codes
    moved = (quantizer.codebook - tables[0]).norm(dim=1) > 1e-6
    return History(torch.stack(tables), torch.stack(alive), len(codes.unique()) / CODES, float(moved.float().mean()))


def animate(path: Path, histories: dict[tuple[str, str], History], frames: int) -> None:
    """A GIF: one row per shape, one column per quantizer."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    figure = Figure((7.2, 3.3 * len(SHAPES) + 0.5))
    axes, drawn = figure.subplots(len(SHAPES), len(COLOURS)), []
    for axis, ((shape, kind), history) in zip(axes.flat, histories.items(), strict=True):
        points = SHAPES[shape](600, torch.Generator().manual_seed(9))
        axis.scatter(*points.t(), s=5, color="0.8", linewidths=0)
        dead = axis.plot([], [], "x", color="0.25", markersize=3.5, markeredgewidth=0.8)[0]
        live = axis.plot([], [], "o", color=COLOURS[kind], markersize=3.5, markeredgewidth=0)[0]
        axis.set(xlim=(-2.6, 5.4), ylim=(-2.4, 4.0), xticks=[], yticks=[])
        drawn.append((axis, history, dead, live, TITLES[kind]))
    labels = [f"hit in the last {WINDOW} steps", "not hit"]
    axes[0][0].legend([drawn[0][3], drawn[0][2]], labels, loc="lower right", fontsize=8, frameon=False)
    axes[0][0].set_title("x")  # so that the layout leaves room for the titles
    figure.tight_layout(rect=(0, 0, 1, 0.95), h_pad=2.0)
    title = figure.suptitle("", fontsize=11)
    steps = len(drawn[0][1].tables)
    shown = sorted({min(steps - 1, round((steps - 1) * (i / (frames - 1)) ** 2)) for i in range(frames)})

    def draw(frame: int) -> None:
        step = shown[min(frame, len(shown) - 1)]
        for axis, history, dead, live, name in drawn:
            alive = history.alive[step]
            live.set_data(*history.tables[step][alive].t())
            dead.set_data(*history.tables[step][~alive].t())
            axis.set_title(f"{name}: {int(alive.sum())} of {CODES} codes hit", fontsize=9)
        title.set_text(f"step {step}")

    animation = FuncAnimation(figure, draw, frames=len(shown) + 8)  # the last picture stands a while
    with atomic_write(path) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=6), dpi=75)


# ---- why: what one step moves -------------------------------------------------------------------------------------------


def one_step(path: Path) -> dict[str, float]:
    """One SGD step for one point, drawn; returns the largest deviation from the formula and who moved.

    The formula is that of ``codec/quantizers/simvq.py``: without b every code moves by ``-lr * c_i sum_j c_j^T g_j``, as
    ``dL/dW = sum_j c_j^T g_j`` and ``e_i = c_i W``. After Su Jianlin's note on SimVQ (kexue.fm 10519).
    """
    from matplotlib.figure import Figure

    figure = Figure((8.4, 3.9), layout="tight")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    point = torch.tensor([[1.5, 1.0]])
    numbers: dict[str, float] = {}
    for axis, kind in zip(axes, COLOURS, strict=True):
        quantizer = quantizer_2d(kind, 60, seed=3, map_bias=kind != "simvq")  # without one the formula is exact
        rate, before = 0.45, quantizer.codebook.clone()
        output = quantizer(point.t()[None])
        chosen = output.codes.flatten()
        output.codebook_loss.sum().backward()
        torch.optim.SGD(quantizer.parameters(), lr=rate).step()
        move = quantizer.codebook - before
        numbers[f"{kind}_moved"] = float((move.norm(dim=1) > 1e-7).float().mean())
        if isinstance(quantizer, SimVQ):
            gradients = 2 * (before[chosen] - point) / point.numel()  # of the loss by each chosen row of E
            expected = -rate * quantizer.basis @ (quantizer.basis[chosen].t() @ gradients)
            numbers["formula_largest_deviation"] = float((move - expected).abs().max())
            numbers["largest_move"] = float(move.abs().max())
        axis.quiver(*before.t(), *move.t(), angles="xy", scale_units="xy", scale=1, color=COLOURS[kind], width=0.004)
        axis.plot(*before.t(), "o", color="0.3", markersize=3)
        axis.plot(*point.t(), "*", color="tab:green", markersize=14, label="the latent")
        axis.plot(*before[chosen].t(), "o", color="k", markersize=7, fillstyle="none", label="its nearest code")
        axis.set_title(f"{TITLES[kind].split(':')[0]}: {numbers[f'{kind}_moved']:.0%} of the codes move", fontsize=11)
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal")
    axes[0].legend(loc="lower right", fontsize=8, frameon=False)
    save_picture(figure, path)
    return numbers


# ---- token and embedding collapse, and the remedies ----------------------------------------------------------------------

BLOBS = 24


def observations(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the small autoencoder sees, ``[count, 16]``: a plane of 24 blobs, bent into 16 dimensions; and the blob."""
    fixed = torch.Generator().manual_seed(42)
    angle = torch.arange(BLOBS) * 2.39996  # the golden angle: an even spread over a disc
    radius = 0.55 * (torch.arange(BLOBS) + 0.5).sqrt()
    centres = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    first, second = torch.randn(2, 32, generator=fixed), torch.randn(32, 16, generator=fixed) / 32**0.5
    blob = torch.randint(0, BLOBS, (count,), generator=generator)
    plane = centres[blob] + 0.06 * torch.randn(count, 2, generator=generator)
    return torch.tanh(0.6 * plane @ first) @ second, blob


def autoencode(kind: str, weak: bool, matched: bool, warmup: bool, seed: int, steps: int) -> dict[str, float]:
    """Train a small autoencoder with 128 codes between; what became of codes and latents.

    Args:
        kind: "vq" or "simvq".
        weak: the encoder has one hidden unit, not two layers of 64.
        matched: the codes start from latents, not from N(0, 1/d).
        warmup: the first third of the steps is without quantizer.

    Returns:
        ``usage`` and ``perplexity`` of the codes over 6,000 new observations; ``latent_dimension`` (effective, 1 to 2);
        ``kept_apart``, the share of latents whose nearest other latent is of the same blob; ``error``, the mean squared
        error of the reconstruction relative to the variance.
    """
    quantizer = quantizer_2d(kind, 128, seed)
    encoder, decoder = perceptron(16, [1] if weak else [64, 64], 2), perceptron(2, [64, 64], 16)
    generator = torch.Generator().manual_seed(seed + 100)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], lr=3e-3)
    begin = steps // 3 if warmup else 0
    for step in range(steps):
        x, _ = observations(128, generator)
        z = encoder(x)
        if step == begin and matched:
            quantizer.initialize(encoder(observations(1024, generator)[0]).t()[None])
        if step < begin:
            loss = F.mse_loss(decoder(z), x)
        else:
            output = quantizer(z.t()[None])
            loss = F.mse_loss(decoder(output.quantized[0].t()), x)
            loss = loss + 0.25 * output.commitment_loss.mean() + output.codebook_loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, blob = observations(6000, generator)
        z = encoder(x)
        output = quantizer(z.t()[None])
        health = stage_health(torch.bincount(output.codes.flatten(), minlength=128))
        distance = torch.cdist(z[:2000], z[:2000]).fill_diagonal_(torch.inf)
        same = blob[:2000] == blob[:2000][distance.argmin(dim=1)]
        error = F.mse_loss(decoder(output.quantized[0].t()), x) / (x - x.mean(dim=0)).square().mean()
    return {
        "usage": health.usage, "perplexity": health.perplexity, "latent_dimension": effective_dimension(z),
        "kept_apart": float(same.float().mean()), "error": float(error),
    }  # fmt: skip


def perceptron(width_in: int, hidden: Sequence[int], width_out: int) -> nn.Sequential:
    """Linear layers with GELU between."""
    widths = [width_in, *hidden, width_out]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def remedies(seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Every combination of quantizer, encoder, start and warm-up; means over the seeds."""
    rows, switch = [], (False, True)
    for kind, weak, matched, warmup in itertools.product(("vq", "simvq"), switch, switch, switch):
        runs = [autoencode(kind, weak, matched, warmup, seed, steps) for seed in seeds]
        mean = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        rows.append({"quantizer": kind, "weak_encoder": weak, "matched_start": matched, "warmup": warmup, **mean,
                     "usage_lowest": min(run["usage"] for run in runs),
                     "usage_highest": max(run["usage"] for run in runs)})  # fmt: skip
    return rows


def draw_remedies(path: Path, rows: list[dict[str, Any]]) -> None:
    """Bars: codes used (token collapse) and latents kept apart (embedding collapse), for every combination."""
    from matplotlib.figure import Figure

    figure = Figure((9, 5.4), layout="tight")
    axes = figure.subplots(2, 2, sharey=True)
    labels = ["neither", "warm-up", "matched start", "both"]
    panels = itertools.product((False, True), [("usage", "codes used"), ("kept_apart", "latents kept apart")])
    for axis, (weak, (name, what)) in zip(axes.flat, panels, strict=True):
        for offset, kind in ((-0.2, "vq"), (0.2, "simvq")):
            heights = [r[name] for r in rows if r["quantizer"] == kind and r["weak_encoder"] == weak]
            places, label = [i + offset for i in range(4)], TITLES[kind].split(":")[0]
            bars = axis.bar(places, heights, 0.38, color=COLOURS[kind], label=label)
            axis.bar_label(bars, [f"{height:.0%}" for height in heights], fontsize=7)
        axis.set_xticks(range(4), labels)
        axis.set(title=f"{'weak' if weak else 'strong'} encoder: {what}", ylim=(0, 1.12), yticks=[0, 0.5, 1])
    axes[0][0].legend(fontsize=8, loc="upper left", ncols=2, frameon=False)
    save_picture(figure, path)


def draw_plane(args: argparse.Namespace) -> int:
    """Write the pictures and all numbers; returns the exit code."""
    began = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    histories = {(shape, kind): follow(kind, shape, args.steps) for shape in SHAPES for kind in COLOURS}
    animate(args.out / "plane.gif", histories, args.frames)
    numbers: dict[str, Any] = {
        "steps": args.steps, "codes": CODES, "batch": BATCH, "seed": 0,
        "plane": {f"{shape} {kind}": {"usage": h.usage, "moved": h.moved} for (shape, kind), h in histories.items()},
        "one_step": one_step(args.out / "step.png"),
        "remedies": {"steps": args.remedy_steps, "seeds": args.seeds, "rows": remedies(args.seeds, args.remedy_steps)},
    }  # fmt: skip
    draw_remedies(args.out / "remedies.png", numbers["remedies"]["rows"])
    numbers["seconds"] = round(time.perf_counter() - began, 1)
    write_json(args.out / "plane.json", numbers)
    for name, values in numbers["plane"].items():
        print(f"{name}: {values['usage']:.1%} of {CODES} codes used, {values['moved']:.1%} moved")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--steps", type=int, default=600, help="of the codes on the plane")
    parser.add_argument("--remedy-steps", type=int, default=600, help="of each small autoencoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the small autoencoders")
    parser.add_argument("--frames", type=int, default=40, help="pictures of the GIF")
    args = parser.parse_args(argv)
    return run_command("plane.py", lambda: draw_plane(args))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
