"""Train a codec, from manifests to checkpoints. One script, many configurations.

    accelerate launch recipes/train.py --config recipes/libritts/simvq_8k.yaml
    accelerate launch recipes/train.py --config recipes/libritts/simvq_8k.yaml --resume
    python recipes/train.py --config recipes/libritts/debug.yaml --out runs/try --set phases.steps=60

Phases: autoencoder without quantizer, data-matched start of the codebooks, quantized, adversarial. A run can be killed
at any moment and goes on with --resume from its last checkpoint: every random choice is a function of the seed and the
step, so the weights come out the same to the bit (on one kind of CPU). recipes/export.py makes a model of a run.
"""

from __future__ import annotations

import codec.scripts  # noqa: F401  first: it reports packages that the other imports lack

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from codec.config import ConfigError, to_dict
from codec.corpus.manifest import Record, summary
from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.files import write_json, write_text
from codec.health import CodebookCounter, effective_dimension
from codec.model import CodecOutput
from codec.spectral import low_pass
from codec.training.checkpoint import CHECKPOINTS, load_checkpoint, prune_checkpoints, save_checkpoint, start_from
from codec.training.config import TrainConfig, load_train_config
from codec.training.data import SegmentDataset, batches, end_readers, read_manifests
from codec.training.losses import SpectralLoss, discriminator_loss, feature_matching_loss, generator_loss
from codec.training.networks import Networks, build_networks, set_learning_rates, start_quantizer, update_average
from codec.training.progress import Clock, Counters, StopSignal, of_every_process
from codec.training.tracking import Tracker, check_readable, codebook_scalars, show_examples, validate

if TYPE_CHECKING:
    from accelerate import Accelerator

EXIT_NOTE = """exit codes: 0 done, or stopped by ctrl-C, SIGTERM or a closed terminal with a checkpoint written, from
            which --resume goes on, 1 an error, 2 bad usage, 130 interrupted before training began"""


@dataclass
class Run:
    """A training run as one process sees it.

    ``init`` names the model that it began with, ``changes`` are settings that differ from those before. ``tracker`` (first
    process only) and ``bar`` come when training begins. ``saved_step``: of the last checkpoint. ``shown``: references were.
    """

    config: TrainConfig
    accelerator: Accelerator
    folder: Path
    networks: Networks
    spectral: SpectralLoss
    dataset: SegmentDataset
    valid: list[Record]
    counters: Counters
    init: str | None = None
    changes: Sequence[str] = ()
    tracker: Tracker | None = None
    bar: tqdm[Any] | None = None
    saved_step: int = -1
    shown: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_step == self.counters.step:
            return
        self.saved_step = self.counters.step
        if self.accelerator.is_main_process:
            networks, meta = self.networks, vars(self.counters)
            save_checkpoint(self.checkpoints, self.counters.step, networks.modules, networks.optimizers, meta)
            prune_checkpoints(self.checkpoints, self.config.log.keep_checkpoints, self.counters.best)
        self.accelerator.wait_for_everyone()


# ---- the run ----------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Set up, continue from a checkpoint if there is one, and make step after step. Returns the exit code."""
    stop = StopSignal(time.monotonic() + 60 * args.minutes if args.minutes else math.inf)
    run = set_up(args)
    config, counters, networks, accelerator = run.config, run.counters, run.networks, run.accelerator
    if config.phases.progress(counters.step, counters.seconds) >= 1:
        if accelerator.is_main_process:
            over = counters.step >= config.phases.steps
            more = f"steps={2 * counters.step}" if over else f"minutes={2 * config.phases.minutes:g}"
            print(f"nothing left to do: {run.folder} is at step {counters.step}; to train on: --set phases.{more}")
        accelerator.end_training()
        return EXIT_OK
    stop.listen()
    bar = begin_record(run, args.logger)
    stream = batches(run.dataset, counters.segments, config.phases.steps - counters.step, accelerator)
    before, began = counters.seconds, time.monotonic()
    counter, clock = CodebookCounter(networks.codec.num_quantizers, networks.codec.codebook_size), Clock()

    while config.phases.progress(counters.step, counters.seconds) < 1 and not stop.anywhere(accelerator):
        with clock.waiting():
            segments = next(stream)
        counters.skipped_files += int(segments["skipped"].sum())  # on the CPU: on a GPU the sum would have to wait
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in segments.items()}
        if counters.step == config.phases.autoencoder and not networks.quantizer_matched:
            start_quantizer(networks, run.dataset)
        set_learning_rates(networks.optimizers, config.learning_rate(counters.step, counters.seconds))
        torch.manual_seed(hash((config.seed, counters.step, accelerator.process_index)))
        logged, output = train_step(run, batch)
        counters.step += 1
        counters.segments += config.data.batch_size
        counters.seconds = before + time.monotonic() - began
        if config.phases.minutes:  # then the learning rate and the end depend on the seconds
            counters.seconds = of_every_process(counters.seconds, accelerator)[0]
        bar.update()
        if not stop.begun:
            stop.begun = True
            report_pace(run, counters.seconds - before - clock.waited)
        if output.codes is not None:
            counter.add(output.codes)
        if counters.step % config.log.scalars_every == 0:
            log_scalars(run, logged, output, counter, clock)
            counter = CodebookCounter(*counter.counts.shape)
        if counters.step % config.log.valid_every == 0 or config.phases.progress(counters.step, counters.seconds) >= 1:
            validate_run(run)
            clock = Clock()  # validation is not training time
        if counters.step % config.log.checkpoint_every == 0:
            run.save()
    run.save()

    bar.close()
    if run.tracker is not None:
        run.tracker.close()
        if config.phases.progress(counters.step, counters.seconds) < 1:
            how = "the same command" if args.minutes else "the same command with --resume"
            print(f"stopped at step {counters.step}: {run.checkpoints}; {how} goes on from there")
        else:
            print(f"done at step {counters.step}: {run.checkpoints}")
    accelerator.end_training()
    return EXIT_OK


# ---- one step ---------------------------------------------------------------------------------------------------------


def train_step(run: Run, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], CodecOutput]:
    """Train codec and discriminators on one forward pass of both; returns scalars to log and the codec's output.

    The discriminators see both kinds of speech only up to the recording's bandwidth: they would recognize band-limited
    recordings by what is missing above it, and teach the decoder to be silent there.
    """
    config, networks, step = run.config, run.networks, run.counters.step
    waveform, weights = batch["waveform"], config.losses.weights
    quantize = step >= config.phases.autoencoder
    *codec_optimizers, discriminator_optimizer = networks.optimizers.values()
    output: CodecOutput = networks.codec_step(
        waveform, quantize=quantize, quantizer_dropout=config.quantizer_dropout if quantize else 0.0
    )
    copies = len(output.waveform) // len(waveform)  # one for each decoder
    terms = run.spectral(output.waveform, waveform.repeat(copies, 1, 1), batch["bandwidth"].repeat(copies))
    if output.commitment_loss is not None and output.codebook_loss is not None:
        terms["commitment"] = output.commitment_loss.sum(dim=1).mean()
        terms["codebook"] = output.codebook_loss.sum(dim=1).mean()
    logged: dict[str, Tensor] = {}
    sides: list[tuple[str, Tensor, nn.Module, list[torch.optim.Optimizer]]] = []  # name, loss, module, optimizers

    if 0 <= config.phases.adversarial <= step:
        count = max(1, round(config.discriminator.batch_share * len(waveform)))
        each = output.waveform.unflatten(0, (-1, len(waveform)))  # [decoders, B, 1, T]
        rate, bandwidth = config.model.sample_rate, batch["bandwidth"][:count]
        heard = [low_pass(speech[:count], bandwidth, rate) for speech in (waveform, *each)]
        outputs = networks.discriminators_step(torch.cat(heard))
        loss = discriminator_loss(outputs, count)
        logged["loss/discriminator"] = loss.detach()
        sides.append(("discriminator", loss, networks.discriminators, [discriminator_optimizer]))
        terms["adversarial"] = generator_loss(outputs, count)
        terms["feature_matching"] = feature_matching_loss(outputs, count)

    weighted = {name: weights[name] * term for name, term in terms.items()}
    total = torch.stack(list(weighted.values())).sum()
    if not quantize:  # keeps every parameter in the graph: processes would wait for gradients that never come
        total = total + 0.0 * sum(parameter.sum() for parameter in networks.codec.quantizer.parameters())
    logged |= {f"loss/{name}": term.detach() for name, term in terms.items()}
    logged |= {f"weighted/{name}": term.detach() for name, term in weighted.items()} | {"loss/total": total.detach()}
    sides.append(("codec", total, networks.codec, codec_optimizers))

    for _, loss, module, _ in sides:  # all before the first optimizer step, which changes weights that they need
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        run.accelerator.backward(loss, inputs=trained, retain_graph=loss is not total)
    finite = {}
    for name, _, module, optimizers in sides:
        logged[f"gradient_norm/{name}"], finite[name] = update(run, module, optimizers, batch)
    if finite["codec"]:
        update_average(networks, config.optimizer.ema_decay, step)
    run.counters.judge_step(all(finite.values()), config.optimizer.max_bad_steps)
    return logged, output


def update(
    run: Run, module: nn.Module, optimizers: list[torch.optim.Optimizer], batch: dict[str, Tensor]
) -> tuple[Tensor, bool]:
    """Step along the clipped gradient if it is finite; returns its norm before clipping, and whether it is finite.

    The norm is that of the averaged gradient, so all processes skip together.
    """
    norm = run.accelerator.clip_grad_norm_(module.parameters(), run.config.optimizer.clip_norm)
    assert isinstance(norm, Tensor)
    finite = bool(torch.isfinite(norm))
    if not finite:
        logging.warning("step %d skipped: gradient not finite; segments %s", run.counters.step, batch["index"].tolist())
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad()
    return norm.detach(), finite


# ---- before the first step --------------------------------------------------------------------------------------------


def set_up(args: argparse.Namespace) -> Run:
    """Read the configuration and the manifests, build everything, and go back to where the run was."""
    import accelerate.utils  # not accelerate alone: a folder beside this script has that name

    began = [] if args.init is None else ["phases.autoencoder=0"]  # the model is an autoencoder already
    config = load_train_config(args.config, [*args.set, *began])
    accelerator = accelerate.Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=args.cpu)
    data, world = config.data, accelerator.num_processes
    if int(os.environ.get("WORLD_SIZE") or 1) > world:
        raise CodecError(
            "WORLD_SIZE says that there are more processes, but this one sees none and would train for itself; start them by "
            "torchrun or accelerate launch, and without a GPU (or a torch that sees it) with --cpu"
        )
    if data.batch_size % world:
        raise ConfigError(f"data.batch_size {data.batch_size} cannot be shared evenly by {world} processes")
    logging.basicConfig(format="%(message)s", level=logging.WARNING if accelerator.is_main_process else logging.ERROR)
    checkpoint, changes = start_from(args.out, args.resume, args.minutes is not None, config, accelerator)
    records, valid = read_manifests(data)
    run = Run(
        config=config,
        accelerator=accelerator,
        folder=args.out,
        networks=build_networks(config, accelerator, args.init),
        spectral=SpectralLoss(config.model.sample_rate, config.losses).to(accelerator.device),
        dataset=SegmentDataset(records, config.model.sample_rate, data, config.seed),
        valid=valid,
        counters=Counters(),
        init=args.init,
        changes=changes,
    )
    check_readable(valid, run.networks.codec)  # before long work, not after it
    if checkpoint is not None:
        run.counters = load_checkpoint(checkpoint, run.networks.modules, run.networks.optimizers)
        run.saved_step = run.counters.step
        run.counters.segments = run.counters.segments or run.counters.step * data.batch_size  # old checkpoints lack it
    return run


# ---- what is recorded -------------------------------------------------------------------------------------------------


def begin_record(run: Run, logger: str) -> tqdm[Any]:
    """Describe the run in its folder, open the tracker (both on the first process only) and the bar."""
    first = run.accelerator.is_main_process
    if first:
        run.tracker = Tracker(run.folder, logger, run.counters.step)  # first: it refuses the folder of a current run
        describe_run(run)
        run.tracker.text("config", json.dumps(to_dict(run.config), indent=1))
    disable = None if first else True  # None: unless stderr is a terminal
    run.bar = tqdm(total=run.config.phases.steps, initial=run.counters.step, unit=" step", disable=disable)
    return run.bar


def log_scalars(
    run: Run, logged: dict[str, Tensor], output: CodecOutput, counter: CodebookCounter, clock: Clock
) -> None:
    """Report the scalars of the last step, the codes counted since the last call, and the speed."""
    config = run.config
    means = run.accelerator.reduce(torch.stack([value.float() for value in logged.values()]), "mean")  # over processes
    scalars = dict(zip(logged, means.tolist(), strict=True))
    if output.codes is not None:
        scalars |= codebook_scalars(counter, run.accelerator, "codebook")
    scalars["latents/effective_dimension"] = effective_dimension(output.latents.transpose(1, 2).flatten(0, 1))
    share = config.learning_rate(run.counters.step - 1, run.counters.seconds)
    scalars |= {"learning_rate": share * config.optimizer.learning_rate, "bad_steps": run.counters.bad_steps}
    scalars["skipped_files"] = run.counters.skipped_files
    scalars |= clock.lap(config.data.batch_size * config.data.segment_seconds)
    report(run, scalars)


def validate_run(run: Run) -> None:
    """Validate and show examples; a checkpoint that is the best so far is saved and kept."""
    config, counters = run.config, run.counters
    quantize = counters.step > config.phases.autoencoder
    values = validate(run.networks.average, run.valid, run.spectral, quantize, run.accelerator)
    report(run, values)
    if run.tracker is not None and run.tracker.writer is not None:
        examples = run.valid[: config.log.audio_examples]
        show_examples(run.networks.average, examples, run.tracker, quantize, counters.step, not run.shown)
        run.shown = True
    loss = values["valid/mel"] + values.get("valid/stft", 0.0)
    losses = vars(config.losses) | {"weights": list(run.spectral.terms)}  # a weight counts if it leaves its term out
    measured = [(r.id, r.path, r.offset) for r in run.valid], losses
    of, there = hashlib.sha256(repr(measured).encode()).hexdigest()[:16], values["valid/utterances"]
    before = counters.best_utterances if counters.best_of == of else 0.0
    least = counters.best_loss if there == before and counters.best_loss is not None else math.inf
    if quantize and there >= before and loss < least:
        counters.best_loss, counters.best, counters.best_of = loss, f"step_{counters.step:08d}", of
        counters.best_utterances = there
        run.save()


def report(run: Run, values: dict[str, float]) -> None:
    """Record all values; show the main ones after the bar on a terminal, else as a line. First process only."""
    if run.tracker is None or run.bar is None:
        return
    run.tracker.scalars(values, run.counters.step)
    names = [name for name in values if name.startswith(("loss/", "valid/", "speed/"))]
    main = {name.removeprefix("loss/"): f"{values[name]:.4g}" for name in names}
    if run.bar.disable:
        print(f"step {run.counters.step}: " + ", ".join(f"{k} {v}" for k, v in main.items()), flush=True)
    else:
        run.bar.set_postfix(main)


def report_pace(run: Run, seconds: float) -> None:
    """Print how long the run takes if all steps take ``seconds``, as the first one did. First process only."""
    phases, step = run.config.phases, run.counters.step
    if run.tracker is None or run.bar is None or step == phases.steps:
        return
    left, rest = phases.steps - step, f"the run ends after {phases.minutes:g} minutes, whatever its step"
    if not phases.minutes:
        rest = f"{left} more take {timedelta(seconds=round(seconds * left))} at that speed"
    run.bar.write(f"step {step} took {seconds:.2f} s; {rest}")
    sys.stdout.flush()


def describe_run(run: Run) -> None:
    """Write what is trained on what into config.json and data.json, for export and for readers of the folder."""
    sources: dict[str, float] = {}
    for record in run.dataset.records:
        key = " | ".join((record.source or "unnamed source", record.licence or "licence unknown"))
        sources[key] = sources.get(key, 0.0) + record.duration / 3600
    speech = {"train": summary(run.dataset.records), "valid": summary(run.valid), "hours_by_source": sources}
    if run.saved_step < 0:
        state = run.networks.codec.state_dict()
        weights = (state[name].cpu().numpy().tobytes() for name in state if not name.startswith("others."))
        run.counters.start = hashlib.sha256(b"".join(weights)).hexdigest()
    learned, run.counters.speech = run.counters.speech, f"{speech['train']} of {', '.join(sorted(sources))}"
    if learned not in ("", run.counters.speech):
        run.changes = [*run.changes, f"the speech is {run.counters.speech} instead of {learned}"]
    write_json(run.folder / "config.json", to_dict(run.config))
    write_json(run.folder / "data.json", speech)
    notes = run.folder / "notes.md"  # for the model's card
    if run.init is not None and run.saved_step < 0 and not notes.exists():
        write_text(notes, f"Training began from the weights of {run.init}; its card says what they were trained on.\n")
    if run.changes:
        with open(notes, "a", encoding="utf-8") as file:
            print(f"\n\nFrom step {run.counters.step} on, {', '.join(run.changes)}.", file=file)
        logging.warning("other settings than before: %s", ", ".join(run.changes))


# ---- the command line -------------------------------------------------------------------------------------------------


def main() -> int:
    parser = Parser(description=__doc__, epilog=EXIT_NOTE)
    option = parser.add_argument
    option("--config", required=True, type=Path, metavar="YAML", help="as recipes/libritts/debug.yaml")
    option("--out", type=Path, help="the run's folder, for checkpoints and logs (default: runs/NAME_OF_CONFIG)")
    overrides = "override fields of the configuration, as --set phases.steps=1000 data.workers=2"
    option("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=overrides)
    option("--resume", action="store_true", help="go on from the run's last checkpoint (otherwise the same command)")
    start = "start from an exported model, without autoencoder phase; of one with another quantizer it takes encoder "
    start += "and decoder, and discriminators if they are there; the configuration may have more blocks"
    option("--init", metavar="MODEL", help=start)
    leg = "a leg of a long run: from the last checkpoint, if there is one, for so many minutes; the same command again is "
    option("--minutes", type=float, metavar="M", help=leg + "the next leg")
    option("--logger", choices=["tensorboard", "none"], default="tensorboard")
    option("--cpu", action="store_true", help="do not use a GPU that is there")
    args = parser.parse_args()
    if args.minutes is not None and not args.minutes > 0:  # nan is neither
        parser.error("--minutes must be positive")
    args.out = args.out or Path("runs") / args.config.stem
    try:
        return run_command("train.py", lambda: train(args), interrupted="training had not begun")
    finally:
        end_readers()


if __name__ == "__main__":
    sys.exit(main())
