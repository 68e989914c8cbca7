"""Metrics by neural networks of other packages: used where the package is on this machine, else said to be absent.

They rank systems; they are no measure of quality by themselves, and none was trained on the artefacts of this codec.

To add one, write a function that loads its network, and an entry of :data:`NEURAL_METRICS`; the rest follows::

    def load_mine() -> Compute:
        network = import_module("mine").load()
        return lambda pair: float(network(pair.reference.waveform, pair.estimate, pair.reference.sample_rate))

    "mine": NeuralMetric(Metric("Mine", "MOS", "higher", 2, "How it is computed.", package="mine"), load_mine),
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from typing import NamedTuple

import torch

from codec.audio import resample
from codec.evaluation.metrics import Compute, MetricError, Pair
from codec.evaluation.results import Metric

RATE = 16000
SHORTEST = 0.5  # seconds that a predictor of mean opinion scores needs to say anything


class NeuralMetric(NamedTuple):
    """What is said of a metric, and what loads its network."""

    about: Metric
    load: Callable[[], Compute]


def load_distillmos() -> Compute:
    """DistillMOS: a mean opinion score predicted without the reference; the weights are inside its package."""
    with _torchaudio_or_nothing(), redirect_stdout(StringIO()):  # it announces its weights
        model = import_module("distillmos").ConvTransformerSQAModel().eval()

    def score(pair: Pair) -> float:
        samples = resample(pair.estimate, pair.reference.sample_rate, RATE)
        if len(samples) < SHORTEST * RATE:
            raise MetricError(f"shorter than {SHORTEST:g} s")
        if not samples.any():
            raise MetricError("digital silence cannot be judged")
        with torch.no_grad():
            return float(model(torch.from_numpy(samples)[None]))

    return score


@contextmanager
def _torchaudio_or_nothing() -> Iterator[None]:
    """An empty torchaudio where the real one cannot be loaded: distillmos imports it for its command line only."""
    try:
        import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        yield
    finally:
        if sys.modules["torchaudio"].__spec__ is None:
            del sys.modules["torchaudio"]


NEURAL_METRICS: dict[str, NeuralMetric] = {
    "distillmos": NeuralMetric(
        Metric(
            "DistillMOS", "MOS", "higher", 2,
            "Mean opinion score predicted from the reconstruction alone at 16 kHz (soxr); for ranking only.",
            package="distillmos",
        ),
        load_distillmos,
    ),
}  # fmt: skip
