"""Two toys: what lies between VQ and SimVQ, and whether a shared linear map helps a mixture of experts.

    python recipes/collapse/toys.py --out recipes/collapse

Writes maps.png and toys.json: of each row the mean, the lowest and the highest over three seeds.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import QuantizerConfig
from codec.errors import EXIT_OK, Parser, run_command
from codec.files import save_picture, write_text
from codec.health import stage_health
from codec.quantizers import build_quantizer

SEEDS = (0, 1, 2)
CODES, DIMS = 1024, (2, 8, 32)
MAPS: dict[str, dict[str, Any]] = {  # from plain VQ, where each code moves alone, to SimVQ, where all move together
    "no map: plain VQ": {"kind": "vq"},
    "diagonal, basis learned too": {"kind": "simvq", "map": "diagonal", "basis": "learnable"},
    "dense, basis learned too": {"kind": "simvq", "basis": "learnable"},
    "diagonal": {"kind": "simvq", "map": "diagonal"},
    "dense: SimVQ": {"kind": "simvq"},
}
COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:purple", "tab:blue")
EXPERTS, WIDTH, TOKENS = 64, 16, 256


def drifting(count: int, dim: int, progress: float, generator: torch.Generator) -> Tensor:
    """Latents ``[count, dim]`` of an encoder that learns: a slanted Gaussian that drifts by three of its widths and turns."""
    fixed = torch.Generator().manual_seed(5)
    spread = torch.linspace(1.0, 0.25, dim)
    turns = torch.randn(dim, dim, generator=fixed) * dim**-0.5
    turn = torch.matrix_exp(progress * (turns - turns.t()))
    return (torch.randn(count, dim, generator=generator) * spread) @ turn + 3 * progress * dim**-0.5


def follow(settings: dict[str, Any], dim: int, seed: int, steps: int) -> dict[str, float]:
    """Start from the latents, train the codes while the latents drift; ``usage`` and relative ``error`` at the end."""
    torch.manual_seed(seed)
    config = QuantizerConfig(codebook_size=CODES, codebook_dim=dim, num_quantizers=1, **settings)
    quantizer = build_quantizer(config, dim)
    generator = torch.Generator().manual_seed(seed)
    quantizer.initialize(drifting(4 * CODES, dim, 0.0, generator))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-3)
    for step in range(steps):
        output = quantizer(drifting(128, dim, step / steps, generator))
        optimizer.zero_grad()
        output.codebook_loss.sum().backward()
        optimizer.step()
    points = drifting(16 * CODES, dim, 1.0, generator)
    output = quantizer.eval()(points)
    error = (output.quantized - points).square().sum() / (points - points.mean(dim=0)).square().sum()
    return {"usage": len(output.codes.unique()) / CODES, "error": float(error)}


class Experts(nn.Module):
    """One of EXPERTS linear experts for each token ``[M, WIDTH]``, times the router's probability; no loss for balance.

    Args:
        shared: one linear map, learned, that all rows of the "router" pass, these then being frozen as SimVQ's basis is;
            or all "experts", which go on learning; or "both"; or "nothing".
    """

    def __init__(self, shared: str) -> None:
        super().__init__()
        router, experts = shared in ("router", "both"), shared in ("experts", "both")
        self.rows = nn.Parameter(torch.randn(EXPERTS, WIDTH) * WIDTH**-0.5, requires_grad=not router)
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) * WIDTH**-0.5)
        self.router_map = nn.Parameter(torch.eye(WIDTH), requires_grad=router)
        self.expert_map = nn.Parameter(torch.eye(WIDTH), requires_grad=experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share, chosen = (x @ (self.rows @ self.router_map).t()).softmax(dim=1).max(dim=1)
        return share[:, None] * torch.einsum("md,mde->me", x, self.experts[chosen]) @ self.expert_map, chosen


def mixture(shared: str, seed: int, steps: int) -> dict[str, float]:
    """Learn a map that is another one in each of 64 regions: the share of experts that get at least a tenth of their fair
    share of new tokens, the perplexity of their choice, and the error relative to the variance."""
    torch.manual_seed(seed)
    centres, maps = 1.5 * torch.randn(64, WIDTH), torch.randn(64, WIDTH, WIDTH) * WIDTH**-0.5

    def tokens(count: int) -> tuple[Tensor, Tensor]:
        region = torch.randint(64, (count,))
        x = centres[region] + 0.5 * torch.randn(count, WIDTH)
        return x, torch.einsum("md,mde->me", x, maps[region])

    layer = Experts(shared)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        x, y = tokens(TOKENS)
        optimizer.zero_grad()
        F.mse_loss(layer(x)[0], y).backward()
        optimizer.step()
    x, y = tokens(64 * EXPERTS)
    with torch.no_grad():
        estimate, chosen = layer(x)
    counts = torch.bincount(chosen, minlength=EXPERTS)
    return {
        "usage": float((counts >= len(x) / EXPERTS / 10).float().mean()), "perplexity": stage_health(counts).perplexity,
        "error": float(F.mse_loss(estimate, y) / y.square().mean()),
    }  # fmt: skip


def summary(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, lowest and highest of every value."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: [round(x, 4) for x in (sum(v) / len(v), min(v), max(v))] for name, v in values.items()}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Codes used and error by dimension, a line for each map; bars from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    figure = Figure((9.6, 3.6), layout="tight")
    axes = figure.subplots(1, 2)
    labels = {"usage": "share of codes used", "error": "relative error"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for index, (maps, colour) in enumerate(zip(MAPS, COLOURS, strict=True)):
            mean, low, high = torch.tensor([row[name] for row in rows if row["map"] == maps]).t()
            bars, places = torch.stack([mean - low, high - mean]), torch.arange(len(DIMS)) + 0.05 * (index - 2)
            axis.errorbar(places, mean, bars, color=colour, marker="o", capsize=2, label=maps)
        axis.set_xticks(range(len(DIMS)), [str(dim) for dim in DIMS])
        axis.set(xlabel="dimensions of the codes", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, frameon=False)
    save_picture(figure, path)


def run(args: argparse.Namespace) -> int:
    """Run both toys and write what came out."""
    began = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    maps = [
        {"map": name, "dim": dim, **summary([follow(settings, dim, seed, args.steps) for seed in SEEDS])}
        for name, settings in MAPS.items() for dim in DIMS
    ]  # fmt: skip
    mixtures = [
        {"shared": shared, **summary([mixture(shared, seed, 2 * args.steps) for seed in SEEDS])}
        for shared in ("nothing", "router", "experts", "both")
    ]
    draw(maps, args.out / "maps.png")
    numbers = {"steps": args.steps, "seeds": SEEDS, "maps": maps, "mixture": mixtures}
    lines = json.dumps(numbers | {"cpu_seconds": round(time.process_time() - began)})
    write_text(args.out / "toys.json", lines.replace('{"map"', '\n {"map"').replace('{"shared"', '\n {"shared"') + "\n")
    return EXIT_OK


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--steps", type=int, default=500, help="of the codes; the experts take twice as many")
    torch.set_num_threads(1)
    sys.exit(run_command("toys.py", partial(run, parser.parse_args())))
