"""What several tests share: a tiny model with random weights, and two short clips of speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from loading import SPEECH
from numpy.typing import NDArray

from codec import Codec, CodecConfig
from codec.config import DecoderConfig, EncoderConfig, QuantizerConfig

torch.set_num_threads(1)  # the tests' networks are tiny: threads would only wait for each other on a busy machine


@pytest.fixture(scope="session")
def tiny_config() -> CodecConfig:
    """16 kHz, 200 frames/s, three quantizers of 32 codes: 3 kbit/s. A window is 2.6 s, a block of a file 1.3 s."""
    return CodecConfig(
        sample_rate=16000,
        latent_dim=16,
        encoder=EncoderConfig(strides=(4, 5, 4), widths=(8, 8, 16), depths=(1, 1, 1)),
        quantizer=QuantizerConfig(num_quantizers=3, codebook_size=32, codebook_dim=4),
        decoder=DecoderConfig(width=16, depth=1, n_fft=320),
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_config: CodecConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of ``tiny_config`` with random weights, called "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Codec(tiny_config).save_pretrained(folder)
    return folder


@pytest.fixture(params=SPEECH.values(), ids=lambda path: path.stem)
def speech(request: pytest.FixtureRequest) -> tuple[NDArray[np.float32], int]:
    """Samples ``[T]`` of a real clip and their rate in Hz: 2.7 s at 24 kHz, then 3.0 s at 16 kHz."""
    samples, rate = soundfile.read(request.param, dtype="float32")
    return samples, rate
