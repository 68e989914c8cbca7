"""The launch files of recipes/accelerate and the configurations for LibriTTS: together they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from loading import ROOT

from codec.corpus.manifest import Record, write_manifest


@pytest.mark.slow
def test_the_documented_pair_starts(tmp_path: Path) -> None:
    """Processes on the CPU stand in for the GPUs, and small networks for the real ones."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.1 * rng.standard_normal(48000), 24000)
    write_manifest(tmp_path / "m.jsonl", [Record("a", str(tmp_path / "a.wav"), 48000, 24000)])
    small = ["model.encoder={strides: [2, 4, 5, 8], widths: [4, 4, 4, 8], depths: [0, 0, 0, 0]}", "model.latent_dim=8"]
    small += ["model.quantizer={kind: simvq, num_quantizers: 1, codebook_size: 16, codebook_dim: 8}"]
    small += ["model.decoder={width: 8, depth: 1, n_fft: 1280}", "data.workers=0", "data.segment_seconds=0.2"]
    small += ["phases={steps: 1, autoencoder: 0, ramp: 0, adversarial: -1}", "precision=fp32"]
    small += ["discriminator={periods: [2], period_channels: 4, resolutions: [512], resolution_channels: 4}"]
    small += [f"data.{split}=[{tmp_path / 'm.jsonl'}]" for split in ("train", "valid")]
    count = yaml.safe_load((ROOT / "recipes" / "accelerate" / "multi_gpu.yaml").read_text())["num_processes"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += [str(ROOT / "recipes" / "train.py"), "--config", str(ROOT / "recipes" / "libritts" / "simvq_8k.yaml")]
    command += ["--cpu", "--logger", "none", "--out", str(tmp_path / "run"), "--set", *small]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
