"""SimVQ here beside the SimVQ of vector-quantize-pytorch: codes used, CPU time and memory of a training step.

    pip install vector-quantize-pytorch
    python recipes/collapse/beside.py [--codes 8192 65536 262144] [--steps 200] [--mean 0]

Both get the same latents, a fixed slanted cloud in 16 dimensions, so that only W (and b) learn. Ours is also run without its
start from the first batch. Each line is measured in a process of its own.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import time

import torch
from torch import Tensor

from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.quantizers import SimVQ
from codec.quantizers.base import nearest

DIM = 16
BATCH = 256  # latents per step
MEASURED = 32_768  # new latents; no more codes than these can be used
THEIRS = "vector_quantize_pytorch"
NAMES = {"ours": "here", "unmatched": "here, `init=None`", "theirs": "vector-quantize-pytorch"}


def latents(count: int, mean: float) -> Tensor:
    """``[count, DIM]``: Gaussian, of standard deviations 1, 1/2, ..., 1/16 along fixed directions, the same mean in all."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    return torch.randn(count, DIM) / torch.arange(1, DIM + 1) @ turn + mean


def measure(name: str, codes: int, steps: int, mean: float) -> str:
    """Train one quantizer; a row of the table."""
    torch.manual_seed(0)
    if name == "theirs":
        quantizer = importlib.import_module(THEIRS).SimVQ(dim=DIM, codebook_size=codes)
    else:
        quantizer = SimVQ(DIM, codes, DIM, channel_first=False, init="first_batch" if name == "ours" else None)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps):
        batch = latents(BATCH, mean).requires_grad_()[None]  # [1, N, DIM], the only shape that theirs takes
        began = time.process_time()
        quantized, _, loss = quantizer(batch)
        optimizer.zero_grad()
        (loss + (quantized - mean).square().mean()).backward()  # the second: as from a decoder
        optimizer.step()
        times.append(1000 * (time.process_time() - began))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB on Linux, where it counts KiB
    new, table = latents(MEASURED, mean), quantizer.codebook.detach()
    found = nearest(new, table)
    used, error = len(found.unique()), (new - table[found]).square().sum() / (new - new.mean(dim=0)).square().sum()
    share, ms = f"{used:,} ({used / codes:.1%})", statistics.median(times)
    return f"| {codes:,} | {NAMES[name]} | {share} | {error:.3f} | {ms:.0f} | {memory:.0f} |"


def compare(args: argparse.Namespace) -> int:
    """Print the table."""
    if importlib.util.find_spec(THEIRS) is None:
        raise CodecError("needs the other package: pip install vector-quantize-pytorch")
    print("| V | SimVQ | codes used | error | CPU ms per step | MiB |\n|---|---|---|---|---|---|")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for codes in args.codes:
            for name in NAMES:
                print(pool.apply(measure, (name, codes, args.steps, args.mean)), flush=True)
    return EXIT_OK


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--codes", type=int, nargs="+", default=[8_192, 65_536, 262_144])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mean", type=float, default=0.0, help="of the latents, in each of the 16 dimensions")
    args = parser.parse_args()
    sys.exit(run_command("beside.py", lambda: compare(args)))
