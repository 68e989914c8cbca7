"""Make a model folder of a training run: config.json, model.safetensors (averaged weights) and a card.

    python recipes/export.py runs/mine models/mine
    python recipes/export.py runs/mine models/mine --bits 8 --evaluation report --with-discriminator --force
    python recipes/export.py runs/mine models/mine --average-with runs/other_seed
    python recipes/export.py runs/mine models/mine-live --look-ahead 2

``--evaluation`` takes the report that ``codec-evaluate`` made of the exported model and puts its table on the card, so
export once, evaluate, and export again with ``--force``: an existing model is kept otherwise. ``--average-with`` takes the
mean of the weights of several runs that began from one model (Wortsman et al. 2022, arXiv 2203.05482). ``--look-ahead``
takes one of the run's further decoders (``look_aheads``) in place of the model's own.
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import hashlib
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from codec import files
from codec.config import from_dict
from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.evaluation.results import Results
from codec.files import atomic_write, refuse_existing, write_text
from codec.model import Codec
from codec.pretrained import DISCRIMINATORS, FILES
from codec.training.checkpoint import CHECKPOINTS, CheckpointError, latest_checkpoint, module_tensors, read_checkpoint
from codec.training.config import TrainConfig
from codec.training.networks import looking_ahead
from codec.weights import Bits


@dataclass(frozen=True)
class Data:
    """What a card takes from a run's data.json."""

    train: str
    hours_by_source: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a run came to at one of its checkpoints."""

    run: Path
    config: TrainConfig
    checkpoint: Path
    step: int
    start: str  # a hash of the weights that training began from; "" where that was not yet written
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, run: Path, checkpoint: str | None, look_ahead: int | None) -> "Trained":
        """The average of the weights at a checkpoint of a run: a name, "best", or None for the latest.

        ``look_ahead`` chooses among the run's further decoders.
        """
        values = read_json(run / "config.json") if (run / "config.json").is_file() else None
        if not isinstance(values, dict) or not all(isinstance(values.get(n), dict) for n in ("losses", "optimizer")):
            raise CheckpointError(f"{run} is not the folder of a training run: it has no config.json of one")
        path = latest_checkpoint(run / CHECKPOINTS)
        if checkpoint == "best":
            checkpoint = read_checkpoint(path)[1].best
            if checkpoint is None:
                raise CheckpointError(f"{run} has no validated checkpoint yet")
        path = run / CHECKPOINTS / (checkpoint or path.name)
        tensors, counters = read_checkpoint(path)
        config, weights = from_dict(TrainConfig, values), module_tensors(tensors, "average")
        if counters.step <= config.phases.autoencoder:
            raise CheckpointError(f"{path} has no quantizer yet: it comes after {config.phases.autoencoder} steps")
        if look_ahead is not None:
            if look_ahead not in config.look_aheads:
                raise CodecError(
                    f"{run} has no further decoder of look-ahead {look_ahead}; its look_aheads are {list(config.look_aheads)}"
                )
            other = f"others.{config.look_aheads.index(look_ahead)}."
            weights |= {f"decoder.{key.removeprefix(other)}": weights[key] for key in weights if key.startswith(other)}
            config = replace(config, model=looking_ahead(config.model, look_ahead))
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("others.")}
        return cls(run, config, path, counters.step, counters.start, weights)


def build_codec(runs: list[Trained], name: str) -> Codec:
    """The codec with the mean of the runs' weights.

    Raises:
        CodecError: of another architecture, or with other tensors that no training changes, as random tables are: such
            runs did not begin from one model, and the mean of their weights means nothing.
    """
    first, *others = runs
    codec = Codec(first.config.model, name=name)
    trained = dict(codec.named_parameters())
    shapes = {key: tensor.shape for key, tensor in codec.state_dict().items()}
    for run in runs:
        if {key: tensor.shape for key, tensor in run.weights.items()} != shapes:
            raise CheckpointError(f"{run.checkpoint} does not fit {first.run / 'config.json'}; take the run's own")
        if not all(tensor.isfinite().all() for tensor in run.weights.values()):
            raise CheckpointError(f"{run.checkpoint} holds NaN or infinity: training diverged; take an earlier one")
    for other in others:
        if other.config.model != first.config.model:
            raise CodecError(f"{other.run} trained another architecture than {first.run}")
        if other.start != first.start and "" not in (first.start, other.start):
            raise CodecError(f"{other.run} did not begin from one model with {first.run}: take one --init, or one seed")
        for key, tensor in first.weights.items():
            if key not in trained and not torch.equal(other.weights[key], tensor):
                why = "they did not begin from one model, or the quantizer trains by running means, which have none"
                raise CodecError(f"{other.run} has another {key} than {first.run}: {why}")
    means = {key: torch.stack([run.weights[key] for run in runs]).mean(dim=0) for key in trained}
    codec.load_state_dict(first.weights | means)
    return codec


def read_json(path: Path) -> Any:
    """Raises CodecError where a file of the run is no JSON."""
    try:
        return files.read_json(path)
    except CodecError as error:
        raise CodecError(f"{path} is damaged: {error}") from None


def model_card(runs: list[Trained], codec: Codec, evaluation: Results | None) -> str:
    """The card: what the model is, what it was trained on and how, and what was measured; data and notes of the first run."""
    config, values = runs[0].config, read_json(runs[0].run / "data.json")
    data = from_dict(Data, values, "data.json", ignore_unknown=True)
    one = codec.bitrate / codec.num_quantizers / 1000
    rates = f"{one:g} to {codec.bitrate / 1000:g}" if codec.num_quantizers > 1 else f"{one:g}"
    hours = sorted(data.hours_by_source.items(), key=lambda source: -source[1])
    parts = [
        "# Model card",
        f"A speech codec, {codec.sample_rate / 1000:g} kHz, {codec.frame_rate:g} frames/s, {codec.num_quantizers} x "
        f"{codec.codebook_size} codes ({config.model.quantizer.kind}), {rates} kbit/s, {codec.num_parameters / 1e6:.2f} M "
        "parameters.",
        f"Fingerprint: `{codec.fingerprint}`",
        "## Training",
        *([f"The mean of the weights of {len(runs)} runs from one model:"] if len(runs) > 1 else []),
        *map(_steps, runs),
        f"Speech: {data.train}. Sources, in hours:",
        "\n".join(f"- {name}: {time:.2f}" for name, time in hours),
        "## Quality",
        *(_table(evaluation) if evaluation else ["Not yet measured."]),
        "## Limits",
        "Made for speech of one person at a time: music, overlapping voices and noise come back distorted. It has heard "
        "only the languages and accents of the sources above. `codec-encode` brings files to one level and back, so that "
        "quality does not depend on their volume, and codes hardly do (16 bits round quiet files), from peaks of 0 to -60 dB "
        "of full scale. Pipes, streams and `encode` without `gain_db` take speech as it is: best is active speech from -36 "
        "to -19 dB; louder speech comes back softer, softer with less quality. Do not use it where a changed word does harm.",
    ]
    notes = runs[0].run / "notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def _steps(run: Trained) -> str:
    data, phases = run.config.data, run.config.phases
    adversarial = 0 <= phases.adversarial < run.step
    discriminators = f"discriminators from step {phases.adversarial}" if adversarial else "no discriminators"
    return (
        f"{run.step} steps of {data.batch_size} segments of {data.segment_seconds:g} s, "
        f"{phases.autoencoder} of them without quantizer; {discriminators}. Seed {run.config.seed}."
    )


def _table(results: Results) -> list[str]:
    """The model's rows of a report, as a table between two paragraphs."""
    names = [name for name in ("pesq", "stoi", "estoi", "si_sdr", "mel", "distillmos") if name in results.metrics]
    labels = [results.metrics[name].label for name in names]
    lines = [f"| kbit/s | {' | '.join(labels)} |", "|---" * (len(names) + 1) + "|"]
    for system in results.systems:
        if system.kind == "model":
            forms = {name: f".{results.metrics[name].digits}f" for name in names}
            cells = [system.results[name].text(form, " ({low} to {high})") for name, form in forms.items()]
            lines.append(f"| {system.kbps:g} | {' | '.join(cells)} |")
    manifest, interval = results.manifest, results.interval
    speakers = f" of {manifest.speakers} speakers" if manifest.speakers else ""
    intervals = f" with {100 * interval.level:g} % intervals (bootstrap over {interval.unit})" * (" to " in lines[-1])
    how = f"Means over {manifest.utterances} utterances{speakers}{intervals}, measured on {results.created[:10]} by "
    how += f"`{results.command}`:"
    assert results.health is not None, "a report on a model has it"
    stages = results.health.stages
    usage = ", ".join(f"{100 * stage.usage:.1f} %" for stage in stages)
    return [how, "\n".join(lines), f"Codes in use over {stages[0].frames} frames, by stage: {usage}."]


def export(args: argparse.Namespace) -> int:
    """Write the model and its card; returns the exit code."""
    if not args.force:
        refuse_existing(args.out, (*FILES, "README.md", DISCRIMINATORS))
    if args.out.resolve() == args.run.resolve():
        raise CodecError(f"{args.out} is the run itself, whose config.json would be lost; choose another OUT")
    evaluation = Results.read(args.evaluation) if args.evaluation else None  # before anything is written
    if evaluation and evaluation.model is None:
        raise CodecError(f"{args.evaluation} is not the report that codec-evaluate makes of a model")
    chosen = [(args.run, args.checkpoint), *((run, None) for run in args.average_with)]
    runs = [Trained.read(run, checkpoint, args.look_ahead) for run, checkpoint in chosen]
    codec = build_codec(runs, args.out.name)
    if evaluation:  # what was evaluated must be just the model.safetensors that this export writes
        with tempfile.TemporaryDirectory() as folder:
            codec.save_pretrained(folder, bits=args.bits, base=args.base)
            digest = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
        if read_json(args.evaluation / "run.json").get("weights") != digest:
            raise CodecError("the evaluation is of another model or of an export with other options; evaluate this one")
    card = model_card(runs, codec, evaluation)
    codec.save_pretrained(args.out, bits=args.bits, base=args.base)
    write_text(args.out / "README.md", card)
    (args.out / DISCRIMINATORS).unlink(missing_ok=True)  # those of another run would be trained on with
    if args.with_discriminator:
        discriminators = module_tensors(read_checkpoint(runs[0].checkpoint)[0], "discriminators")
        with atomic_write(args.out / DISCRIMINATORS) as temporary:
            temporary.write_bytes(save(discriminators))
    print(f"{', '.join(str(run.checkpoint) for run in runs)} -> {args.out}")
    return EXIT_OK


def main() -> int:
    parser = Parser(description=__doc__)
    option = parser.add_argument
    option("run", type=Path, metavar="RUN")
    option("out", type=Path, metavar="OUT")
    option("--checkpoint", help="name of a checkpoint, or best (default: the latest)")
    option("--average-with", type=Path, nargs="+", default=[], metavar="RUN", help="average with the latest of RUN")
    option("--look-ahead", type=int, metavar="N", help="with the further decoder that looks N frames ahead")
    option("--bits", type=int, default=32, choices=get_args(Bits), help="of a stored weight (default: 32)")
    option("--base", metavar="MODEL", help="a shipped model: what it holds alike is not stored again")
    option("--evaluation", type=Path, metavar="REPORT", help="folder of codec-evaluate, for the card")
    option("--with-discriminator", action="store_true", help="also write the discriminators, for train.py --init")
    option("--force", action="store_true", help="overwrite an existing model")
    args = parser.parse_args()
    return run_command("export.py", lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())
