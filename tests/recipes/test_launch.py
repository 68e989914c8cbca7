"""The launch files of recipes/accelerate and the configurations for LibriTTS: together they start."""

import multiprocessing
import os
import runpy
import socket
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from loading import ROOT

DOCUMENTED = [("multi_gpu", "simvq_8k")]
CONFIGS = sorted(path.stem for path in (ROOT / "recipes" / "libritts").glob("*.yaml"))
SMALL = ["model.encoder={strides: [2, 4, 5, 8], widths: [4, 4, 4, 8], depths: [0, 0, 0, 0]}", "model.latent_dim=8"]
SMALL += ["model.quantizer.codebook_size=16", "model.quantizer.codebook_dim=8", "data.workers=0"]
SMALL += ["model.decoder={width: 8, depth: 1, n_fft: 1280}", "data.segment_seconds=0.2", "precision=fp32"]
SMALL += ["phases={steps: 1, autoencoder: 0, ramp: 0, adversarial: -1}", "data.valid_limit=1"]
SMALL += ["discriminator={periods: [2], period_channels: 4, resolutions: [512], resolution_channels: 4}"]


def begin(rank: int, count: int, port: int, arguments: list[str], log: Path) -> None:
    """One process of a run, as launchers start them."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    sys.argv = [str(ROOT / "recipes" / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked off one that has torch")
def test_every_pair_starts(corpus: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Processes on the CPU stand in for the GPUs, and small networks for the real ones; with --long all pairs, not one."""
    data = [f"data.{split}=[{corpus}/dev.jsonl]" for split in ("train", "valid")]
    launches = sorted(path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "codec.training.networks", "tqdm"])
    for launch, config in product(launches, CONFIGS) if request.config.getoption("long") > 1 else DOCUMENTED:
        count = yaml.safe_load((ROOT / "recipes" / "accelerate" / f"{launch}.yaml").read_text())["num_processes"]
        arguments = ["--config", str(ROOT / "recipes" / "libritts" / f"{config}.yaml"), "--cpu", "--logger", "none"]
        arguments += ["--out", str(tmp_path / launch / config), "--set", *SMALL, *data]
        if config == "debug":  # its batch of 4 is for one process
            arguments.append(f"data.batch_size={count}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path / f"{launch}_{config}"
        shared = (count, port, arguments, log)
        processes = [context.Process(target=begin, args=(rank, *shared), daemon=True) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * count, (launch, config, log.read_text()[:3000])
        print(f"{launch} x {config}: {count} processes started, made a step and ended")
