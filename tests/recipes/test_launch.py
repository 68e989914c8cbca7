"""The launch files of recipes/accelerate and the configurations for LibriTTS: together they start."""

from itertools import product
from pathlib import Path

import pytest
import yaml
from training_runs import QUIET, RECIPES, TORCHRUN, command, finish, start

DOCUMENTED = [("multi_gpu", "simvq_8k")]
CONFIGS = sorted(path.stem for path in (RECIPES / "libritts").glob("*.yaml"))
SMALL = ["model.encoder={strides: [2, 4, 5, 8], widths: [4, 4, 4, 8], depths: [0, 0, 0, 0]}", "model.latent_dim=8"]
SMALL += ["model.quantizer.codebook_size=16", "model.quantizer.codebook_dim=8", "precision=fp32"]
SMALL += ["model.decoder={width: 8, depth: 1, n_fft: 1280}", "data.valid_limit=1"]
SMALL += ["phases={steps: 1, autoencoder: 0, ramp: 0, adversarial: -1}"]
SMALL += ["discriminator={periods: [2], period_channels: 4, resolutions: [512], resolution_channels: 4}"]


@pytest.mark.slow
def test_every_pair_starts(corpus: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Processes on the CPU stand in for the GPUs, and small networks for the real ones; with --long all pairs, not one."""
    launches = sorted(path.stem for path in (RECIPES / "accelerate").glob("*.yaml"))
    for launch, config in product(launches, CONFIGS) if request.config.getoption("long") > 1 else DOCUMENTED:
        count = yaml.safe_load((RECIPES / "accelerate" / f"{launch}.yaml").read_text())["num_processes"]
        shared = [f"data.batch_size={count}"] if config == "debug" else []  # its batch of 4 is for one process
        settings, path = (*SMALL, *shared), RECIPES / "libritts" / f"{config}.yaml"
        run, launcher = tmp_path / launch / config, (*TORCHRUN, str(count))
        finish(start([*command(corpus, run, *settings, launcher=launcher, config=path), *QUIET]))
        print(f"{launch} x {config}: {count} processes started, made a step and ended")
