"""Teach a model's encoder to look less far ahead, so that streams wait less; codebooks and decoder stay, stored on 8 bits.

    python recipes/distil.py speech-24khz models/fast --manifest manifests/train.jsonl --look-ahead 2 --minutes 115

The student's latents follow those of the model, as the lookups of all its stages see them: the error is
``sum_k |W_k (z - z')|^2``, with ``W_k`` the matrix of a stage's ``project_in`` at norm 1, over the same of z about its mean.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import copy
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from codec.corpus.manifest import read_manifest
from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.model import Codec
from codec.pretrained import shipped_name
from codec.training.config import DataConfig, OptimizerConfig
from codec.training.data import SegmentDataset
from codec.training.networks import JointCodec, adamw, follow, set_learning_rates, start_codec

DATA = DataConfig(batch_size=8, segment_seconds=2.0, normalize=True, gain_db=(-8.5, 8.5), max_speaker_hours=0.25)
LEARNING_RATE, WARMUP, HOLD = 6e-4, 50, 0.4  # peak; steps up to it; share of the time at it, before the rate falls
DECAY = 0.999  # of the running average of the weights, which is what is saved


def distil(args: argparse.Namespace) -> int:
    """Train for so many minutes, or until ctrl-C, then save the student's running average."""
    if (args.out / "config.json").exists():
        raise CodecError(f"{args.out} holds a model; choose another folder")
    teacher = Codec.from_pretrained(args.model, args.device).requires_grad_(False)
    encoder = replace(teacher.config.encoder, look_ahead=args.look_ahead)
    student = JointCodec(replace(teacher.config, encoder=encoder))
    start_codec(student, teacher, args.model)
    student.to(args.device)
    average = copy.deepcopy(student.encoder)
    segments = SegmentDataset(read_manifest(args.manifest), teacher.sample_rate, DATA, seed=83)
    args.out.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is known before the long work
    optimizer = adamw(student.encoder.parameters(), OptimizerConfig(), LEARNING_RATE)
    stages = getattr(teacher.quantizer, "stages", [teacher.quantizer])
    same = torch.eye(teacher.config.latent_dim)  # the matrix of a stage without projection
    maps = [getattr(stage.project_in, "weight", same).to(args.device) for stage in stages]
    seen = torch.cat([matrix / matrix.norm() for matrix in maps])  # [sum of d, D]

    def power(z: Tensor) -> Tensor:
        return (seen @ z).square().mean()

    start, step = time.monotonic(), 0
    try:
        while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            falling = 0.5 * (1 + math.cos(math.pi * max(progress - HOLD, 0) / (1 - HOLD)))
            set_learning_rates({"encoder": optimizer}, min(1, (step + 1) / WARMUP) * max(falling, 0.01))
            indices = range(step * DATA.batch_size, (step + 1) * DATA.batch_size)
            waveform = torch.stack([segments[index]["waveform"] for index in indices]).to(args.device)
            target = teacher.encoder(waveform)
            loss = power(student.encoder(waveform) - target) / power(target - target.mean(dim=(0, 2), keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.encoder.parameters(), 1.0)
            optimizer.step()
            follow(average, student.encoder, DECAY, step)
            step += 1
            if step % 50 == 0:
                print(f"step {step}: error {loss.item():.5f} of the latents' variance", flush=True)
    except KeyboardInterrupt:
        if not step:
            raise
    student.encoder = average
    student.save_pretrained(args.out, bits=8, base=shipped_name(args.model))
    print(f"done at step {step}: {args.out}")
    return EXIT_OK


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="shipped model, model folder, or hub id owner/name")
    parser.add_argument("out", type=Path, help="the folder of the new model")
    parser.add_argument("--manifest", required=True, help="speech to learn from; see data/README.md")
    parser.add_argument("--look-ahead", type=int, required=True, metavar="FRAMES", help="of the new encoder")
    parser.add_argument("--minutes", type=float, default=120.0, help="of training (default: %(default)g)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error("--minutes must be positive")
    return run_command("distil.py", lambda: distil(args))


if __name__ == "__main__":
    sys.exit(main())
