"""Train a codec, from manifests to checkpoints. One script, many configurations.

    accelerate launch recipes/train.py --config recipes/libritts/simvq_8k.yaml
    accelerate launch recipes/train.py --config recipes/libritts/simvq_8k.yaml --resume
    python recipes/train.py --config recipes/libritts/debug.yaml --out runs/try --set phases.steps=60

Phases: autoencoder without quantizer, data-matched start of the codebooks, quantized, adversarial. A run can be killed
at any moment and goes on with --resume from its last checkpoint: every random choice is a function of the seed and the
step, so the weights come out the same to the bit (on one kind of CPU). recipes/export.py makes a model of a run.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # importing torch takes seconds, in which ctrl-C would end in a traceback
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted before training began\n"), os._exit(130)))

import torch
from torch import Tensor, nn
from tqdm import tqdm

from codec.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from codec.audio import AudioError, resample
from codec.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from codec.config import ConfigError, to_dict
from codec.data import SegmentConfig, SegmentDataset, read_record
from codec.discriminators import Discriminators
from codec.errors import one_line
from codec.files import written_whole
from codec.health import CodebookCounter, effective_dimension
from codec.losses import SpectralLoss
from codec.manifest import ManifestError, Record, read_manifest, summary
from codec.model import Codec, CodecOutput
from codec.optimizers import adamw, codec_optimizers, set_learning_rates
from codec.pretrained import DISCRIMINATORS, ModelError, find_model
from codec.recipe import TrainConfig, load_train_config
from codec.spectral import low_pass
from codec.tracking import Tracker
from codec.warm_start import take_codec, take_discriminators

try:
    import accelerate
    from accelerate.utils import broadcast  # where the package is missing, the folder beside this script has its name
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {one_line(error)}") from None

MATCHING_BATCHES = 8  # batches of latents that the codebooks are matched to
MATCHING_INDEX = 2**40  # where those segments lie in the stream: training never gets there
EXIT_NOTE = """exit codes: 0 done, or stopped by SIGTERM or ctrl-C with a checkpoint written (--resume goes on),
            1 an error, 2 bad usage, 130 interrupted before training began"""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what to change."""


MISTAKES = (ConfigError, CheckpointError, ManifestError, ModelError, AudioError, TrainingError)


@dataclass
class Networks:
    """What is trained. ``codec`` and ``judges`` are the bare modules, the ``*_step`` ones are prepared for many processes.

    ``optimizers`` are those of the codec, "optimizer" and perhaps "matrix_optimizer", and "judge_optimizer".
    ``quantizer_given`` says that the codebooks came with the weights and fit their latents already.
    """

    codec: Codec
    average: Codec
    judges: Discriminators
    optimizers: dict[str, torch.optim.Optimizer]
    codec_step: nn.Module
    judges_step: nn.Module
    quantizer_given: bool

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "average": self.average, "judges": self.judges}

    @property
    def codec_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for name, optimizer in self.optimizers.items() if name != "judge_optimizer"]


@dataclass
class Counters:
    """What a run remembers beside its weights."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    skipped_files: int = 0
    best: str | None = None
    best_loss: float = math.inf

    def meta(self) -> dict[str, Any]:
        """For a checkpoint; infinity is no JSON."""
        return {k: v for k, v in vars(self).items() if v != math.inf}


@dataclass
class StopSignal:
    """Set by SIGTERM, ctrl-C and the end of the time given: finish the step, save, leave."""

    deadline: float = math.inf  # on the monotonic clock
    asked: bool = False
    signals: tuple[int, ...] = field(default=(signal.SIGTERM, signal.SIGINT))

    def listen(self) -> None:
        for number in self.signals:
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def anywhere(self, accelerator: accelerate.Accelerator) -> bool:
        """Whether any process was asked to stop, so that all of them do."""
        asked = self.asked or time.monotonic() > self.deadline
        if accelerator.num_processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)


@dataclass
class Clock:
    """How fast training goes, and how much of the time it waits for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def lap(self, audio_seconds: float) -> dict[str, float]:
        """Speed since the last lap, over all processes."""
        now = time.perf_counter()
        elapsed = now - self.started
        share = self.waited / elapsed
        self.started, self.waited = now, 0.0
        return {"speed/audio_seconds_per_second": audio_seconds / elapsed, "speed/data_wait_share": share}


# ---- setting up -------------------------------------------------------------------------------------------------------


def build_networks(config: TrainConfig, accelerator: accelerate.Accelerator, init: str | None) -> Networks:
    """Networks and optimizers, the same on every process; ``init`` starts from an exported model.

    Of a model with another quantizer it takes the encoder and the decoder; its discriminators where they were exported too.
    """
    torch.manual_seed(config.seed)
    codec = Codec(config.model)
    quantizer_given = False
    if init is not None:
        quantizer_given = take_codec(codec, Codec.from_pretrained(init), init)
    judges = Discriminators(config.discriminator)
    if init is not None and config.phases.adversarial >= 0:
        take_discriminators(judges, find_model(init) / DISCRIMINATORS)
    codec, judges = codec.to(accelerator.device).train(), judges.to(accelerator.device).train()
    average = copy.deepcopy(codec).eval().requires_grad_(False)
    if accelerator.num_processes > 1:
        for filters in (p for p in codec.parameters() if p.ndim == 4):
            filters.register_hook(plainly_strided)
    optimizers = codec_optimizers(codec, config.optimizer) | {"judge_optimizer": adamw(judges, config.optimizer)}
    forward = torch.compile(codec) if config.compile else codec
    codec_step, judges_step, *prepared = accelerator.prepare(forward, judges, *optimizers.values())
    optimizers = dict(zip(optimizers, prepared, strict=True))
    return Networks(codec, average, judges, optimizers, codec_step, judges_step, quantizer_given)


def plainly_strided(gradient: Tensor) -> Tensor:
    """The same values with the usual strides.

    A depthwise filter's gradient takes those of its channels-last activations. In memory the two are one, as all but
    two dimensions have size 1, but the averaging over processes would warn of it.
    """
    return gradient.flatten().view(gradient.shape)


def leave_stopping_to_the_parent(_worker: int) -> None:
    """Ignore SIGTERM and ctrl-C in a reading process: they often reach the whole group, and the step wants its batch.

    The parent ends its readers through their queue; readers whose parent was killed end by themselves within seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_readers() -> None:
    """Kill the reading processes that an error has left: at exit Python would wait for them after a mere SIGTERM."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the DataLoader would report them as lost
    for process in multiprocessing.active_children():
        process.kill()


def batches(
    config: TrainConfig, dataset: SegmentDataset, first: int, rank: int, world: int
) -> Iterator[dict[str, Tensor]]:
    """This process's share of every batch from step ``first`` on, read ahead by worker processes."""
    share = config.data.batch_size // world
    steps = range(first, config.phases.steps)
    indices = (step * config.data.batch_size + rank * share + i for step in steps for i in range(share))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=share,
        sampler=list(indices),
        num_workers=config.data.workers,
        prefetch_factor=8 if config.data.workers else None,
        worker_init_fn=leave_stopping_to_the_parent,
    )
    return iter(loader)


@torch.no_grad()
def start_quantizer(networks: Networks, dataset: SegmentDataset, config: TrainConfig, device: torch.device) -> None:
    """Match the codebooks to the latents of segments that training does not see; the same on every process."""
    size = config.data.batch_size
    latents = []
    for batch in range(MATCHING_BATCHES):
        indices = range(MATCHING_INDEX + batch * size, MATCHING_INDEX + (batch + 1) * size)
        waveform = torch.stack([dataset[index]["waveform"] for index in indices]).to(device)
        latents.append(networks.codec.encoder(waveform))
    networks.codec.quantizer.initialize(torch.cat(latents))
    for tensor in networks.codec.quantizer.state_dict().values():
        broadcast(tensor)
    networks.average.quantizer.load_state_dict(networks.codec.quantizer.state_dict())


# ---- one step ---------------------------------------------------------------------------------------------------------


def train_step(
    networks: Networks,
    batch: dict[str, Tensor],
    spectral: SpectralLoss,
    config: TrainConfig,
    counters: Counters,
    accelerator: accelerate.Accelerator,
) -> tuple[dict[str, Tensor], CodecOutput]:
    """Discriminators first, then the codec, both on one forward pass. Returns scalars to log and that pass's output.

    The discriminators see no more of either speech than the recording's bandwidth: they would tell band-limited recordings
    by what decoded speech has above, and teach the decoder to be silent there.
    """
    waveform, weights = batch["waveform"], config.losses.weights
    quantize = counters.step >= config.phases.autoencoder
    adversarial = 0 <= config.phases.adversarial <= counters.step
    output: CodecOutput = networks.codec_step(
        waveform, quantize=quantize, quantizer_dropout=config.quantizer_dropout if quantize else 0.0
    )
    logged: dict[str, Tensor] = {}

    if adversarial:
        recorded, decoded = (
            low_pass(speech, batch["bandwidth"], config.model.sample_rate) for speech in (waveform, output.waveform)
        )
        judged = networks.judges_step(torch.cat([recorded, decoded.detach()]))
        real, fake = split_outputs(judged, len(waveform))
        loss = discriminator_loss(real, fake, config.losses.adversarial)
        logged["loss/discriminator"] = loss.detach()
        logged["gradient_norm/discriminator"] = update(
            loss, networks.judges_step, [networks.optimizers["judge_optimizer"]], config, counters, batch, accelerator
        )

    terms = spectral(output.waveform, waveform, batch["bandwidth"])
    if output.commitment_loss is not None and output.codebook_loss is not None:
        terms["commitment"] = output.commitment_loss.sum(dim=1).mean()
        terms["codebook"] = output.codebook_loss.sum(dim=1).mean()
    if adversarial:
        networks.judges.requires_grad_(False)
        with accelerator.autocast():
            with torch.no_grad():
                real = networks.judges(recorded)
            fake = networks.judges(decoded)
        networks.judges.requires_grad_(True)
        terms["adversarial"] = generator_loss(fake, config.losses.adversarial)
        terms["feature_matching"] = feature_matching_loss(real, fake)
    weighted = {name: weights[name] * term for name, term in terms.items()}
    total = torch.stack(list(weighted.values())).sum()
    if not quantize:  # every parameter stays in the graph, or processes would wait for gradients that never come
        total = total + 0.0 * torch.stack([p.sum() for p in networks.codec.quantizer.parameters()]).sum()
    logged |= {f"loss/{name}": term.detach() for name, term in terms.items()}
    logged |= {f"weighted/{name}": term.detach() for name, term in weighted.items()} | {"loss/total": total.detach()}
    norm = update(total, networks.codec_step, networks.codec_optimizers, config, counters, batch, accelerator)
    logged["gradient_norm/codec"] = norm
    if torch.isfinite(norm):
        update_average(networks, config, counters.step)
    return logged, output


def update(
    loss: Tensor,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
    counters: Counters,
    batch: dict[str, Tensor],
    accelerator: accelerate.Accelerator,
) -> Tensor:
    """Backward, clip, step; a non-finite gradient is skipped and counted. Returns the norm before clipping.

    The norm is that of the averaged gradient, so all processes skip together.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(module.parameters(), config.optimizer.clip_norm)
    assert isinstance(norm, Tensor)
    if torch.isfinite(norm):
        for optimizer in optimizers:
            optimizer.step()
        counters.bad_in_a_row = 0
        return norm.detach()
    counters.bad_steps += 1
    counters.bad_in_a_row += 1
    logging.warning("step %d skipped: gradient not finite; segments %s", counters.step, batch["index"].tolist())
    if counters.bad_in_a_row >= config.optimizer.max_bad_steps:
        raise TrainingError(
            f"{counters.bad_in_a_row} steps in a row had no finite gradient; resume from an earlier checkpoint with a lower "
            "optimizer.learning_rate or a longer optimizer.warmup_steps, and look at the segments named above"
        )
    return norm.detach()


def split_outputs(outputs: list[Any], batch: int) -> tuple[list[Any], list[Any]]:
    """The discriminators' outputs on recorded and on decoded speech, judged in one batch."""
    parts = []
    for half in (slice(None, batch), slice(batch, None)):
        parts.append([type(o)(o.logits[half], [f[half] for f in o.features]) for o in outputs])
    return parts[0], parts[1]


@torch.no_grad()
def update_average(networks: Networks, config: TrainConfig, step: int) -> None:
    """Exponential moving average of the weights, quicker at the beginning."""
    decay = min(config.optimizer.ema_decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(networks.average.parameters()), list(networks.codec.parameters()), 1 - decay)
    for kept, moved in zip(networks.average.quantizer.buffers(), networks.codec.quantizer.buffers(), strict=True):
        kept.copy_(moved)  # tables that are running averages already


# ---- looking at it ----------------------------------------------------------------------------------------------------


def read_speech(record: Record, sample_rate: int) -> Tensor:
    """A whole utterance ``[T]``."""
    samples, rate = read_record(record)
    return torch.from_numpy(resample(samples, rate, sample_rate))


@torch.no_grad()
def validate(
    codec: Codec,
    records: list[Record],
    spectral: SpectralLoss,
    quantize: bool,
    accelerator: accelerate.Accelerator,
) -> dict[str, float]:
    """Mean losses and codebook health over all utterances; every process takes its share, each utterance counts once."""
    rank, world = accelerator.process_index, accelerator.num_processes
    counter = CodebookCounter(codec.num_quantizers, codec.codebook_size)
    sums = torch.zeros(len(spectral.terms) + 1, dtype=torch.float64)
    for record in records[rank::world]:
        waveform = read_speech(record, codec.sample_rate).to(codec.device)[None, None]
        output = codec(waveform, quantize=quantize)
        bandwidth = torch.tensor([min(record.bandwidth, codec.sample_rate / 2)], device=codec.device)
        terms = spectral(output.waveform, waveform, bandwidth)
        sums += torch.tensor([*(float(terms[name]) for name in spectral.terms), 1.0], dtype=torch.float64)
        if output.codes is not None:
            counter.add(output.codes)
    total = accelerator.reduce(sums.float().to(accelerator.device), "sum").cpu()
    values = {f"valid/{name}": float(value / total[-1]) for name, value in zip(spectral.terms, total, strict=False)}
    values["valid/utterances"] = float(total[-1])
    if quantize:
        values |= codebook_scalars(counter, accelerator, "valid_codebook")
    return values


def codebook_scalars(counter: CodebookCounter, accelerator: accelerate.Accelerator, prefix: str) -> dict[str, float]:
    """Usage and perplexity of each stage over the frames counted by all processes."""
    counts = accelerator.reduce(counter.counts.to(accelerator.device), "sum").cpu()
    counter.counts = counts
    values: dict[str, float] = {}
    for index, stage in enumerate(counter.stages(), start=1):
        values |= {f"{prefix}/usage_{index}": stage.usage, f"{prefix}/perplexity_{index}": stage.perplexity}
        values[f"{prefix}/frames"] = float(stage.frames)
    return values


@torch.no_grad()
def show_examples(
    codec: Codec, records: list[Record], tracker: Tracker, quantize: bool, step: int, first: bool
) -> None:
    """Fixed utterances: the reference once, the reconstruction each time."""
    for index, record in enumerate(records):
        waveform = read_speech(record, codec.sample_rate).to(codec.device)
        if first:
            tracker.speech(f"{index}_reference", waveform.cpu(), codec.sample_rate, 0)
        made = codec(waveform[None, None], quantize=quantize).waveform[0, 0].clamp(-1, 1)
        tracker.speech(f"{index}_decoded", made.cpu(), codec.sample_rate, step)


# ---- the run ----------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    started = time.monotonic()
    config = load_train_config(args.config, args.set)
    if args.init is not None:  # an autoencoder already
        config = replace(config, phases=replace(config.phases, autoencoder=0))
    accelerator = accelerate.Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=args.cpu)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if config.data.batch_size % world:
        raise ConfigError(f"data.batch_size {config.data.batch_size} cannot be shared evenly by {world} processes")
    logging.basicConfig(format="%(message)s", level=logging.WARNING if rank == 0 else logging.ERROR)
    checkpoints = args.out / "checkpoints"
    resume = args.resume or (args.minutes is not None and checkpoints.exists())
    if not resume and checkpoints.exists():
        raise TrainingError(f"{args.out} holds a run already; continue it with --resume or choose another --out")

    records = [record for path in config.data.train for record in read_manifest(path)]
    valid = [record for path in config.data.valid for record in read_manifest(path)][: config.data.valid_limit or None]
    data = config.data
    segments = SegmentConfig(data.segment_seconds, data.gain_db, data.max_bad_fraction, data.max_speaker_hours)
    dataset = SegmentDataset(records, config.model.sample_rate, segments, config.seed)
    networks = build_networks(config, accelerator, args.init)
    losses = config.losses
    spectral = SpectralLoss(
        config.model.sample_rate,
        losses.windows,
        losses.mels,
        losses.phase_windows,
        losses.phase_exponent,
        losses.phase_scale,
        losses.envelope_windows,
        losses.envelope_bands,
    ).to(device)
    counters = Counters()
    if resume:
        meta = load_checkpoint(latest_checkpoint(checkpoints), networks.modules, networks.optimizers)
        counters = Counters(**meta)
    if counters.step >= config.phases.steps:
        if rank == 0:
            print(
                f"nothing left to do: {args.out} is at step {counters.step} and phases.steps is {config.phases.steps}; "
                "raise it to train on, as with --set phases.steps=" + str(2 * counters.step)
            )
        accelerator.end_training()
        return 0

    tracker = None
    if rank == 0:
        describe_run(args.out, config, records, valid)
        tracker = Tracker(args.out, args.logger, counters.step)
        tracker.text("config", json.dumps(to_dict(config), indent=1))
    stop = StopSignal(started + 60 * args.minutes if args.minutes else math.inf)
    stop.listen()

    def save() -> None:
        if rank == 0:
            save_checkpoint(checkpoints, counters.step, networks.modules, networks.optimizers, counters.meta())
            prune_checkpoints(checkpoints, config.log.keep_checkpoints, counters.best)
        accelerator.wait_for_everyone()

    counter = CodebookCounter(config.model.quantizer.num_quantizers, config.model.quantizer.codebook_size)
    stream = batches(config, dataset, counters.step, rank, world)
    bar = tqdm(total=config.phases.steps, initial=counters.step, unit=" step", disable=None if rank == 0 else True)
    shown = False
    clock = Clock()
    while counters.step < config.phases.steps and not stop.anywhere(accelerator):
        with clock.waiting():
            batch = {name: value.to(device, non_blocking=True) for name, value in next(stream).items()}
        counters.skipped_files += int(batch["skipped"].sum())
        if counters.step == config.phases.autoencoder and not networks.quantizer_given:
            start_quantizer(networks, dataset, config, device)
        share = config.learning_rate(counters.step)
        set_learning_rates(networks.optimizers, config.optimizer, share)
        torch.manual_seed(hash((config.seed, counters.step, rank)))
        logged, output = train_step(networks, batch, spectral, config, counters, accelerator)
        counters.step += 1
        bar.update()

        if output.codes is not None:
            counter.add(output.codes)
        if counters.step % config.log.scalars_every == 0:
            scalars = mean_over_processes(logged, accelerator)
            if output.codes is not None:
                scalars |= codebook_scalars(counter, accelerator, "codebook")
                counter = CodebookCounter(*counter.counts.shape)
            scalars |= {
                "latents/effective_dimension": effective_dimension(output.latents.transpose(1, 2).flatten(0, 1))
            }
            scalars |= {"learning_rate": share * config.optimizer.learning_rate, "bad_steps": counters.bad_steps}
            scalars |= {"skipped_files": counters.skipped_files}
            scalars |= clock.lap(config.log.scalars_every * config.data.batch_size * config.data.segment_seconds)
            report(tracker, bar, counters.step, scalars)
        if counters.step % config.log.valid_every == 0 or counters.step == config.phases.steps:
            quantize = counters.step > config.phases.autoencoder
            values = validate(networks.average, valid, spectral, quantize, accelerator)
            report(tracker, bar, counters.step, values)
            if tracker is not None and args.logger != "none":
                examples = valid[: config.log.audio_examples]
                show_examples(networks.average, examples, tracker, quantize, counters.step, not shown)
                shown = True
            if quantize and values["valid/mel"] + values["valid/stft"] < counters.best_loss:
                counters.best_loss = values["valid/mel"] + values["valid/stft"]
                counters.best = f"step_{counters.step:08d}"
                save()
            clock = Clock()  # validation is not training time
        if counters.step % config.log.checkpoint_every == 0:
            save()
    save()
    bar.close()
    if tracker is not None:
        tracker.close()
        if counters.step < config.phases.steps:
            how = "the same command" if args.minutes else "the same command with --resume"
            print(f"stopped at step {counters.step}: {checkpoints}; {how} goes on from there")
        else:
            print(f"done at step {counters.step}: {checkpoints}")
    accelerator.end_training()
    return 0


def mean_over_processes(logged: dict[str, Tensor], accelerator: accelerate.Accelerator) -> dict[str, float]:
    """Scalars of this step, averaged over processes."""
    stacked = accelerator.reduce(torch.stack([value.float() for value in logged.values()]), "mean")
    return dict(zip(logged, stacked.tolist(), strict=True))


def report(tracker: Tracker | None, bar: tqdm[Any], step: int, values: dict[str, float]) -> None:
    """Record everything; show the main numbers behind the bar on a terminal, as a line otherwise. First process only."""
    if tracker is None:
        return
    tracker.scalars(values, step)
    main = {k.split("/")[-1]: f"{v:.4g}" for k, v in values.items() if k.startswith(("loss/", "valid/", "speed/"))}
    if bar.disable:
        print(f"step {step}: " + ", ".join(f"{k} {v}" for k, v in main.items()), flush=True)
    else:
        bar.set_postfix(main)


def describe_run(folder: Path, config: TrainConfig, records: list[Record], valid: list[Record]) -> None:
    """Write what was trained on what: config.json and data.json, for export and for whoever finds the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, float] = {}
    for record in records:
        key = " | ".join((record.source or "unnamed source", record.licence or "licence unknown"))
        sources[key] = sources.get(key, 0.0) + record.duration / 3600
    facts = {"train": summary(records), "valid": summary(valid), "hours_by_source": sources}
    for name, values in (("config.json", to_dict(config)), ("data.json", facts)):
        with written_whole(folder / name) as temporary:
            temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sentence(error: Exception) -> str:
    """The message on one line, without the traceback that the DataLoader puts before it where a reading process failed."""
    _, wrapped, traceback = str(error).partition("\nOriginal Traceback")
    return traceback.strip().splitlines()[-1].partition(": ")[2] if wrapped else one_line(error)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_NOTE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        required=True,
        type=Path,
        metavar="YAML",
        help="what to train on what, as recipes/libritts/debug.yaml",
    )
    parser.add_argument(
        "--out", type=Path, help="the run's folder, for checkpoints and logs (default: runs/NAME_OF_CONFIG)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override fields of the configuration, as --set phases.steps=1000 data.workers=2",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run's last checkpoint (otherwise the same command)"
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="start from an exported model (fine-tuning), without autoencoder phase; of one with another quantizer it takes "
        "encoder and decoder, of one exported with them the discriminators; the configuration may have more blocks",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="a leg of a long run: from the last checkpoint, if there is one, for so many minutes; the same command again "
        "is the next leg",
    )
    parser.add_argument("--logger", choices=["tensorboard", "none"], default="tensorboard")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU that is there")
    args = parser.parse_args()
    if args.minutes is not None and args.minutes <= 0:
        parser.error("--minutes must be positive")
    args.out = args.out or Path("runs") / args.config.stem
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on an exception can tidy up
        return train(args)
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        return 130
    except (*MISTAKES, OSError, ModuleNotFoundError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    finally:
        end_readers()


if __name__ == "__main__":
    sys.exit(main())
