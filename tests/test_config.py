"""Configuration mistakes are named at once."""

import numpy as np
import pytest
import torch

from codec.config import CodecConfig, ConfigError, EncoderConfig, from_dict, whole_number
from codec.errors import CodecError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": {"stride": [8]}}, "unknown key encoder.stride; known are strides"),
        ({"causal": 1}, "causal must be of type bool, not 1"),
        ({"encoder": {"strides": [8, "5", 8]}}, r"encoder.strides\[1\] must be of type int"),
        ({"encoder": {"strides": "3" * 99}}, r"encoder.strides must be a list, not '3+\.\.\.3+'$"),
        ({"encoder": [1]}, "encoder must be a mapping"),
        ({"encoder": {"widths": [1, 2]}}, "encoder: strides, widths and depths must each have one entry per stage"),
        ({"decoder": {"kind": "upsampling"}}, "decoder.kind must be one of 'istft'"),
        ({"decoder": {"n_fft": 1000}}, "decoder.n_fft must be a multiple"),
        ({"decoder": {"strides": [8, 5, 4]}}, "unknown key decoder.strides"),  # an option that is gone
        ({"quantizer": {"codebook_size": 1}}, "codebook_size must be from 2 to 4294967295, not 1"),
        ({"encoder": {"strides": [2**16, 1, 1]}}, "hop length, .*, must be below 65536, not 65536"),
        ({"encoder": {"look_ahead": 1}}, "^encoder.look_ahead must be from 2 to 14, not 1"),
        ({"causal": True, "decoder": {"look_ahead": 7}}, "^decoder.look_ahead must be from 0 to 0, not 7"),
        ({"decoder": {"depth": 1, "n_fft": 5120, "look_ahead": 7}}, "look_ahead must be at most 6, or at least 8"),
        ({"encoder": {"widths": [8, -1, 8]}}, "encoder: strides and widths must be at least 1"),
        ({"decoder": {"kernel_size": 6}}, "kernel_size must be odd"),
        ({"decoder": {"n_fft": 45}}, "n_fft must be even"),
        ({"decoder": {"n_fft": 2**30}}, "decoder: n_fft must be from 2 to 8192"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(CodecConfig, values)


def test_whole_numbers_of_every_library() -> None:
    for value in (7, 7.0, np.int16(7), np.float32(7), np.array(7), torch.tensor(7), torch.tensor(7.0)):
        number = whole_number("x", value, 1, 9)
        assert number == 7 and type(number) is int
    for other in (0, 10, 7.5, np.nan, np.inf, True, None, "7", [7], torch.tensor([7]), 7j):
        with pytest.raises(CodecError, match=r"x must be .*from 1 to 9, not "):
            whole_number("x", other, 1, 9)


def test_numbers_are_stored_as_plain_ones() -> None:
    encoder = EncoderConfig(kernel_size=torch.tensor(7))  # type: ignore[arg-type]
    assert encoder == EncoderConfig() and type(encoder.kernel_size) is int
    with pytest.raises(ConfigError, match="sample_rate must be a whole number"):
        CodecConfig(sample_rate="24000")  # type: ignore[arg-type]
