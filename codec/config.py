"""The model's configuration: frozen dataclasses, read strictly, written as plain JSON values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as short_repr
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from codec.errors import CodecError

T = TypeVar("T")
_type_hints = functools.cache(typing.get_type_hints)  # slow, and manifests have many lines

RATES = (1000, 768_000)  # lowest and highest sample rate in Hz that is taken; resampling from far out would never end
WIDTHS, DEPTHS, KERNELS = (1, 2**16), (0, 64), (1, 2**12 - 1)  # of layers, far beyond any use


class ConfigError(CodecError):
    """A configuration that cannot be used; the message names the key and what it should be."""


def shown(value: Any) -> str:
    """The value in a message, cut short however long or deep it is."""
    try:
        return short_repr(value)
    except ValueError:  # of more digits than Python writes
        return "a number of thousands of digits"


def without_repeats(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of the pairs of a file; a ConfigError where a key comes twice: one of its values would be lost."""
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ConfigError(f"key {shown(key)} comes twice; leave one of them")
        values[key] = value
    return values


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "", ignore_unknown: bool = False) -> T:
    """Build the dataclass ``cls`` from plain values (JSON, YAML), naming unknown keys and wrong types at once.

    An int is taken where a float is asked for; nothing else is converted, so YAML's string "5e-4" is an error. Options
    that are ``RETIRED`` are left out while they have the value they always had; see ``to_dict``.
    ``ignore_unknown`` passes unknown keys over, at any depth: for files that a newer version may have written.

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


LATER = {"left_out_at_default": True}  # metadata of a field that came after models were shipped; see to_dict


def to_dict(config: Any, retired: bool = False) -> dict[str, Any]:
    """The plain values of a configuration dataclass; ``from_dict`` reads them back to an equal object.

    A model's fingerprint hashes this dictionary with ``retired``, and must not change because the code has learned a new
    option or lost an old one. Fields marked ``LATER``, which came after the first models, are left out while they have their
    default. ``RETIRED`` of a class holds options of older models that are gone, with the only value that ``from_dict``
    still takes for them; ``retired`` adds them again.
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
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not hint:
        text = hint is float and isinstance(value, str)
        note = " (YAML reads 5e-4 as text; write 5.0e-4; exponents need a sign)" if text else ""
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {shown(value)}{note}")
    return value


def require(condition: bool, message: str) -> None:
    """What a configuration must fulfil; a ConfigError with the message if it does not."""
    if not condition:
        raise ConfigError(message)


def whole_number(name: str, value: Any, low: int, high: int, error: type[CodecError] = CodecError) -> int:
    """The value as an int, be it a number of Python or numpy or a tensor without dimensions; ``error`` if it is none."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    whole = type(number) is int or (type(number) is float and number.is_integer())
    if not whole or not low <= number <= high:
        raise error(f"{name} must be {'' if whole else 'a whole number '}from {low} to {high}, not {shown(value)}")
    return int(number)


def set_whole(config: Any, error: type[CodecError], **ranges: tuple[int, int]) -> None:
    """Check, from lowest to highest, fields of a frozen dataclass that hold whole numbers; store them as plain ints."""
    for name, limits in ranges.items():
        value = getattr(config, name)
        many = isinstance(getattr(type(config), name, None), tuple)  # as its default is
        items = value if many and isinstance(value, (list, tuple)) else [value]
        numbers = tuple(whole_number(name, item, *limits, error) for item in items)
        object.__setattr__(config, name, numbers if many else numbers[0])


@dataclass(frozen=True)
class EncoderConfig:
    """Waveform encoder: for each stride one strided convolution and ``depths[i]`` ConvNeXt blocks of ``widths[i]``.

    ``look_ahead`` is how many frames after its own a code may depend on, in all. What is less than with centred filters, the
    default, is taken from the last stage's blocks, the last ones first: trained encoders use their future least.
    """

    strides: tuple[int, ...] = (8, 5, 8)
    widths: tuple[int, ...] = (48, 128, 256)
    depths: tuple[int, ...] = (1, 2, 4)
    kernel_size: int = 7
    look_ahead: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        set_whole(self, ConfigError, strides=WIDTHS, widths=WIDTHS, depths=DEPTHS, kernel_size=KERNELS)
        n = len(self.strides)
        require(1 <= n <= 16, "strides must have 1 to 16 entries")
        require(len(self.widths) == n, f"widths must have {n} entries, one per stride")
        require(len(self.depths) == n, f"depths must have {n} entries, one per stride")
        require(self.kernel_size % 2 == 1, "kernel_size must be odd")
        if self.look_ahead is not None:
            set_whole(self, ConfigError, look_ahead=(0, 2**16))


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

    ``look_ahead`` is how many frames after its own a frame of the waveform may depend on, those of the inverse STFT's window
    included (2 where n_fft is 4 hops); the rest is spread over the blocks. Default: centred filters.
    """

    # of a decoder of transposed convolutions; see to_dict
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
        if self.look_ahead is not None:
            set_whole(self, ConfigError, look_ahead=(0, 2**16))


@dataclass(frozen=True)
class CodecConfig:
    """One codec. The hop length is the product of the encoder's strides.

    ``first_decoder`` is that of the model whose encoder and codebooks these are, where ``decoder`` is of another size: it
    counts in the fingerprint instead, as codes mean the same to both.
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
        self.encoder_layers(), self.decoder_layers()  # which check their look_ahead

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.encoder.strides)

    @property
    def num_quantizers(self) -> int:
        """Stages K, the most codes that a frame can have: 1 where the quantizer is no residual stack."""
        return self.quantizer.num_quantizers if self.quantizer.kind.startswith("residual_") else 1

    def encoder_layers(self) -> list[list[Reach]]:
        """How far the layers of each stage of the encoder look, the strided convolution first; ConfigError if they cannot."""
        encoder, others = self.encoder, self.encoder.kernel_size - 1  # taps of a filter beside the one of its own step
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
        """How far the decoder's blocks look, and then its inverse STFT, whose windows are centred or look back only."""
        decoder, depth = self.decoder, self.decoder.depth
        others = decoder.n_fft // self.hop_length - 1  # further hops that a frame's window covers beside its own
        window = -(-others // 2)  # of them ahead, if it is centred
        total = 0 if self.causal else depth * (decoder.kernel_size // 2) + window
        if decoder.look_ahead is not None:
            total = whole_number("decoder.look_ahead", decoder.look_ahead, 0, total, ConfigError)
        head = Reach(others, 0) if total < window else Reach(window, window)
        left, most = total - head.right, depth * (decoder.kernel_size - 1)
        require(left <= most, f"decoder.look_ahead must be at most {most}, or at least {window}, not {total}")
        # for the blocks: evenly, the first ones more
        shares = [left // depth + (index < left % depth) for index in range(depth)]
        return [*(Reach(decoder.kernel_size - 1 - share, share) for share in shares), head]


class Reach(NamedTuple):
    """How far a layer, or several, look: steps of the input before and after their own, of which ``stride`` are one of the
    output.
    """

    left: int
    right: int
    stride: int = 1


def reach(layers: Iterable[Reach]) -> Reach:
    """How far layers that follow one another look, in steps of the last one's output."""
    before, after, step = 0, 0, 1  # of the first one's input
    for left, right, stride in layers:
        before += step * left
        after += step * right
        step *= stride
    return Reach(-(-before // step), -(-after // step))


def lag(left: int, right: int, stride: int, delay: int) -> tuple[int, int]:
    """What a layer of a stream holds, in input steps, and how late its output is, if its input is ``delay`` steps late.

    Beside the ``left`` steps before its own it holds what it waits for: all that it looks ahead to, in whole strides; and
    where a late input begins within a stride, the rest of that stride.
    """
    wait, look_ahead = -delay % stride, -(-right // stride)
    return left + look_ahead * stride + wait, (delay + wait) // stride + look_ahead
