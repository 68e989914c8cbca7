"""Metrics by neural networks of other packages: used where package and weights are on this machine, else said to be absent.

They rank systems; they are no measure of quality by themselves, and none was trained on the artefacts of this codec.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codec.audio import resample
from codec.errors import CodecError
from codec.evaluation.metrics import Metric, MetricError, Waveform

RATE = 16000
SHORTEST = 0.5  # seconds that a predictor of mean opinion scores needs to say anything

Scorer = Callable[[Waveform, Waveform, int, str], float]  # reference, estimate, sample rate, transcript


class AbsentError(CodecError):
    """A plug-in's package or weights are not here; the message says which."""


@dataclass(frozen=True)
class Plugin:
    """A metric and how to load what computes it: ``load()`` gives a scorer or raises AbsentError."""

    metric: Metric
    load: Callable[[], Scorer]


def _package(name: str) -> Any:
    root = name.split(".")[0]
    if find_spec(root) is None:
        raise AbsentError(f"package {root} is not installed")
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise AbsentError(f"package {name} cannot be imported: {' '.join(str(error).split())[:120]}") from None


def _for_predictor(waveform: Waveform, sample_rate: int) -> Waveform:
    samples = resample(waveform, sample_rate, RATE)
    if len(samples) < SHORTEST * RATE:
        raise MetricError(f"shorter than {SHORTEST:g} s")
    if not samples.any():
        raise MetricError("digital silence cannot be judged")
    return samples


def load_distillmos() -> Scorer:
    """distillmos: a mean opinion score predicted without reference, weights inside its package."""
    with _torchaudio_or_nothing(), redirect_stdout(StringIO()):  # it announces its weights
        model = _package("distillmos").ConvTransformerSQAModel().eval()

    def score(_reference: Waveform, estimate: Waveform, sample_rate: int, _text: str) -> float:
        samples = torch.from_numpy(_for_predictor(estimate, sample_rate))[None]
        with torch.no_grad():
            return float(model(samples))

    return score


class _torchaudio_or_nothing:
    """An empty torchaudio where the real one cannot be loaded: distillmos imports it for its command line only."""

    def __enter__(self) -> None:
        self.placed = False
        try:
            import_module("torchaudio")
        except (ImportError, OSError, RuntimeError):
            sys.modules["torchaudio"] = types.ModuleType("torchaudio")
            self.placed = True

    def __exit__(self, *_: object) -> None:
        if self.placed:
            del sys.modules["torchaudio"]


def load_dnsmos() -> Scorer:
    """DNSMOS P.835, overall quality, by speechmos, weights inside its package."""
    _package("onnxruntime")
    _package("librosa")
    dnsmos = _package("speechmos.dnsmos")

    def score(_reference: Waveform, estimate: Waveform, sample_rate: int, _text: str) -> float:
        samples = _for_predictor(estimate, sample_rate)
        return float(dnsmos.run(np.clip(samples, -1, 1), sr=RATE)["ovrl_mos"])

    return score


def load_utmos() -> Scorer:
    """UTMOSv2 by its package, whose weights must have been fetched before."""
    utmos = _package("utmosv2")
    cache = Path(os.environ.get("UTMOSV2_CHACHE", Path.home() / ".cache" / "utmosv2"))
    if not any(cache.rglob("*.pth")):
        raise AbsentError(f"utmosv2 has no weights in {cache}")
    model = utmos.create_model(pretrained=True)

    def score(_reference: Waveform, estimate: Waveform, sample_rate: int, _text: str) -> float:
        return float(model.predict(data=_for_predictor(estimate, sample_rate), sr=RATE))

    return score


def load_visqol() -> Scorer:
    """ViSQOL in speech mode by its own Python bindings."""
    library = _package("visqol.visqol_lib_py")
    configs = import_module("visqol.pb2.visqol_config_pb2")
    config = configs.VisqolConfig()
    config.audio.sample_rate = RATE
    config.options.use_speech_scoring = True
    models = sorted((Path(library.__file__).parent / "model").glob("lattice*.tflite"))
    if not models:
        raise AbsentError("visqol has no speech model (model/lattice*.tflite)")
    config.options.svr_model_path = str(models[0])
    api = library.VisqolApi()
    api.Create(config)

    def score(reference: Waveform, estimate: Waveform, sample_rate: int, _text: str) -> float:
        pair = [_for_predictor(w, sample_rate).astype(np.float64) for w in (reference, estimate)]
        return float(api.Measure(*pair).moslqo)

    return score


def load_word_errors() -> Scorer:
    """Word error rate of Whisper (package openai-whisper, model "base" fetched before)."""
    whisper = _package("whisper")
    weights = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper" / "base.pt"
    if not weights.is_file():
        raise AbsentError(f"whisper has no weights at {weights}")
    model = whisper.load_model(str(weights))

    def words(waveform: Waveform, sample_rate: int) -> list[str]:
        return normalised_words(model.transcribe(resample(waveform, sample_rate, RATE), fp16=False)["text"])

    def score(reference: Waveform, estimate: Waveform, sample_rate: int, text: str) -> float:
        wanted = normalised_words(text) if text else words(reference, sample_rate)
        if not wanted:
            raise MetricError("no words in the reference")
        return word_errors(wanted, words(estimate, sample_rate)) / len(wanted)

    return score


def normalised_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    kept = "".join(c if c.isalnum() or c in "' " else " " for c in text.lower().replace("\n", " "))
    return kept.split()


def word_errors(wanted: list[str], heard: list[str]) -> int:
    """Least number of words put in, left out or changed (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


_NO_REFERENCE = "predicted from the reconstruction alone at 16 kHz (soxr); for ranking only"

PLUGINS: dict[str, Plugin] = {
    "distillmos": Plugin(
        Metric("DistillMOS", "MOS", "higher", 2, f"Mean opinion score {_NO_REFERENCE}.", "distillmos"), load_distillmos
    ),
    "dnsmos": Plugin(
        Metric("DNSMOS", "MOS", "higher", 2, f"P.835 overall quality {_NO_REFERENCE}.", "speechmos"), load_dnsmos
    ),
    "utmos": Plugin(
        Metric("UTMOS", "MOS", "higher", 2, f"UTMOSv2, mean opinion score {_NO_REFERENCE}.", "utmosv2"), load_utmos
    ),
    "visqol": Plugin(
        Metric("ViSQOL", "MOS-LQO", "higher", 2, "Speech mode at 16 kHz (soxr), with reference.", "visqol"), load_visqol
    ),
    "wer": Plugin(
        Metric(
            "word error rate", "", "lower", 3,
            "Whisper base against the manifest's `text`, or where it has none against what Whisper hears in the reference; "
            "resampled to 16 kHz by soxr, mean of the files' rates.",
            "openai-whisper",
        ),
        load_word_errors,
    ),
}  # fmt: skip


def load_plugins(names: list[str]) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Scorers of the plug-ins that are here, and why the others are not."""
    scorers, absent = {}, {}
    for name in names:
        try:
            scorers[name] = PLUGINS[name].load()
        except AbsentError as error:
            absent[name] = str(error)
        except Exception as error:  # of somebody else's package: whatever it is, the metric is not there
            absent[name] = f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return scorers, absent
