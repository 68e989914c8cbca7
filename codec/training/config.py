"""A training run's configuration: one YAML file, read strictly, every field with its default here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codec.config import CodecConfig, ConfigError, from_dict, require
from codec.training.discriminators import DiscriminatorConfig

WEIGHTS = {
    "mel": 1.0,
    "stft": 1.0,
    "envelope": 0.0,
    "commitment": 0.1,
    "codebook": 0.4,
    "adversarial": 0.05,
    "feature_matching": 0.1,
}


@dataclass(frozen=True)
class DataConfig:
    """Where speech comes from and how it is cut.

    Attributes:
        train, valid: paths of manifests. ``valid`` is never trained on.
        batch_size: segments per step, over all processes together.
        segment_seconds: length of a segment; a whole number of frames.
        gain_db: lowest and highest random gain; a segment is never amplified beyond full scale.
        max_bad_fraction: training stops once more than this share of the files tried cannot be read.
        workers: reading processes per training process.
        valid_limit: use only the first so many validation utterances; 0 for all.
        max_speaker_hours: a speaker with more speech is drawn as if it were so much; 0 for no cap.
    """

    train: tuple[str, ...] = ("manifests/train.jsonl",)
    valid: tuple[str, ...] = ("manifests/dev.jsonl",)
    batch_size: int = 16
    segment_seconds: float = 1.0
    gain_db: tuple[float, ...] = (-6.0, 3.0)
    max_bad_fraction: float = 0.01
    workers: int = 1
    valid_limit: int = 0
    max_speaker_hours: float = 0.0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1 and self.workers >= 0, "batch_size must be at least 1 and workers not negative")
        require(0 < self.segment_seconds < math.inf, "segment_seconds must be a positive number")
        require(self.max_speaker_hours >= 0, "max_speaker_hours must not be negative (0: no cap)")
        require(self.valid_limit >= 0, "valid_limit must not be negative (0: all utterances)")
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction must be from 0 to 1")
        ordered = len(self.gain_db) == 2 and -math.inf < self.gain_db[0] <= self.gain_db[1] < math.inf
        require(ordered, "gain_db must be a lowest and a highest gain")


@dataclass(frozen=True)
class PhaseConfig:
    """When what happens, in steps.

    Attributes:
        steps: length of the run.
        autoencoder: steps without quantizer at the start; then the codebooks are matched to the latents' distribution.
        ramp: steps over which the learning rate rises again after that start.
        adversarial: step at which the discriminators come in; -1 for never.
    """

    steps: int = 4600
    autoencoder: int = 500
    ramp: int = 150
    adversarial: int = -1

    def __post_init__(self) -> None:
        least = min(self.autoencoder, self.ramp, self.adversarial + 1)
        require(self.steps >= 1 and least >= 0, "phases must not be negative (adversarial: -1 for never)")
        early = 0 <= self.adversarial < self.autoencoder
        require(not early, "adversarial training must not begin before the quantizer")


@dataclass(frozen=True)
class LossConfig:
    """Loss terms; a term's weight stands in ``weights``, 0 leaves it out (and saves the work of ``stft`` and ``envelope``).

    Attributes:
        weights: of each term; those left out keep the defaults of ``WEIGHTS``. The commitment and codebook losses are
            summed over quantizers.
        windows, mels: window lengths n_fft (the hop is a quarter) and, for each, the mel bands of the log-mel term.
        phase_windows: those of ``windows`` with the complex-STFT term.
        phase_exponent: of the magnitudes in that term, above 0 to 1; below 1 weak components count for more.
        phase_scale: the frequency scale whose equal steps count alike in that term: ``linear`` (every bin) or ``mel``.
        envelope_windows: those of ``windows`` with the envelope term.
        envelope_bands: mel bands of that term.
    """

    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    mels: tuple[int, ...] = (16, 32, 64, 80, 128)
    phase_windows: tuple[int, ...] = (256, 512, 1024)
    phase_exponent: float = 1.0
    phase_scale: Literal["linear", "mel"] = "linear"
    envelope_windows: tuple[int, ...] = (512,)
    envelope_bands: int = 24

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(self.weights.keys() - WEIGHTS.keys()))
        require(not unknown, f"weights: unknown term {unknown}; known are {', '.join(WEIGHTS)}")
        for name, weight in self.weights.items():
            require(0 <= weight < math.inf, f"weights.{name} must be a number from 0 on, not {weight}")
        object.__setattr__(self, "weights", WEIGHTS | self.weights)
        usable = bool(self.windows) and all(window >= 4 and window % 4 == 0 for window in self.windows)
        require(usable, "windows must be multiples of 4, at least one")
        require(len(self.windows) == len(self.mels), f"mels must have {len(self.windows)} entries, one per window")
        require(min(*self.mels, self.envelope_bands) >= 1, "mels and envelope_bands must be at least 1")
        for term, name in (("stft", "phase_windows"), ("envelope", "envelope_windows")):
            chosen = set(getattr(self, name))
            usable = bool(chosen) and chosen <= set(self.windows)
            message = f"{name} must be among windows, one at least, or weights.{term} 0"
            require(usable or not self.weights[term], message)
        require(0 < self.phase_exponent <= 1, "phase_exponent must be above 0 and at most 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for both networks: linear warm-up, the peak held, then cosine to ``final_ratio`` of it.

    Attributes:
        learning_rate, discriminator_learning_rate: peaks.
        muon_learning_rate: peak for the matrices between the codec's hidden layers, which Muon then trains instead of AdamW;
            0 leaves them to AdamW.
        hold: share of the run for which the peak is held before the cosine begins.
        clip_norm: largest norm of each network's gradient.
        ema_decay: of the running average of the weights that is evaluated and exported.
        max_bad_steps: so many non-finite steps in a row stop the run.
    """

    learning_rate: float = 1e-3
    discriminator_learning_rate: float = 5e-4
    muon_learning_rate: float = 0.0
    betas: tuple[float, ...] = (0.8, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    hold: float = 0.0
    final_ratio: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.discriminator_learning_rate)
        require(all(0 < rate < math.inf for rate in rates), "learning rates must be positive numbers")
        require(0 <= self.muon_learning_rate < math.inf, "muon_learning_rate must not be negative (0: AdamW for all)")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas must be two, from 0 to below 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay must not be negative")
        require(self.warmup_steps >= 0, "warmup_steps must not be negative")
        require(0 <= self.hold < 1, "hold must be from 0 to below 1")
        require(0 <= self.final_ratio <= 1, "final_ratio must be from 0 to 1")
        require(0 < self.clip_norm < math.inf, "clip_norm must be a positive number")
        require(0 <= self.ema_decay < 1, "ema_decay must be from 0 to below 1")
        require(self.max_bad_steps >= 1, "max_bad_steps must be at least 1")


@dataclass(frozen=True)
class LogConfig:
    """How often, in steps: scalars, validation, checkpoints; and how many checkpoints and audio examples are kept."""

    scalars_every: int = 25
    valid_every: int = 500
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    audio_examples: int = 4

    def __post_init__(self) -> None:
        least = min(self.scalars_every, self.valid_every, self.checkpoint_every, self.keep_checkpoints)
        require(least >= 1, "intervals and keep_checkpoints must be at least 1")
        require(self.audio_examples >= 0, "audio_examples must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        quantizer_dropout: share of the items that train with a random number of stages.
        precision: bf16 means autocast of the networks; quantizer and losses stay float32.
        compile: torch.compile of the codec's forward pass.
        seed: of every random choice.
    """

    model: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    phases: PhaseConfig = field(default_factory=PhaseConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    log: LogConfig = field(default_factory=LogConfig)
    quantizer_dropout: float = 0.25
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        samples = self.data.segment_seconds * self.model.sample_rate
        frames = samples / self.model.hop_length
        require(
            samples >= 1 and abs(frames - round(frames)) <= 1e-6,
            f"data.segment_seconds {self.data.segment_seconds:g} is {samples:g} samples, not a multiple of the hop "
            f"length {self.model.hop_length}",
        )
        require(0 <= self.quantizer_dropout <= 1, "quantizer_dropout must be from 0 to 1")

    def learning_rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step`` (0-based), from the step alone."""
        optimizer, phases = self.optimizer, self.phases
        share = min(1.0, (step + 1) / max(optimizer.warmup_steps, 1))
        if phases.autoencoder and phases.ramp and step >= phases.autoencoder:
            share *= min(1.0, (step - phases.autoencoder + 1) / phases.ramp)
        progress = (step / phases.steps - optimizer.hold) / (1 - optimizer.hold)
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return share * (optimizer.final_ratio + (1 - optimizer.final_ratio) * cosine)


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration; ``overrides`` are ``key.path=value``, the value in YAML.

    A file may extend one other that stands alone: ``base: other.yaml``, relative to itself.

    Raises:
        ConfigError: not YAML, unknown key, wrong type, values that contradict each other, or a base with a base.
        OSError: the file or its base cannot be read.
    """
    path = Path(path)
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is not None:
        require(isinstance(base, str), f"{path}: base must be the name of a file, not {base!r}")
        base_values = _read_yaml(path.parent / base)
        deep = f"{path}: its base {base} has a base itself, {base_values.get('base')}; extend a file that stands alone"
        require("base" not in base_values, deep)
        values = _merge(base_values, values)
    for override in overrides:
        key, equals, text = override.partition("=")
        require(bool(equals), f"--set takes KEY=VALUE, not {override!r}")
        nested: Any = _parse_yaml(text, override)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    try:
        return from_dict(TrainConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
