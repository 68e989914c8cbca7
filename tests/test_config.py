"""Configuration mistakes are named at once."""

from __future__ import annotations

import pytest

from codec.config import CodecConfig, ConfigError, QuantizerConfig, from_dict, to_dict


def test_round_trip_gives_plain_values_and_an_equal_config() -> None:
    config = CodecConfig()
    values = to_dict(config)
    assert values["encoder"]["strides"] == [8, 5, 8] and type(values["encoder"]["strides"][0]) is int
    assert from_dict(CodecConfig, values) == config
    assert from_dict(CodecConfig, {}) == config


def test_later_options_stay_out_of_what_fingerprints_hash() -> None:
    first = ["kind", "num_quantizers", "codebook_size", "codebook_dim", "basis", "map", "map_bias"]  # the first models'
    assert list(to_dict(CodecConfig())["quantizer"]) == first
    changed = CodecConfig(quantizer=QuantizerConfig(gradient="rotation"))
    assert to_dict(changed)["quantizer"]["gradient"] == "rotation"
    assert from_dict(CodecConfig, to_dict(changed)) == changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample_rat": 1}, "unknown key sample_rat; known are sample_rate"),
        ({"encoder": {"stride": [8]}}, "unknown key encoder.stride"),
        ({"sample_rate": "24000"}, "sample_rate must be of type int, not '24000'"),
        ({"sample_rate": 24000.0}, "sample_rate must be of type int"),
        ({"causal": 1}, "causal must be of type bool"),
        ({"encoder": {"strides": [8, "5", 8]}}, r"encoder.strides\[1\] must be of type int"),
        ({"encoder": {"strides": 320}}, "encoder.strides must be a list"),
        ({"encoder": [1]}, "encoder must be a mapping"),
        ({"encoder": {"widths": [1, 2]}}, "encoder: widths must have 3 entries"),
        ({"decoder": {"kind": "upsampling"}}, "decoder.kind must be one of 'istft'"),
        ({"decoder": {"strides": [8, 5, 4]}}, "unknown key decoder.strides"),  # an option that is gone
        ({"decoder": {"n_fft": 1000}}, "decoder.n_fft must be a multiple"),
        ({"quantizer": {"codebook_size": 1}}, "codebook_size must be at least 2"),
        ({"latent_dim": 0}, "latent_dim must be positive"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(CodecConfig, values)
