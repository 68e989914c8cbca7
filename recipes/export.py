"""Make a model folder of a training run: config.json, model.safetensors (averaged weights) and a card.

    python recipes/export.py runs/mine models/mine
    python recipes/export.py runs/mine models/mine --bits 8 --evaluation report --with-discriminator --force

``--evaluation`` takes the report that ``codec-evaluate`` made of the exported model and puts its table on the card, so
export once, evaluate, and export again with ``--force``: an existing model is kept otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save

from codec.checkpoint import CHECKPOINTS, CheckpointError, latest_checkpoint, module_tensors, read_checkpoint
from codec.config import ConfigError, from_dict
from codec.errors import one_line
from codec.evaluation.stored import read_summary
from codec.files import written_whole
from codec.model import Codec
from codec.pretrained import DISCRIMINATORS
from codec.recipe import TrainConfig
from codec.weights import Bits

WRITTEN = ("config.json", "model.safetensors", "README.md", DISCRIMINATORS)


class ExportError(ValueError):
    """What keeps a model from being exported; the message says how to mend it."""


def load_run(run: Path, checkpoint: str | None) -> tuple[TrainConfig, Path]:
    """The configuration of a run, and the checkpoint asked for: a name, "best", or the latest."""
    if not (run / "config.json").is_file():
        raise CheckpointError(f"{run} is not the folder of a training run: it has no config.json")
    config = from_dict(TrainConfig, read_json(run / "config.json"))
    latest = latest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        return config, latest
    if checkpoint == "best":
        checkpoint = read_checkpoint(latest)[1].get("best")
        if checkpoint is None:
            raise CheckpointError(f"{run} has no validated checkpoint yet")
    return config, run / CHECKPOINTS / checkpoint


def read_json(path: Path) -> Any:
    """Raises ExportError where a file of the run is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is damaged: {error}") from None


def refuse_existing(out: Path) -> None:
    """Raises ExportError where an export would overwrite a file."""
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder")
    for path in (out / name for name in WRITTEN):
        if path.exists():
            raise ExportError(f"{path} exists; --force overwrites it")


def read_evaluation(report: Path) -> dict[str, Any]:
    """What the folder of a codec-evaluate report says in its ``metrics.json``, a model among its systems."""
    try:
        summary = read_summary(report)
        summary["weights"] = json.loads((report / "run.json").read_text(encoding="utf-8"))["weights"]
        complete = bool(summary["model"]["fingerprint"] and summary["systems"] and summary["health"]["stages"])
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ExportError(f"{report} is not the report that codec-evaluate makes of a model")
    return summary


def model_card(run: Path, config: TrainConfig, codec: Codec, step: int, evaluation: dict[str, Any] | None) -> str:
    """The card: what the model is, what it was trained on and how, and what was measured."""
    data = read_json(run / "data.json")
    one = codec.bitrate / codec.num_quantizers / 1000
    rates = f"{one:g} to {codec.bitrate / 1000:g}" if codec.num_quantizers > 1 else f"{one:g}"
    adversarial = config.phases.adversarial
    discriminators = f"discriminators from step {adversarial}" if 0 <= adversarial < step else "no discriminators"
    lines = [
        "# Model card",
        "",
        f"A speech codec, {codec.sample_rate / 1000:g} kHz, {codec.frame_rate:g} frames/s, {codec.num_quantizers} x "
        f"{codec.codebook_size} codes ({config.model.quantizer.kind}), {rates} kbit/s, "
        f"{sum(p.numel() for p in codec.parameters()) / 1e6:.2f} M parameters.",
        "",
        f"Fingerprint: `{codec.fingerprint}`",
        "",
        "## Training",
        "",
        f"{step} steps of {config.data.batch_size} segments of {config.data.segment_seconds:g} s, "
        f"{config.phases.autoencoder} of them without quantizer; {discriminators}. Seed {config.seed}.",
        "",
        f"Speech: {data['train']}. Sources, in hours:",
        "",
        *[f"- {name}: {hours:.2f}" for name, hours in sorted(data["hours_by_source"].items(), key=lambda kv: -kv[1])],
        "",
        "## Quality",
        "",
        *(_table(evaluation) if evaluation else ["Not yet measured."]),
        "",
        "## Limits",
        "",
        "Made for speech of one person at a time: music, overlapping voices and noise come back distorted. It has heard "
        "only the languages and accents of the sources above. Do not use it where a changed word does harm.",
    ]
    notes = run / "notes.md"
    if notes.exists():
        lines += ["", notes.read_text(encoding="utf-8").strip()]
    return "\n".join(lines) + "\n"


def weights_hash(codec: Codec, bits: Bits) -> str:
    """SHA-256 of the ``model.safetensors`` that this export writes: what was evaluated must be just that."""
    with tempfile.TemporaryDirectory() as folder:
        codec.save_pretrained(folder, bits=bits)
        return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def _table(summary: dict[str, Any]) -> list[str]:
    """The model's rows of a report, as a table."""
    names = [name for name in ("pesq", "stoi", "estoi", "si_sdr", "mel", "distillmos") if name in summary["metrics"]]
    labels = [summary["metrics"][name]["label"] for name in names]
    lines = [f"| kbit/s | {' | '.join(labels)} |", "|---" * (len(names) + 1) + "|"]
    for system in summary["systems"]:
        if system["kind"] == "model":
            cells = [_cell(system["results"][name], summary["metrics"][name]["digits"]) for name in names]
            lines.append(f"| {system['kbps']:g} | {' | '.join(cells)} |")
    manifest, interval = summary["manifest"], summary["interval"]
    speakers = f" of {manifest['speakers']} speakers" if manifest["speakers"] else ""
    how = (
        f"Means over {manifest['utterances']} utterances{speakers} with "
        f"{100 * interval['level']:g} % intervals (bootstrap over {interval['unit']}), measured on "
        f"{summary['created'][:10]} by `{summary['command']}`:"
    )
    stages = summary["health"]["stages"]
    usage = ", ".join(f"{100 * stage['usage']:.1f} %" for stage in stages)
    return [how, "", *lines, "", f"Codes in use over {stages[0]['frames']} frames, by stage: {usage}."]


def _cell(result: dict[str, Any], digits: int) -> str:
    if result["mean"] is None:
        return "-"
    interval = "" if result["low"] is None else f" ({result['low']:.{digits}f} to {result['high']:.{digits}f})"
    return f"{result['mean']:.{digits}f}{interval}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--checkpoint", help="name of a checkpoint, or best (default: the latest)")
    parser.add_argument("--bits", type=int, default=32, choices=get_args(Bits), help="of a stored weight (default: 32)")
    parser.add_argument("--evaluation", type=Path, metavar="REPORT", help="folder of codec-evaluate, for the card")
    parser.add_argument(
        "--with-discriminator",
        action="store_true",
        help="also write the discriminators, which train.py --init goes on with",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing model")
    args = parser.parse_args()
    try:
        if not args.force:
            refuse_existing(args.out)
        evaluation = read_evaluation(args.evaluation) if args.evaluation else None  # before anything is written
        config, checkpoint = load_run(args.run, args.checkpoint)
        tensors, meta = read_checkpoint(checkpoint)
        codec = Codec(config.model, name=args.out.name)
        codec.load_state_dict(module_tensors(tensors, "average"))
        if evaluation and evaluation["weights"] != weights_hash(codec, args.bits):
            raise ExportError("the evaluation is of another model; run codec-evaluate on this export first")
        card = model_card(args.run, config, codec, int(meta["step"]), evaluation)
        codec.save_pretrained(args.out, bits=args.bits)
        with written_whole(args.out / "README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")
        (args.out / DISCRIMINATORS).unlink(missing_ok=True)  # those of another run would be trained on with
        if args.with_discriminator:
            with written_whole(args.out / DISCRIMINATORS) as temporary:
                temporary.write_bytes(save(module_tensors(tensors, "judges")))
    except (CheckpointError, ConfigError, ExportError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"{checkpoint} -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
