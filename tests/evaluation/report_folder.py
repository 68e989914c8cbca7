"""A folder as an evaluation leaves it, from synthetic signals and made-up numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

NASTY = "<b>&\"x'</script><script>alert(1)</script>"  # an utterance's id
SPEAKER = "Žofie 山田"
SOURCE = "read <aloud>"
METRICS = {
    "pesq": ("PESQ-WB", "MOS-LQO", "higher", 3, "resampled to 16 kHz by soxr, aligned by PESQ itself", "pesq 0.0.4"),
    "stoi": ("STOI", "", "higher", 3, "at the original's rate", "pystoi 0.4.1"),
    "si_sdr": ("SI-SDR", "dB", "higher", 2, "no alignment", None),
    "mel": ("Mel distance", "", "lower", 3, "80 bands <of> natural-log magnitudes", None),
    "kbps_file": ("Bitrate of the files", "kbit/s", "none", 2, "size of the file over its duration", None),
}
SYSTEMS = [
    ("model-8", "default, 8 quantizers", "default", "model", 6.0),
    ("model-2", "default, 2 quantizers", "default", "model", 1.5),
    ("model-1", "default, 1 quantizer", "default", "model", 0.75),
    ("opus-6", "Opus 6 kbit/s", "Opus", "opus", 6.0),
    ("opus-12", "Opus 12 kbit/s", "Opus", "opus", 12.0),
    ("codec2-1.3", "Codec 2 <1300>", "Codec 2", "codec2", 1.3),
    ("other", "folder of decoded files", "other", "folder", None),
]


def metrics_json(examples: bool = True) -> dict[str, Any]:
    """The content of ``metrics.json``; its audio lies under ``audio/``."""
    systems: list[dict[str, Any]] = []
    for i, (key, name, family, kind, kbps) in enumerate(SYSTEMS):
        quality = 0.25 + 0.1 * np.log2(kbps or 4)
        middle = {"pesq": 1 + 2.2 * quality, "stoi": 0.5 + 0.4 * quality, "si_sdr": -4.125 + 20 * quality}
        middle |= {"mel": 1.2345 - quality, "kbps_file": (kbps or 4) * 1.03}
        results: dict[str, Any] = {}
        for metric, mean in middle.items():
            mean, half = round(float(mean) + 0.0011 * i, 4), 0.0312
            result = {"mean": mean, "low": mean - half, "high": mean + half, "n": 111, "failed": 0, "reasons": {}}
            results[metric] = result
        systems.append({"id": key, "name": name, "family": family, "kind": kind, "kbps": kbps, "results": results})
    systems[0]["results"]["pesq"] |= {"n": 109, "failed": 2, "reasons": {"NoUtterancesError": 1, "<too short>": 1}}
    nothing = {"mean": None, "low": None, "high": None, "n": 0, "failed": 111, "reasons": {"MetricError": 111}}
    systems[5]["results"]["stoi"] = nothing
    del systems[6]["results"]["kbps_file"]
    systems[0]["by_source"] = {
        "": {"pesq": {"mean": 2.7182, "low": None, "high": None, "n": 3}},
        SOURCE: {"pesq": {"mean": 2.3456, "low": 2.1, "high": 2.5, "n": 106, "failed": 2, "reasons": {"<short>": 2}}},
    }
    stages = [
        {
            "stage": k + 1, "frames": 55310, "usage": 0.993 - 0.01 * k, "perplexity": 612.4 - 30 * k,
            "normalised_entropy": 0.926 - 0.008 * k, "unseen_mass": 0.0001 * (k + 1),
            "codebook_effective_dimension": 12.34 - 0.3 * k, "codebook_dimension": 16, "residual_energy": 0.53 * 0.8**k,
            "coverage": [[n, (0.993 - 0.01 * k) * (1 - np.exp(-n / (900 + 150 * k)))]
                         for n in (75, 150, 300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 55310)],
        }
        for k in range(8)
    ]  # fmt: skip
    changed = {"mean": 0.4213, "low": 0.401, "high": 0.44, "n": 111, "failed": 0, "reasons": {}}
    return {
        "format": 1,
        "created": "2026-11-23T08:00:00Z",
        "command": "codec-evaluate --model default dev.jsonl -o 'report <1>'",
        "software": {"codec": "0.2.0", "python": "3.11.7", "torch": "2.13.0", "pesq": "0.0.4"},
        "machine": {"processor": "AMD EPYC", "cores": 2, "workers": 2, "threads_per_worker": 1},
        "manifest": {"name": "dev.jsonl", "sha256": "ab" * 32, "utterances": 111, "seconds": 738.1, "speakers": 44},
        "model": {
            "name": "default", "fingerprint": "0123456789abcdef", "parameters": 5412345, "sample_rate": 24000,
            "frame_rate": 75.0, "num_quantizers": 8, "codebook_size": 1024,
        },
        "interval": {"level": 0.95, "resamples": 2000, "unit": "speakers", "seed": 0},
        "metrics": {
            key: {"label": label, "unit": unit, "better": better, "digits": digits, "how": how, "package": package}
            for key, (label, unit, better, digits, how, package) in METRICS.items()
        },
        "absent": [
            {"kind": "metric", "name": "UTMOS", "reason": "package utmos is not installed"},
            {"kind": "system", "name": "EnCodec", "reason": "package transformers is not installed"},
        ],
        "alignment": "Folders by the <peak> of correlation.",
        "systems": systems,
        "health": {
            "stages": stages,
            "latents": {"dimension": 256, "effective_dimension": 31.24, "frames": 55310},
            "notes": ["Stage 8 is seldom <needed>."],
        },
        "stability": [
            {"key": "shift", "label": "input shifted by a quarter of a hop", "changed": changed,
             "stages": [0.2 + 0.08 * k for k in range(8)]},
            {"key": "quiet", "label": "input 6 dB quieter", "changed": changed | {"mean": 0.31}, "stages": None},
        ],
        "examples": [_example(1, NASTY, "worst"), _example(2, "file-0002", "example")] if examples else None,
    }  # fmt: skip


def make_folder(folder: Path, num_files: int = 40, metrics: dict[str, Any] | None = None) -> Path:
    """Write ``metrics.json``, ``per_file.csv`` and the audio; the file called ``NASTY`` is the worst."""
    metrics = metrics_json() if metrics is None else metrics
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    rng = np.random.default_rng(0)
    for example in metrics["examples"] or ():
        for i, path in enumerate([example["reference"], *example["systems"].values()]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / path, _tone(example["seconds"], 0.02 * i, rng), 24000)
    with open(folder / "per_file.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "speaker", "source", "seconds", "system", *metrics["metrics"], "failures"])
        for n in range(num_files):
            name = NASTY if n == 7 else f"file-{n:04d}"
            for system in metrics["systems"]:
                noise = float(rng.normal())
                values = {k: (r["mean"] or 0.7) + 0.1 * noise for k, r in system["results"].items()}
                failures = ""
                if system["id"] == "model-8" and n == 7:
                    values["pesq"] = 1.0321
                if system["id"] == "model-8" and n in (3, 4):
                    del values["pesq"]
                    failures = "pesq: NoUtterancesError"
                cells = [f"{values[k]:.6f}" if k in values else "" for k in metrics["metrics"]]
                writer.writerow([name, SPEAKER, "made up", 1.5 + 0.25 * n, system["id"], *cells, failures])
    return folder


def _example(number: int, name: str, why: str) -> dict[str, Any]:
    place = f"audio/{number:04d}"
    systems = {
        key: f"{place}/{key} #1.flac" if i == 1 else f"{place}/{key}.flac" for i, (key, *_) in enumerate(SYSTEMS)
    }
    return {"id": name, "why": why, "seconds": 1.5, "reference": f"{place}/reference.flac", "systems": systems}


def _tone(seconds: float, noise: float, rng: np.random.Generator) -> Any:
    """A voice-like buzz with a falling pitch, under noise."""
    time = np.arange(int(seconds * 24000)) / 24000
    phase = 2 * np.pi * (180 * time - 30 * time**2)
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.sin(np.pi * time / seconds) ** 2
    return (0.2 * buzz + noise * rng.normal(size=len(time))).astype(np.float32)
