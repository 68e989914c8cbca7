"""Configurations are read strictly, extend one other at most, and those that are shipped are valid."""

import json
from pathlib import Path

import pytest
import torch
from loading import DEBUG, ROOT

from codec.config import CodecConfig, ConfigError, from_dict
from codec.model import Codec
from codec.pretrained import find_model, shipped_models
from codec.training.config import load_train_config
from codec.training.networks import looking_ahead

CONFIGS = sorted(path for name in ("default", "libritts") for path in (ROOT / "recipes" / name).rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_are_valid(path: Path) -> None:
    config = load_train_config(path)
    with torch.device("meta"):
        codec = Codec(config.model)
    assert codec.hop_length == 320 and codec.num_quantizers >= 1


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_has_its_configuration_in_one_file(name: str) -> None:
    trained = name.replace("-live", "")  # a live decoder is trained beside the other
    path = ROOT / "recipes" / "default" / f"{trained}.yaml"
    assert "\nbase:" not in path.read_text()
    model = from_dict(CodecConfig, json.loads((find_model(name) / "config.json").read_text()))
    config = load_train_config(path)
    assert model in (config.model, *(looking_ahead(config.model, look_ahead) for look_ahead in config.look_aheads))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=5e-4", "YAML reads 5e-4 as text"),
        ("data.segment_seconds=0.41", "no multiple of the hop"),
        ("losses.weights.gan=2.0", "weights: unknown term gan"),
        ("phases.adversarial=1", "before the quantizer"),
        ("data.segment_seconds=.nan", "segment_seconds must be from 0.001 to 3600, not nan"),
        ("data.gain_db=[0.0, -1.0]", "a lowest and a highest gain"),
        ("losses.phase_windows=[]", "phase_windows must be among windows, one at least, or weights.stft 0"),
        ("discriminator={periods: [], resolutions: []}", "must not both be empty"),
        ("discriminator.period_max_channels=1", "period_max_channels must be [0-9]+ or more, not 1"),
        ("discriminator.resolutions=[1024, 510]", r"resolutions must be multiples of 4, not \[1024, 510\]"),
        ("discriminator.band_edges=[0.5, 0.25]", "band_edges must rise and leave each band a bin of"),
        ("look_aheads=[99]", "look_ahead must be from 0 to"),
        ("look_aheads=[2, 2]", r"look_aheads must differ, not \[2, 2\]"),
        ("discriminator.periods=[2, 20000]", "periods: 20000 is longer than a segment of"),
        ("nonsense", "KEY=VALUE"),
        ("seed=[", "not YAML"),
        ("data={workers: 1, workers: 2}", "key 'workers' comes twice"),
    ],
)
def test_config_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(DEBUG, [override])


def test_a_file_extends_one_other_and_mistaken_ones_are_named(tmp_path: Path) -> None:
    folder = ROOT / "recipes" / "default"
    whole, decoder = (load_train_config(folder / f"{name}.yaml") for name in ("speech-24khz-v3", "decoder"))
    assert decoder.model == whole.model and decoder.losses == whole.losses
    assert decoder.optimizer.hold == 0.4 and decoder.optimizer.warmup_steps == whole.optimizer.warmup_steps
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    for base in ("a.yaml", "b.yaml"):
        (tmp_path / "a.yaml").write_text(f"base: {base}\n")
        with pytest.raises(ConfigError, match=f"a.yaml: its base {base} has a base itself; extend a file that"):
            load_train_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"example\.wav: not YAML"):
        load_train_config(ROOT / "tests" / "assets" / "example.wav")
