"""A corpus to train on, and a short run of it."""

from pathlib import Path

import numpy as np
import pytest
from loading import recipe, recorded
from training_runs import TWO_STEPS, train

from codec.corpus.manifest import write_manifest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short harmonic sounds of six speakers, as train and dev."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, t, records = np.random.default_rng(0), np.arange(24000) / 24000, []
    for index in range(6):
        tone = sum(np.sin(2 * np.pi * (100 + 40 * index) * k * t) / k for k in range(1, 20))
        samples = 0.1 * tone + 0.002 * rng.standard_normal(24000)
        facts = {"speaker": f"speaker {index}", "source": "made here", "licence": "CC0"}
        records.append(recorded(folder / f"{index}.wav", samples, **facts))
    for name in ("train.jsonl", "dev.jsonl"):
        write_manifest(folder / name, records)
    return folder


@pytest.fixture(scope="session")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with discriminators in the second; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(corpus, folder, *TWO_STEPS, "phases.adversarial=1") == 0
    return folder


@pytest.fixture(scope="session")
def model(run: Path) -> Path:
    """The model of that run, with its discriminators."""
    assert recipe("export", run, run.parent / "model", "--with-discriminator") == 0
    return run.parent / "model"
