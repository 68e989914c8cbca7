"""The model's configuration: frozen dataclasses, read strictly, written as plain JSON values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from codec.errors import CodecError

T = TypeVar("T")
_type_hints = functools.cache(typing.get_type_hints)  # slow, and manifests have many lines

RATES = (1000, 768_000)  # lowest and highest sample rate in Hz; resampling from rates far outside would never end
shown = reprlib.repr  # a value as text for a message, cut short if it is long or deep
WIDTHS, DEPTHS, KERNELS = (1, 2**16), (0, 64), (1, 2**12 - 1)  # of layers, far beyond any use


class ConfigError(CodecError):
    """A configuration that cannot be used; the message names the key and what it should be."""


def without_repeats(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of the pairs of a file; a ConfigError if a key comes twice, as one of its values would be lost."""
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ConfigError(f"key {shown(key)} comes twice; leave one of them")
        values[key] = value
    return values


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "", ignore_unknown: bool = False) -> T:
    """Build the dataclass ``cls`` from plain values (JSON, YAML); errors name unknown keys and wrong types.

    An int is taken where a float is asked for; nothing else is converted, so YAML's string "5e-4" is an error. Options
    that are ``RETIRED`` are left out if they have the value that they always had; see ``to_dict``.
    ``ignore_unknown`` ignores unknown keys at any depth, for files that a newer version may have written.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a value that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping, not {shown(values)}")
    retired = getattr(cls, "RETIRED", {})
    values = {key: value for key, value in values.items() if key not in retired or value != retired[key]}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known and not ignore_unknown:
            raise ConfigError(f"unknown key {prefix}{key}; known are {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing key {prefix}{name}")
    converted = {k: _convert(hints[k], value, prefix + k, ignore_unknown) for k, value in values.items() if k in known}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


LATER = {"left_out_at_default": True}  # metadata of a field that is younger than shipped models; see to_dict


def to_dict(config: Any, retired: bool = False) -> dict[str, Any]:
    """The plain values of a configuration dataclass; ``from_dict`` reads them back to an equal object.

    A model's fingerprint hashes this dictionary with ``retired``, and must not change when the code gets a new option or
    loses an old one. So fields marked ``LATER``, which came after the first models, are left out if they have their default.
    The ``RETIRED`` of a class are options that only older models have, each with the only value that ``from_dict`` still
    takes; ``retired`` adds them again.
    """
    present = ((f, getattr(config, f.name)) for f in dataclasses.fields(config))
    values = {f.name: _plain(v, retired) for f, v in present if not (f.metadata == LATER and v == f.default)}
    return values | getattr(config, "RETIRED", {}) if retired else values


def _plain(value: Any, retired: bool) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value, retired)
    if isinstance(value, dict):
        return {k: _plain(v, retired) for k, v in value.items()}
    return [_plain(v, retired) for v in value] if isinstance(value, tuple) else value


def _convert(hint: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, ignore_unknown)  # type: ignore[arg-type]
    if origin is Literal:
        if value in args and any(type(value) is type(arg) for arg in args):
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, args))}, not {shown(value)}")
    if origin in (typing.Union, types.UnionType):  # only "X | None" is used
        return None if value is None else _convert(args[0], value, where, ignore_unknown)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {shown(value)}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(kinds):
            raise ConfigError(f"{where} must have {len(kinds)} items, not {len(value)}")
        return tuple(_convert(kinds[i], item, f"{where}[{i}]", ignore_unknown) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where} must be a mapping of names, not {shown(value)}")
        return {key: _convert(args[1], item, f"{where}.{key}", ignore_unknown) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        text = hint is float and isinstance(value, str)
        note = " (YAML reads 5e-4 as text; write 5.0e-4; exponents need a sign)" if text else ""
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {shown(value)}{note}")
    return value


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with the message if a condition of a configuration is not met."""
    if not condition:
        raise ConfigError(message)


def whole_number(name: str, value: Any, low: int, high: int, error: type[CodecError] = CodecError) -> int:
    """A number of Python or numpy, or a tensor without dimensions, as an int; ``error`` if not whole, or out of range."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    whole = type(number) is int or (type(number) is float and number.is_integer())
    if not whole or not low <= number <= high:
        raise error(f"{name} must be {'' if whole else 'a whole number '}from {low} to {high}, not {shown(value)}")
    return int(number)


def set_whole(config: Any, error: type[CodecError], **ranges: tuple[int, int]) -> None:
    """Check that fields of a frozen dataclass hold whole numbers within their ``ranges``; store them as plain ints."""
    for name, limits in ranges.items():
        object.__setattr__(config, name, whole_number(name, getattr(config, name), *limits, error))


@dataclass(frozen=True)
class EncoderConfig:
    """Waveform encoder: for each stride one strided convolution and ``depths[i]`` ConvNeXt blocks of ``widths[i]``.

    ``look_ahead`` is the number of frames after its own on which a code may depend; default: that of centred filters. If it
    is smaller, the last stage's blocks look less far ahead, the last ones first: trained encoders use their future least.
    """

    strides: tuple[int, ...] = (8, 5, 8)
    widths: tuple[int, ...] = (48, 128, 256)
    depths: tuple[int, ...] = (1, 2, 4)
    kernel_size: int = 7
    look_ahead: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        set_whole(self, ConfigError, kernel_size=KERNELS)
        entries = {len(self.strides), len(self.widths), len(self.depths)}
        require(len(entries) == 1 and 0 not in entries, "strides, widths and depths must each have one entry per stage")
        require(min(*self.strides, *self.widths) >= 1, "strides and widths must be at least 1")
        require(min(self.depths) >= 0, "depths must not be negative")
        require(self.kernel_size % 2 == 1, "kernel_size must be odd")


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck. ``kind`` names an entry of ``codec.quantizers.QUANTIZERS``.

    ``codebook_dim`` is the dimension of the lookup; where it differs from the latents' width every stage has its own
    projections in and out. ``basis``, ``map`` and ``map_bias`` choose the SimVQ variant. ``gradient`` says how the
    encoder's gradient passes the lookup (``codec/quantizers/base.py``).
    """

    kind: str = "residual_simvq"
    num_quantizers: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 16
    basis: Literal["frozen", "learnable", "data"] = "frozen"
    map: Literal["dense", "diagonal"] = "dense"
    map_bias: bool = True
    gradient: Literal["straight_through", "rotation"] = field(default="straight_through", metadata=LATER)

    def __post_init__(self) -> None:
        set_whole(self, ConfigError, num_quantizers=(1, 2**8 - 1), codebook_size=(2, 2**32 - 1), codebook_dim=WIDTHS)


@dataclass(frozen=True)
class DecoderConfig:
    """Frames to waveform: ``depth`` ConvNeXt blocks of ``width``, then an inverse STFT of ``n_fft`` with the model's hop.

    ``look_ahead`` is the number of frames after its own on which a frame of the waveform may depend; default: that of centred
    filters. The inverse STFT's window takes its part of it (2 if n_fft is 4 hops), the rest is spread over the blocks.
    """

    # options of a decoder of transposed convolutions; see to_dict
    RETIRED: ClassVar[dict[str, list[int]]] = {"strides": [8, 5, 8], "widths": [128, 64, 32], "depths": [2, 1, 1]}

    kind: Literal["istft"] = "istft"
    width: int = 320
    depth: int = 6
    kernel_size: int = 7
    n_fft: int = 1280
    look_ahead: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        set_whole(self, ConfigError, width=WIDTHS, depth=DEPTHS, kernel_size=KERNELS, n_fft=(2, 2**13))
        require(self.kernel_size % 2 == 1, "kernel_size must be odd")
        require(self.n_fft % 2 == 0, "n_fft must be even")


@dataclass(frozen=True)
class CodecConfig:
    """One codec. The hop length is the product of the encoder's strides.

    If encoder and codebooks are those of a model whose decoder has another size, that one is ``first_decoder``. It counts in
    the fingerprint instead of ``decoder``, as codes mean the same to both.
    """

    sample_rate: int = 24000
    latent_dim: int = 256
    causal: bool = False
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    first_decoder: DecoderConfig | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        set_whole(self, ConfigError, sample_rate=RATES, latent_dim=WIDTHS)
        hop = self.hop_length
        require(hop < 2**16, f"the hop length, the product of the strides, must be below {2**16}, not {hop}")
        require(
            self.decoder.n_fft % hop == 0 and self.decoder.n_fft >= 2 * hop,
            f"decoder.n_fft must be a multiple (2 or more) of the hop length {hop}, not {self.decoder.n_fft}",
        )
        self.encoder_layers(), self.decoder_layers()  # these check look_ahead

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.encoder.strides)

    @property
    def num_quantizers(self) -> int:
        """Stages K, the most codes that a frame can have: 1 where the quantizer is no residual stack."""
        return self.quantizer.num_quantizers if self.quantizer.kind.startswith("residual_") else 1

    def encoder_layers(self) -> list[list[Reach]]:
        """The reach of each encoder stage's layers, first its strided convolution; ConfigError: a wrong look_ahead."""
        encoder, others = self.encoder, self.encoder.kernel_size - 1  # taps of a filter for other steps than its own
        half = 0 if self.causal else others // 2
        back = [stride if self.causal else stride // 2 for stride in encoder.strides]
        stages = [
            [Reach(left, stride - left, stride), *[Reach(others - half, half)] * depth]
            for left, stride, depth in zip(back, encoder.strides, encoder.depths, strict=True)
        ]
        if encoder.look_ahead is not None:
            most = reach(itertools.chain(*stages)).right
            least = most - half * encoder.depths[-1]
            left = whole_number("encoder.look_ahead", encoder.look_ahead, least, most, ConfigError) - least
            shares = [min(half, max(left - half * index, 0)) for index in range(encoder.depths[-1])]
            stages[-1][1:] = [Reach(others - share, share) for share in shares]
        return stages

    def decoder_layers(self) -> list[Reach]:
        """The reach of the decoder's blocks, then of its inverse STFT, whose windows are centred or only look back."""
        decoder, depth = self.decoder, self.decoder.depth
        others = decoder.n_fft // self.hop_length - 1  # hops that a frame's window covers beside its own
        window = -(-others // 2)  # how many of them are ahead, if it is centred
        total = 0 if self.causal else depth * (decoder.kernel_size // 2) + window
        if decoder.look_ahead is not None:
            total = whole_number("decoder.look_ahead", decoder.look_ahead, 0, total, ConfigError)
        head = Reach(others, 0) if total < window else Reach(window, window)
        left, most = total - head.right, depth * (decoder.kernel_size - 1)
        require(left <= most, f"decoder.look_ahead must be at most {most}, or at least {window}, not {total}")
        # evenly over the blocks; the first ones get the remainder
        shares = [left // depth + (index < left % depth) for index in range(depth)]
        return [*(Reach(decoder.kernel_size - 1 - share, share) for share in shares), head]


class Reach(NamedTuple):
    """How far layers look: input steps before and after their own steps, of which ``stride`` make an output step."""

    left: int
    right: int
    stride: int = 1


def reach(layers: Iterable[Reach]) -> Reach:
    """The reach of layers that follow one another, in output steps of the last one."""
    before, after, step = 0, 0, 1  # in input steps of the first layer
    for left, right, stride in layers:
        before += step * left
        after += step * right
        step *= stride
    return Reach(-(-before // step), -(-after // step))


def lag(left: int, right: int, stride: int, delay: int) -> tuple[int, int]:
    """How many input steps a layer of a stream holds, and how late its output is, if its input is ``delay`` steps late.

    Beside the ``left`` steps before its own it holds the steps that it waits for: all to which it looks ahead, in whole
    strides; and if the delay is no whole number of strides, the rest of the last stride.
    """
    wait, look_ahead = -delay % stride, -(-right // stride)
    return left + look_ahead * stride + wait, (delay + wait) // stride + look_ahead
