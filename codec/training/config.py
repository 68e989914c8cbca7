"""A training run's configuration: one YAML file, read strictly, every field with its default here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from codec.config import CodecConfig, ConfigError, from_dict, require, shown, without_repeats

BELOW_ONE = 0.999999
SEEDS, LARGEST = (0, 2**32 - 1), 3e38  # LARGEST: about the largest float32
WEIGHTS = dict(  # of the loss terms, unless a configuration says otherwise
    mel=1.0, stft=1.0, envelope=0.0, commitment=0.1, codebook=0.4, adversarial=0.05, feature_matching=0.1
)


def bounded(default: Any, low: float, high: float = math.inf) -> Any:
    """A field that holds a number, or several, from ``low`` to ``high``."""
    return field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True)
class Bounded:
    """Checks its ``bounded`` fields; a ConfigError gives the field, its bounds and the value."""

    def __post_init__(self) -> None:
        for each in (each for each in fields(self) if "bounds" in each.metadata):
            (low, high), value = each.metadata["bounds"], getattr(self, each.name)
            allowed = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            value = tuple(value.values()) if isinstance(value, dict) else value
            for number in value if isinstance(value, tuple) else (value,):
                require(low <= number <= high, f"{each.name} must be {allowed}, not {shown(number)}")


@dataclass(frozen=True)
class DataConfig(Bounded):
    """Where speech comes from and how it is cut.

    Attributes:
        train, valid: paths of manifests; ``valid`` is never used to train.
        batch_size: segments per step, over all processes together.
        segment_seconds: length of a segment; a whole number of frames.
        gain_db: lowest and highest random gain; a segment is never amplified beyond full scale.
        normalize: before that gain, bring every segment to the level at which speech is encoded.
        max_bad_fraction: training stops if more than this share of the files tried, and more than three, cannot be read.
        workers: reading processes per training process.
        valid_limit: use only so many validation utterances, evenly spaced in the manifests; 0 for all.
        max_speaker_hours: a speaker with more speech is drawn as if it were so much; 0 for no cap.
        resident: hold all training speech in the device's memory, as 16-bit samples, and cut segments there: a GPU never
            waits for files. An hour takes 173 MB at 24 kHz.
    """

    train: tuple[str, ...] = ("manifests/train.jsonl",)
    valid: tuple[str, ...] = ("manifests/dev.jsonl",)
    batch_size: int = bounded(16, 1)
    segment_seconds: float = bounded(1.0, 0.001, 3600)
    gain_db: tuple[float, float] = bounded((-6.0, 3.0), -100, 100)
    normalize: bool = False
    max_bad_fraction: float = bounded(0.01, 0, 1)
    workers: int = bounded(1, 0)
    valid_limit: int = bounded(0, 0)
    max_speaker_hours: float = bounded(0.0, 0)
    resident: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gain_db[0] <= self.gain_db[1], "gain_db must be a lowest and a highest gain")


@dataclass(frozen=True)
class PhaseConfig(Bounded):
    """When what happens, in steps.

    Attributes:
        steps: length of the run.
        autoencoder: steps without quantizer at the start; after them the codebooks are matched to the latents.
        ramp: steps over which the learning rate rises again after that start; none where there is no autoencoder phase.
        adversarial: step at which the discriminators come in; -1 for never.
        minutes: length of the run in time, all its legs together, if ``steps`` is not reached before; 0: no limit of time.
    """

    steps: int = bounded(4600, 1, 99_999_999)  # the digits in a checkpoint's name
    autoencoder: int = bounded(500, 0)
    ramp: int = bounded(150, 0)
    adversarial: int = bounded(-1, -1)
    minutes: float = bounded(0.0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not 0 <= self.adversarial < self.autoencoder, "adversarial training must not begin before the quantizer"
        )

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over at ``step``, after so many seconds of training."""
        return max(step / self.steps, seconds / (60 * self.minutes)) if self.minutes else step / self.steps


@dataclass(frozen=True)
class LossConfig(Bounded):
    """Loss terms; ``weights`` holds their weights, 0 leaves a term out (and saves the work of ``stft`` and ``envelope``).

    Attributes:
        weights: by term; terms not given keep the weights of ``WEIGHTS``. The commitment and codebook losses are summed
            over quantizers.
        windows, mels: window lengths n_fft (the hop is a quarter) and, for each, the mel bands of the log-mel term.
        phase_windows, envelope_windows: those of ``windows`` that the complex-STFT and the envelope term use.
        phase_exponent: of the magnitudes in the complex-STFT term, at most 1; below 1 weak components count for more.
        phase_scale: equal steps of this frequency scale count alike in that term: ``linear`` (every bin) or ``mel``.
    """

    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS), metadata={"bounds": (0, LARGEST)})
    windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    mels: tuple[int, ...] = bounded((16, 32, 64, 80, 128), 1)
    phase_windows: tuple[int, ...] = (256, 512, 1024)
    phase_exponent: float = bounded(1.0, 0.01, 1)
    phase_scale: Literal["linear", "mel"] = "linear"
    envelope_windows: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = ", ".join(sorted(self.weights.keys() - WEIGHTS.keys()))
        require(not unknown, f"weights: unknown term {unknown}; known are {', '.join(WEIGHTS)}")
        object.__setattr__(self, "weights", WEIGHTS | self.weights)
        quarters = bool(self.windows) and all(n_fft >= 4 and n_fft % 4 == 0 for n_fft in self.windows)
        require(quarters, f"windows must be multiples of 4, at least one, not {list(self.windows)}")
        require(len(self.windows) == len(self.mels), f"mels must have {len(self.windows)} entries, one per window")
        for term, name in (("stft", "phase_windows"), ("envelope", "envelope_windows")):
            usable = set() < set(getattr(self, name)) <= set(self.windows) or not self.weights[term]
            require(usable, f"{name} must be among windows, one at least, or weights.{term} 0")


@dataclass(frozen=True)
class DiscriminatorConfig(Bounded):
    """The set of discriminators. The defaults suit a CPU: they cost about as much as the default codec's own step.

    Attributes:
        periods: in samples, one period discriminator each; empty for none.
        period_channels: width of a period discriminator's first layer; it grows fourfold per layer.
        period_max_channels: where that growth ends.
        resolutions: n_fft of the resolution discriminators, hop a quarter of it; empty for none.
        resolution_channels: width of every layer of theirs.
        resolution_stride: step of their first layer along the frequencies. The literature has 1; with 4 a discriminator
            costs half as much or less, and learned faster in short trials.
        batch_share: share of each process's items (one at least) that discriminators and adversarial terms see.
        band_edges: where a resolution discriminator splits the spectrum, in shares of half the sample rate; every band
            has weights of its own. Empty: one band.
    """

    periods: tuple[int, ...] = bounded((2, 5, 11), 1)
    period_channels: int = bounded(4, 1)
    period_max_channels: int = 64
    resolutions: tuple[int, ...] = (2048, 512)
    resolution_channels: int = bounded(8, 1)
    resolution_stride: int = bounded(4, 1, 9)  # the layer's filters are 9 wide
    batch_share: float = bounded(1.0, 0, 1)
    band_edges: tuple[float, ...] = bounded((0.1, 0.25, 0.5, 0.75), 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest, most = self.period_channels, self.period_max_channels
        require(most >= fewest, f"period_max_channels must be {fewest} or more, not {most}")
        require(bool(self.periods or self.resolutions), "periods and resolutions must not both be empty")
        quarters = all(n_fft >= 4 and n_fft % 4 == 0 for n_fft in self.resolutions)
        require(quarters, f"resolutions must be multiples of 4, not {list(self.resolutions)}")
        for n_fft in self.resolutions:
            filled = all(low < high for low, high in split_bands(n_fft, self.band_edges))
            require(filled, f"band_edges must rise and leave each band a bin of {n_fft}, not {list(self.band_edges)}")


def split_bands(n_fft: int, edges: tuple[float, ...]) -> list[tuple[int, int]]:
    """The first bin of each band and the one after its last; every bin is in one band."""
    bins = n_fft // 2 + 1
    return list(pairwise([0, *(int(edge * bins) for edge in edges), bins]))


@dataclass(frozen=True)
class OptimizerConfig(Bounded):
    """AdamW for both networks; the learning rate: linear warm-up, constant peak, then cosine to ``final_ratio`` of it.

    Attributes:
        learning_rate, discriminator_learning_rate: peaks.
        muon_learning_rate: peak for the matrices between the codec's hidden layers, which Muon then trains instead of AdamW;
            0 leaves them to AdamW.
        hold: share of the run that has passed when the peak ends and the cosine begins.
        clip_norm: largest norm of each network's gradient.
        ema_decay: decay of the running average of the weights, which is evaluated and exported.
        max_bad_steps: this many non-finite steps in a row stop the run.
    """

    learning_rate: float = bounded(1e-3, 1e-15, 10)
    discriminator_learning_rate: float = bounded(5e-4, 1e-15, 10)
    muon_learning_rate: float = bounded(0.0, 0, 10)
    betas: tuple[float, float] = bounded((0.8, 0.99), 0, BELOW_ONE)
    weight_decay: float = bounded(0.01, 0, 100)
    warmup_steps: int = bounded(100, 0)
    hold: float = bounded(0.0, 0, BELOW_ONE)
    final_ratio: float = bounded(0.01, 0, 1)
    clip_norm: float = bounded(1.0, 1e-9, 1e9)
    ema_decay: float = bounded(0.998, 0, BELOW_ONE)
    max_bad_steps: int = bounded(20, 1)


@dataclass(frozen=True)
class LogConfig(Bounded):
    """How often, in steps: scalars, validation, checkpoints; and how many checkpoints and audio examples are kept."""

    scalars_every: int = bounded(25, 1)
    valid_every: int = bounded(500, 1)
    checkpoint_every: int = bounded(250, 1)
    keep_checkpoints: int = bounded(2, 1)
    audio_examples: int = bounded(4, 0)


@dataclass(frozen=True)
class TrainConfig(Bounded):
    """Everything that decides a training run.

    Attributes:
        quantizer_dropout: share of the items that train with a random number of stages, on a logarithmic scale.
        precision: bf16 means autocast of the networks; quantizer and losses stay float32.
        look_aheads: in frames, those of further decoders for the same codes, see ``export.py --look-ahead``. Training shows
            mean losses over all decoders, validation those of the model's own decoder.
        train: "decoder" leaves encoder and quantizer as --init gives them, so that codes keep their meaning.
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
    quantizer_dropout: float = bounded(0.25, 0, 1)
    precision: Literal["fp32", "bf16"] = "fp32"
    look_aheads: tuple[int, ...] = ()
    train: Literal["all", "decoder"] = "all"
    compile: bool = False
    seed: int = bounded(0, *SEEDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.look_aheads and self.model.causal), "look_aheads: a causal model looks 0 frames ahead")
        different = len(set(self.look_aheads)) == len(self.look_aheads)
        require(different, f"look_aheads must differ, not {list(self.look_aheads)}")
        for look_ahead in self.look_aheads:
            replace(self.model, decoder=replace(self.model.decoder, look_ahead=look_ahead))  # raises if impossible
        seconds, hop = self.data.segment_seconds, self.model.hop_length
        samples = seconds * self.model.sample_rate
        whole = round(samples / hop) >= 1 and abs(samples / hop - round(samples / hop)) <= 1e-6
        require(whole, f"data.segment_seconds {seconds:g} is {samples:g} samples, no multiple of the hop length {hop}")
        longest = max(self.discriminator.periods, default=1)
        require(longest <= samples, f"discriminator.periods: {longest} is longer than a segment of {samples:g} samples")

    def learning_rate(self, step: int, seconds: float) -> float:
        """Share of the peak learning rate at ``step`` (0-based); ``seconds`` count only if the run has ``minutes``."""
        optimizer, phases = self.optimizer, self.phases
        share = min(1.0, (step + 1) / max(optimizer.warmup_steps, 1))
        if phases.autoencoder and phases.ramp and step >= phases.autoencoder:
            share *= min(1.0, (step - phases.autoencoder + 1) / phases.ramp)
        progress = (phases.progress(step, seconds) - optimizer.hold) / (1 - optimizer.hold)
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
    values = read_yaml(path)
    if "base" in values:
        base = values.pop("base")
        require(isinstance(base, str), f"{path}: base must be a file's path, not {shown(base)}")
        below = read_yaml(path.parent / base)
        require("base" not in below, f"{path}: its base {base} has a base itself; extend a file that stands alone")
        values = _merge(below, values)
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
        raise ConfigError(f"{path}{' with --set' if overrides else ''}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a ConfigError, which names the file, if there is none."""
    values = _parse_yaml(path.read_bytes(), str(path))
    require(isinstance(values, dict), f"{path} must hold a mapping")
    return values


def _parse_yaml(text: str | bytes, where: str) -> Any:
    import yaml

    class Strict(yaml.SafeLoader):
        """Refuses a key that comes twice in one mapping."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            without_repeats((key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    try:
        return yaml.load(text, Strict)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a repeated key, or a date such as 2026-13-45
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
