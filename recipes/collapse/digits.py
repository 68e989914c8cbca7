"""SimVQ where there is no codec: the quantizer of a small autoencoder of images, scikit-learn's handwritten digits.

    python recipes/collapse/digits.py [--quantizer simvq|vq] [--codes 1024] [--warmup 0] [--steps 1500] [--weight 0.1]

SimVQ starts by itself from the first batch. ``--quantizer vq`` is the usual table, for comparison. With ``--warmup`` the
first steps are without quantizer, and then either is matched to the latents. With too large a ``--weight`` of the
quantizer's loss the encoder shrinks its latents, with too small a one they outgrow the codes. Prints how many codes the
images use, and the reconstruction's error, also on images that were not trained on.
scikit-learn comes with librosa (the extra "eval"): 1,797 images of 8 x 8 pixels.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import sys

import torch
from torch import nn
from torch.nn import functional as F

from codec.errors import EXIT_OK, Parser, run_command
from codec.health import HealthMonitor
from codec.quantizers import QUANTIZERS, Quantizer, SimVQ

HELD_OUT = 297  # images
WIDTH = 64


def train(args: argparse.Namespace) -> int:
    """Train, then say what became of the codes."""
    from sklearn.datasets import load_digits

    torch.manual_seed(args.seed)
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16  # in [0, 1]
    held_out, images = images[torch.randperm(len(images))].split([HELD_OUT, len(images) - HELD_OUT])
    # images [B, 1, 8, 8] to latents [B, 32, 4, 4], and back
    down, inner = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    encode = nn.Sequential(down, nn.GELU(), inner, nn.GELU(), nn.Conv2d(WIDTH, 32, 1))
    outer, up = nn.Conv2d(32, WIDTH, 3, padding=1), nn.ConvTranspose2d(WIDTH, WIDTH, 4, stride=2, padding=1)
    decode = nn.Sequential(outer, nn.GELU(), up, nn.GELU(), nn.Conv2d(WIDTH, 1, 3, padding=1))
    build = SimVQ if args.quantizer == "simvq" else QUANTIZERS[args.quantizer]
    quantizer: Quantizer = build(dim=32, codebook_size=args.codes, codebook_dim=4)
    model = nn.ModuleList([encode, quantizer, decode])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(args.warmup + args.steps):
        batch = images[torch.randint(len(images), (64,))]
        latents = encode(batch)
        if step == args.warmup > 0:
            quantizer.initialize(encode(images))
        quantized, _, loss = quantizer(latents) if step >= args.warmup else (latents, None, 0.0)
        error = F.mse_loss(decode(quantized), batch)
        optimizer.zero_grad()
        (error + args.weight * loss).backward()
        optimizer.step()
    model.eval()
    for name, group in {"trained on": images, "held out": held_out}.items():
        with torch.no_grad(), HealthMonitor(quantizer) as health:
            error = F.mse_loss(decode(quantizer(encode(group)).quantized), group)
        print(f"{name}: error {error.item():.4f}\n{health}")
    return EXIT_OK


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--quantizer", choices=["simvq", "vq"], default="simvq")
    for name, default in {"codes": 1024, "warmup": 0, "steps": 1500, "seed": 0, "weight": 0.1}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    sys.exit(run_command("digits.py", lambda: train(args)))
