"""A corpus to train on."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.corpus.manifest import Record, write_manifest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short harmonic sounds of six speakers, as train and dev."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    records = []
    for index in range(6):
        t, path = np.arange(24000) / 24000, folder / f"{index}.wav"
        tone = sum(np.sin(2 * np.pi * (100 + 40 * index) * k * t) / k for k in range(1, 20))
        soundfile.write(path, 0.1 * tone + 0.002 * rng.standard_normal(24000), 24000)
        facts = {"speaker": f"speaker {index}", "source": "made here", "licence": "CC0"}
        records.append(Record(str(index), str(path), 24000, 24000, **facts))
    write_manifest(folder / "train.jsonl", records)
    write_manifest(folder / "dev.jsonl", records)
    return folder
