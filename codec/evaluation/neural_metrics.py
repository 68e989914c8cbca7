"""Metrics by neural networks of other packages: used where the package is on this machine, else said to be absent.

They rank systems; they are no measure of quality by themselves, and none was trained on the artefacts of this codec.

To add one, write a function of a pair that loads its network once, and an entry of :data:`NEURAL_METRICS`::

    def mine(pair: Pair) -> float:
        return float(_network()(pair.reference.waveform, pair.estimate, pair.reference.sample_rate))

    "mine": PairMetric(Metric("Mine", "MOS", "higher", 2, "How it is computed.", package="mine"), mine),
"""

from __future__ import annotations

import sys
import types
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from typing import Any

import torch

from codec.audio import resample
from codec.evaluation.metrics import RATE, MetricError, Pair, PairMetric
from codec.evaluation.results import Metric


def distillmos(pair: Pair) -> float:
    """DistillMOS: a mean opinion score predicted without the reference."""
    samples = resample(pair.estimate, pair.reference.sample_rate, RATE)
    if len(samples) < 0.5 * RATE:  # too little to say anything
        raise MetricError("shorter than 0.5 s")
    if not samples.any():
        raise MetricError("digital silence cannot be judged")
    with torch.no_grad():
        return float(_distillmos_network()(torch.from_numpy(samples)[None]))


@cache
def _distillmos_network() -> Any:
    """The network with the weights inside its package, which imports torchaudio, but for its command line only."""
    try:
        import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):  # not here, or built for another torch
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    with redirect_stdout(StringIO()):  # it announces its weights
        return import_module("distillmos").ConvTransformerSQAModel().eval()


NEURAL_METRICS: dict[str, PairMetric] = {
    "distillmos": PairMetric(Metric(
        "DistillMOS", "MOS", "higher", 2,
        "Mean opinion score predicted from the reconstruction alone at 16 kHz (soxr); for ranking only.",
        package="distillmos",
    ), distillmos),
}  # fmt: skip
