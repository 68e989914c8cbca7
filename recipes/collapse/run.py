"""One linear layer against collapse: the same codec trained with different quantizers, from one starting point.

    python recipes/collapse/run.py --manifest manifests/train.jsonl      # essential.yaml
    python recipes/collapse/run.py --manifest manifests/train.jsonl --config recipes/collapse/full_gpu.yaml --device cuda

A cell of the study is one quantizer, one codebook size, one start and one seed; each leaves one JSON file under --out, and
a cell that has its file is not run again: a killed study goes on where it was. A file of other settings or other speech
stops the study. recipes/collapse/report.py makes the tables and plots of the files.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import functools
import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from codec.config import CodecConfig, ConfigError, QuantizerConfig, from_dict, require, to_dict
from codec.corpus.manifest import ManifestError, Record, read_manifest, summary
from codec.errors import CodecError, Parser, run_command
from codec.evaluation.metrics import MetricError, Pair, mel_distance, pesq_wb
from codec.files import atomic_write, write_text
from codec.health import CodebookCounter, effective_dimension, stage_health
from codec.model import Codec
from codec.quantizers import build_quantizer
from codec.spectral import log_mel, planes
from codec.training.config import LARGEST, SEEDS, Bounded, DataConfig, LossConfig, bounded, read_yaml
from codec.training.data import SegmentDataset
from codec.training.losses import SpectralLoss
from codec.weights import Outline

HERE = Path(__file__).parent
HELD_OUT_INDEX = 2**40  # where the measured segments lie in the stream; training never gets there
CACHE_BYTES = 2**31  # of training segments kept in memory: all of a small study's
STARTS = {  # how long the autoencoder trains alone (0: not, 1: the warm-up, 2: all along); is the table matched then?
    "scratch": (0, False), "first_batch": (0, True), "default": (1, False), "matched": (1, True), "after": (2, True),
}  # fmt: skip
WEIGHTS = {"mel": 1.0, "stft": 1.0, "commitment": 0.1, "codebook": 0.4}


@dataclass(frozen=True)
class CellGroup(Bounded):
    """Cells: every quantizer with every codebook size, start and seed, in this order of loops, seeds outermost."""

    quantizers: tuple[str, ...]
    codebook_sizes: tuple[int, ...] = field(metadata={"bounds": (2, 2**32 - 1)})
    starts: tuple[str, ...] = ("default",)
    seeds: tuple[int, ...] = bounded((0,), *SEEDS)


@dataclass(frozen=True)
class StudyConfig(Bounded):
    """The study.

    Attributes:
        model: encoder and decoder; its quantizer is replaced by each of ``quantizers``.
        quantizers: name in the tables -> settings; codebook_size comes from the cell.
        cells: what is run, group after group.
        batch_size, segment_seconds: of training.
        warmup: steps without quantizer, shared by all cells of a seed.
        steps: training steps with quantizer (starts "default" and "matched"); "scratch" and "first_batch" train
            warmup + steps with it, "after" as many without, and then no more.
        learning_rate: peak, of AdamW without weight decay: linear rise over ``ramp`` steps, then cosine to 1 %.
        weights: of the loss terms mel, stft, commitment, codebook; those left out keep the defaults of ``WEIGHTS``.
        held_out: one speaker in so many is kept for measuring.
        measure_segments, measure_seconds: held-out speech that codes are counted on.
        listen_segments: of these so many are decoded for mel distance and PESQ.
        match_segments: training segments whose latents a matched start is taken from; more where V asks for more latents.
    """

    model: CodecConfig
    quantizers: dict[str, QuantizerConfig]
    cells: tuple[CellGroup, ...]
    batch_size: int = bounded(8, 1)
    segment_seconds: float = bounded(0.5, 0.001, 3600)
    warmup: int = bounded(200, 0)
    steps: int = bounded(400, 1)
    learning_rate: float = bounded(1e-3, 1e-15, 10)
    ramp: int = bounded(50, 1)
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS), metadata={"bounds": (0, LARGEST)})
    held_out: int = bounded(10, 1)
    measure_segments: int = bounded(400, 1)
    measure_seconds: float = bounded(4.0, 0.001, 3600)
    listen_segments: int = bounded(40, 0)
    match_segments: int = bounded(400, 0)
    RETIRED: ClassVar[dict[str, int]] = {"window": 50}  # in configurations of before

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(self.weights.keys() - WEIGHTS.keys())
        require(not unknown, f"weights: unknown term {', '.join(unknown)}; there are {', '.join(WEIGHTS)}")
        object.__setattr__(self, "weights", WEIGHTS | self.weights)
        require(bool(cells_of(self)), "cells: there are none")
        for cell in cells_of(self):  # all, before the first of them trains
            require(cell.quantizer in self.quantizers, f"cell {cell.name}: {cell.quantizer} is not in quantizers")
            require(cell.start in STARTS, f"cell {cell.name}: {cell.start} is no start; there are {', '.join(STARTS)}")
            quantizer = replace(self.quantizers[cell.quantizer], codebook_size=cell.codebook_size)
            try:
                with Outline():
                    build_quantizer(quantizer, self.model.latent_dim)
            except CodecError as error:
                raise ConfigError(f"cell {cell.name}: {error}") from None


@dataclass(frozen=True)
class Cell:
    """One training run of the study."""

    quantizer: str
    codebook_size: int
    start: str
    seed: int

    @property
    def name(self) -> str:
        """Of the result file, without suffix."""
        return f"{self.quantizer}-{self.codebook_size}-{self.start}-seed{self.seed}"


def load_study(path: Path) -> StudyConfig:
    """Read a study's YAML file.

    Raises:
        ConfigError: not YAML, unknown key, wrong type, a cell of an unknown quantizer.
    """
    values = read_yaml(path)
    try:
        return from_dict(StudyConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def cells_of(config: StudyConfig) -> list[Cell]:
    """All cells in the order of the file, each once."""
    loops = (product(g.seeds, g.codebook_sizes, g.starts, g.quantizers) for g in config.cells)
    return list(dict.fromkeys(Cell(name, size, start, seed) for seed, size, start, name in chain(*loops)))


def is_held_out(record: Record, one_in: int) -> bool:
    """Whether the utterance's speaker (where unknown: the utterance) is kept for measuring; of the name alone."""
    name = record.speaker or record.id
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") % one_in == 0


class Study:
    """What the cells share: data, the start of each seed, losses. One instance runs many cells."""

    def __init__(self, name: str, config: StudyConfig, records: Sequence[Record], out: Path, device: str) -> None:
        self.name, self.config, self.out, self.device = name, config, out, device
        held = [record for record in records if is_held_out(record, config.held_out)]
        kept = [record for record in records if not is_held_out(record, config.held_out)]
        if not held or not kept:
            raise ManifestError("too few speakers: none, or all, are held out; set held_out (one in so many) otherwise")
        self.data = {"train": summary(kept), "measured": summary(held)}
        self.speech = [(record.id, record.num_samples, record.speaker, record.bandwidth_hz) for record in records]
        rate = config.model.sample_rate
        self._train = functools.partial(SegmentDataset, kept, rate, DataConfig(segment_seconds=config.segment_seconds))
        measured = DataConfig(segment_seconds=config.measure_seconds, gain_db=(0.0, 0.0))
        self._held = SegmentDataset(held, rate, measured, seed=0)
        size = 4 * config.batch_size * round(config.segment_seconds * rate)
        self.batch = functools.lru_cache(CACHE_BYTES // size)(self._batch)  # all cells of a seed see the same batches
        self.loss = SpectralLoss(rate, LossConfig(windows=(128, 256, 512, 1024), mels=(16, 32, 64, 80))).to(device)

    def _batch(self, seed: int, step: int) -> list[Tensor]:
        """Waveforms ``[B, 1, T]`` and bandwidths ``[B]`` of a training step."""
        dataset, size = self._train(seed), self.config.batch_size
        items = [dataset[index] for index in range(step * size, (step + 1) * size)]
        return [torch.stack([item[name] for item in items]) for name in ("waveform", "bandwidth")]

    @functools.cached_property
    def held_out(self) -> Tensor:
        """The measured speech, ``[S, 1, T]``, the same for every cell and seed."""
        return torch.stack([self._held[HELD_OUT_INDEX + i]["waveform"] for i in range(self.config.measure_segments)])

    def fit(self, codec: Codec, seed: int, steps: range, quantize: bool) -> Iterator[tuple[int, dict[str, float], Any]]:
        """Train in place; yields step, losses and codes after every step."""
        config = self.config
        optimizer = torch.optim.AdamW(codec.parameters(), lr=config.learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
        codec.train()
        for done, step in enumerate(steps):
            cosine = 0.5 * (1 + math.cos(math.pi * done / len(steps)))
            ends = steps.stop == config.warmup + config.steps  # the warm-up does not: its rate stays up
            share = min(1.0, (done + 1) / config.ramp) * ((0.01 + 0.99 * cosine) if ends else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * share
            waveform, bandwidth = (part.to(self.device) for part in self.batch(seed, step))
            output = codec(waveform, quantize=quantize)
            terms = self.loss(output.waveform, waveform, bandwidth)
            if quantize:
                terms["commitment"] = output.commitment_loss.sum(1).mean()
                terms["codebook"] = output.codebook_loss.sum(1).mean()
            total = sum(config.weights[name] * term for name, term in terms.items())
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            yield step, {name: float(term.detach()) for name, term in terms.items()}, output.codes

    def warm_weights(self, seed: int, steps: int) -> dict[str, Tensor]:
        """Encoder and decoder of a seed after steps without quantizer, which are trained once and kept in a file."""
        torch.manual_seed(seed)
        codec = Codec(replace(self.config.model, quantizer=QuantizerConfig(kind="vq", codebook_size=2, codebook_dim=1)))
        path = self.out / f"warmup-{self.hashed(start=steps)}-seed{seed}.safetensors"
        if not path.is_file():
            codec.to(self.device)
            for step, losses, _ in self.fit(codec, seed, range(steps), quantize=False):
                if step % 50 == 0:
                    print(f"warm-up seed {seed} step {step}: mel {losses['mel']:.3f}", flush=True)
            tensors = {k: v.cpu() for k, v in codec.state_dict().items() if not k.startswith("quantizer.")}
            with atomic_write(path) as temporary:
                save_file(tensors, temporary)
        return load_file(path)

    def first_step(self, cell: Cell) -> int:
        """The step from which on the cell's codec is quantized."""
        return (0, self.config.warmup, self.config.warmup + self.config.steps)[STARTS[cell.start][0]]

    def build(self, cell: Cell) -> Codec:
        """The cell's codec at its start."""
        config = self.config
        quantizer = replace(config.quantizers[cell.quantizer], codebook_size=cell.codebook_size)
        torch.manual_seed(cell.seed)
        codec = Codec(replace(config.model, quantizer=quantizer), name=cell.name)
        missing, foreign = codec.load_state_dict(self.warm_weights(cell.seed, self.first_step(cell)), strict=False)
        assert not foreign and all(name.startswith("quantizer.") for name in missing)
        codec.to(self.device)
        if STARTS[cell.start][1]:
            samples = self.batch(cell.seed, 0)[0].shape[-1]
            segments = max(config.match_segments, -(-cell.codebook_size // codec.num_frames(samples)))
            steps, fill = range(-(-segments // config.batch_size)), -samples % codec.hop_length
            with torch.no_grad():
                waveforms = (F.pad(self.batch(cell.seed, step)[0].to(self.device), (0, fill)) for step in steps)
                codec.quantizer.initialize(torch.cat(list(map(codec.encoder, waveforms))))
        return codec

    def decides(self, cell: Cell) -> str:
        """A hash of everything that a cell's result depends on but the machine."""
        return self.hashed(quantizer=to_dict(self.config.quantizers[cell.quantizer]))

    def hashed(self, **what: Any) -> str:
        """A hash of the speech, of the settings of all cells, and of ``what``."""
        left_out = ("cells", "quantizers")
        values = {key: value for key, value in to_dict(self.config, retired=True).items() if key not in left_out}
        values |= {"data": self.speech, **what}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and measure one cell; the result is plain values."""
        config, began = self.config, time.process_time()
        codec = self.build(cell)
        steps = range(self.first_step(cell), config.warmup + config.steps)
        points = []
        for step, losses, codes in self.fit(codec, cell.seed, steps, quantize=True):
            used = len(codes[:, 0].unique())
            points.append((step, used, round(losses["mel"], 4), float(f"{losses['commitment']:.4g}")))
        names = ("step", "codes_in_step", "mel", "commitment")
        curve = {name: [point[i] for point in points] for i, name in enumerate(names)}
        measured = self.measure(codec)
        return {
            "study": self.name, "quantizer": cell.quantizer, "codebook_size": cell.codebook_size,
            "start": cell.start, "seed": cell.seed,
            "settings": to_dict(codec.config.quantizer), "steps": len(steps), "first_step": steps.start,
            "batch_size": config.batch_size, "segment_seconds": config.segment_seconds, "weights": config.weights,
            "parameters": sum(p.numel() for p in codec.parameters() if p.requires_grad), "data": self.data,
            "cpu_seconds": round(time.process_time() - began, 1),
            "machine": f"{platform.machine()} {self.device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "decides": self.decides(cell), "measured": measured, "curve": curve,
        }  # fmt: skip

    @torch.no_grad()
    def measure(self, codec: Codec) -> dict[str, Any]:
        """Codebook health and quality on the held-out speech."""
        config, rate = self.config, codec.sample_rate
        codec.eval()
        counter = CodebookCounter(codec.num_quantizers, codec.codebook_size)
        latents, chosen, error, power = [], [], 0.0, 0.0
        scores: dict[str, list[float]] = {"mel": [], "pesq": [], "mel_continuous": [], "pesq_continuous": []}
        failed = 0
        for start in range(0, len(self.held_out), 8):
            waveform = self.held_out[start : start + 8]
            z = codec.encoder(F.pad(waveform, (0, -waveform.shape[-1] % codec.hop_length)).to(self.device))
            output = codec.quantizer(z)
            counter.add(output.codes)
            error += float((output.quantized - z).square().sum())
            power += float((z - z.mean(dim=(0, 2), keepdim=True)).square().sum())
            if start < 80:
                latents.append(z)
                chosen.append(output.quantized)
            if start < config.listen_segments:
                played = waveform[: config.listen_segments - start, 0]
                for kind, carried in (("", output.quantized), ("_continuous", z)):
                    decoded = codec.decoder(carried[: len(played)])[:, 0, : played.shape[-1]].cpu()
                    for x, y in zip(played.numpy(), decoded.numpy(), strict=True):
                        try:
                            pair = Pair(x, y, rate)
                            values = {"mel": mel_distance(pair), "pesq": pesq_wb(pair)}
                        except MetricError:
                            failed += not kind
                            continue
                        for name, value in values.items():
                            scores[name + kind].append(value)
        z, q = (torch.cat(parts).transpose(1, 2).flatten(0, 1) for parts in (latents, chosen))  # [M, D]
        table = getattr(codec.quantizer, "codebook", None)
        return {
            "stages": [vars(stage_health(counts)) for counts in counter.counts],
            "quantization_error": error / max(power, 1e-12),
            "effective_dimension": {
                "latents": effective_dimension(z),
                "quantized": effective_dimension(q),
                "codebook": effective_dimension(table) if isinstance(table, Tensor) else None,
            },
            "directions": self.directions(codec, latents[0][:4], z, q),  # heard in four segments
            **{name: float(np.mean(values)) if values else None for name, values in scores.items()},
            "scored": len(scores["pesq"]), "not_scored": failed,
        }  # fmt: skip

    def directions(self, codec: Codec, few: Tensor, latents: Tensor, quantized: Tensor) -> dict[str, list[float]]:
        """The principal directions of latents ``[M, D]``, largest first, and what becomes of each.

        Args:
            codec: its decoder says what is heard.
            few: latents ``[S, D, N]`` of a few segments, for it.
            latents, quantized: of many frames, ``[M, D]``.

        Returns:
            ``variance`` of the latents; ``error``, what the best linear map of the quantized latents leaves of it (so that
            FSQ, whose output need not lie at the latents, can stand beside the others); ``heard``, the mean squared change
            of the decoded log-mel spectrum for a change by the latents' whole spread, from one of a tenth of it.
        """
        z, q = latents - latents.mean(dim=0), quantized - quantized.mean(dim=0)
        values, vectors = torch.linalg.eigh((z.t() @ z / len(z)).double())
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1).float()
        left = (z - q @ (torch.linalg.pinv(q) @ z)) @ vectors
        noise = torch.randn(len(few), 1, few.shape[2], generator=torch.Generator().manual_seed(0)).to(few)
        filters = self.loss.get_buffer("filters_512")

        def spectrum(carried: Tensor) -> Tensor:
            return log_mel(planes(codec.decoder(carried)[:, 0], 512), filters)

        plain = spectrum(few)
        moves = (0.1 * values.sqrt()).to(few)[:, None] * vectors.t()  # [D, D]
        heard = [100 * (spectrum(few + move[:, None] * noise) - plain).square().mean() for move in moves]
        columns = {"variance": values, "error": left.square().mean(dim=0), "heard": torch.stack(heard)}
        return {name: [float(f"{value:.4g}") for value in column.tolist()] for name, column in columns.items()}


def run_study(args: argparse.Namespace) -> int:
    """Run the cells that have no result yet, make the report; returns the exit code."""
    args.out.mkdir(parents=True, exist_ok=True)
    config = load_study(args.config)
    cells = [cell for cell in cells_of(config) if args.only in cell.name]
    if not cells:
        raise ConfigError(f"--only {args.only}: no cell of {args.config} has that in its name")
    records = [record for path in args.manifest for record in read_manifest(path)]
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device {args.device}: torch {torch.__version__} has none here; take cpu") from None
    study = Study(args.config.stem, config, records, args.out, args.device)
    for cell in cells:
        path = args.out / f"{cell.name}.json"
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if study.decides(cell) not in text or not text.endswith("}\n"):  # as a whole file does
                raise ConfigError(f"{path} is damaged, or of other settings or other speech; choose another --out")
            continue
        result = study.run(cell)
        write_text(path, json.dumps(result) + "\n")
        health = "usage {usage:.4f}, perplexity {perplexity:.0f}".format(**result["measured"]["stages"][0])
        print(f"{cell.name}: {health}, mel {result['measured']['mel']}, {result['cpu_seconds']:.0f} CPU s", flush=True)
    return subprocess.run([sys.executable, str(HERE / "report.py"), str(args.out)]).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="speech of several speakers")
    parser.add_argument("--config", type=Path, default=HERE / "essential.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"), help="results; default runs/collapse")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cells whose name holds TEXT")
    args = parser.parse_args(argv)
    return run_command("run.py", lambda: run_study(args), "the same command goes on after the last whole cell")


if __name__ == "__main__":
    sys.exit(main())
