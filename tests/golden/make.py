"""Write the golden files: what this version makes of fixed weights and fixed speech. See README.md beside this file.

python tests/golden/make.py        only for a change of behaviour that is meant, and named in CHANGELOG.md
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
import torch

from codec import Codec, CodecConfig, container, load
from codec.config import DecoderConfig, EncoderConfig, QuantizerConfig
from codec.corpus.manifest import Record, write_manifest
from codec.evaluation.commands import evaluate_main
from codec.pretrained import shipped_models
from codec.quantizers import QUANTIZERS

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # where it is a script, and not one of the tests' modules
from loading import DEBUG, SPEECH, recipe  # noqa: E402

CLIPS = [*SPEECH.values()]  # of 24 kHz, and of 16 kHz
SHIPPED = shipped_models()
FORMER = ("speech-24khz", "speech-24khz-single", "speech-24khz-v2", "speech-24khz-single-v2")
PIECE = 8000  # samples of a clip that the tiny models see
PHASES = ("phases.steps=20", "phases.autoencoder=6", "phases.ramp=4", "phases.adversarial=12")
LOGGING = ("log.scalars_every=1", "log.valid_every=20", "log.checkpoint_every=20", "data.workers=0")
METRICS = ("pesq", "stoi", "estoi", "mel", "si_sdr", "lsd", "vuv_f1", "f0_rmse", "kbps_file", "kbps_entropy")


def tiny_config(kind: str) -> CodecConfig:
    """16 kHz, 200 frames/s, 32 codes (3 stages where there are stages)."""
    stages = 3 if kind.startswith("residual") else 1
    grid = kind in ("fsq", "lfq", "lattice_vq")
    return CodecConfig(
        sample_rate=16000,
        latent_dim=16,
        encoder=EncoderConfig(strides=(4, 5, 4), widths=(8, 8, 16), depths=(1, 1, 1)),
        quantizer=QuantizerConfig(kind, stages, codebook_size=32, codebook_dim=16 if grid else 4),
        decoder=DecoderConfig(width=16, depth=1, n_fft=320),
    )


def tiny_speech() -> torch.Tensor:
    """Half a second of the 16 kHz clip, ``[T]``."""
    return load(CLIPS[1])[0][0, 16000 : 16000 + PIECE]


def write_tiny(kind: str, folder: Path) -> None:
    """A model of this kind, its codebooks matched to the clip; its codes and what they decode to."""
    torch.manual_seed(7)
    codec = Codec(tiny_config(kind)).eval()
    waveform = tiny_speech()
    codec.quantizer.initialize(codec.encoder(waveform[None, None]))
    codec.save_pretrained(folder)
    codec = Codec.from_pretrained(folder)
    codes = codec.encode(waveform, 16000)
    container.write(folder / "golden.codes", codec.header(len(waveform), 16000), codes[0].numpy())
    soundfile.write(folder / "golden.flac", codec.decode(codes)[0, 0].numpy(), 16000, subtype="PCM_24")


def write_shipped(name: str) -> None:
    codec = Codec.from_pretrained(name)
    (HERE / name).mkdir(exist_ok=True)
    for path in CLIPS:
        waveform, rate = load(path)
        codes = codec.encode(waveform, rate)
        header = codec.header(waveform.shape[-1], rate)
        container.write(HERE / name / f"{path.stem}.codes", header, codes[0].numpy())
        decoded = codec.decode(codes)[0, 0].clamp(-1, 1).numpy()
        soundfile.write(HERE / name / f"{path.stem}.flac", decoded, codec.sample_rate, subtype="PCM_16")


def write_corpus(folder: Path) -> Path:
    """A manifest of both clips."""
    manifest, records = folder / "manifest.jsonl", []
    for path in CLIPS:
        info, source = soundfile.info(path), path.stem.split("-")[0]
        records.append(Record(path.stem, str(path), info.frames, info.samplerate, path.stem, source=source))
    write_manifest(manifest, records)
    return manifest


def training_losses(folder: Path) -> list[dict[str, float]]:
    """Scalars of 20 steps of the debug recipe through all its phases, one thread."""
    manifest = write_corpus(folder)
    settings = (f"data.train=[{manifest}]", f"data.valid=[{manifest}]", *PHASES, *LOGGING)
    command = ("--config", DEBUG, "--out", folder / "run", "--cpu", "--logger", "none", "--set", *settings)
    assert recipe("train", *command) == 0
    points = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in point.items() if k == "step" or k.startswith("loss/")} for point in points]


def report_numbers(folder: Path) -> dict[str, Any]:
    """The parts of metrics.json that follow from the model and the speech, of the tiny default model."""
    command = ["--manifest", str(write_corpus(folder)), "--out", str(folder / "report"), "--workers", "1"]
    command += ["--model", str(HERE / "residual_simvq"), "--num-quantizers", "3", "1", "--baselines", "--no-normalize"]
    assert evaluate_main([*command, "--metrics", *METRICS]) == 0
    summary = json.loads((folder / "report" / "metrics.json").read_text())
    systems = {s["id"]: {"results": s["results"], "by_source": s["by_source"]} for s in summary["systems"]}
    return {"systems": systems} | {key: summary[key] for key in ("health", "stability", "model")}


def machine() -> str:
    """What equality to the bit depends on: torch's build, and the processor whose instructions its kernels use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}"


def main() -> None:
    torch.set_num_threads(1)
    for kind in QUANTIZERS:
        write_tiny(kind, HERE / kind)
    for name in SHIPPED:
        write_shipped(name)
    folders = {name: HERE / name for name in (*QUANTIZERS, *FORMER)} | {name: name for name in SHIPPED}
    fingerprints = {name: Codec.from_pretrained(folder).fingerprint for name, folder in folders.items()}
    with tempfile.TemporaryDirectory() as temporary:
        losses = training_losses(Path(temporary))
        numbers = report_numbers(Path(temporary))
    files = {"fingerprints": fingerprints, "training": {"machine": machine(), "points": losses}, "report": numbers}
    for name, values in files.items():
        (HERE / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
