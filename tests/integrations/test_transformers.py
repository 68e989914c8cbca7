"""CodecModel among transformers' models: it gives what Codec gives, and comes back from a folder by the Auto classes."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from loading import SPEECH, load_script
from safetensors.torch import load_file, save_file

from codec import Codec, CodecConfig, CodecError
from codec.config import to_dict
from codec.pretrained import find_model

pytestmark = [
    pytest.mark.slow,  # importing transformers takes seconds
    pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of transformers' own making
]


@pytest.fixture(scope="module")
def integration() -> Any:
    """The module under test. transformers would import torchaudio if there is one, even one built for another torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", None)
        from codec.integrations import transformers
    return transformers


@pytest.fixture(scope="module")
def shipped(integration: Any) -> Any:
    return integration.CodecModel.from_codec("speech-24khz")


@pytest.fixture(scope="module")
def items() -> list[np.ndarray]:
    """A clip of speech at 24 kHz, and part of it."""
    samples, _ = soundfile.read(SPEECH[24000], dtype="float32")
    return [samples, samples[5000:30001]]


@pytest.mark.parametrize("kind", ["residual_simvq", "simvq", "fsq"])
def test_a_folder_comes_back(integration: Any, tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedModel

    class Speaker(PreTrainedModel):  # it holds one
        config_class = integration.CodecModelConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.codec_model = integration.CodecModel(config)
            self.post_init()

    config = load_script("tests/golden/make.py").tiny_config(kind)
    codec = Codec(config, name="tiny")
    model = integration.CodecModel.from_codec(codec)
    model.save_pretrained(tmp_path)
    with pytest.raises(CodecError, match="codec-export or a CodecModel wrote it"):
        Codec.from_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(again) is integration.CodecModel and not again.training
    assert (again.codec.name, again.codec.fingerprint, again.codec.config) == ("tiny", codec.fingerprint, config)
    waveform = torch.randn(2, 1, 5000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    speaker = Speaker(model.config)
    speaker.codec_model = model
    speaker.save_pretrained(tmp_path / "speaker")
    state = torch.get_rng_state()
    for one in (again, *(Speaker.from_pretrained(tmp_path / "speaker").codec_model for _ in range(3))):
        assert all(map(torch.equal, model(waveform).to_tuple(), one(waveform).to_tuple()))
    assert torch.equal(torch.get_rng_state(), state)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    assert AutoFeatureExtractor.from_pretrained(tmp_path).sampling_rate == config.sample_rate


def test_a_new_model_has_the_weights_of_a_new_codec(integration: Any, tiny_config: CodecConfig, tmp_path: Path) -> None:
    """Also where a file lacks some: they are drawn, and the others are as stored."""
    model = integration.CodecModel(integration.CodecModelConfig(to_dict(tiny_config)))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = weights.pop("codec.encoder.output.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    partly = integration.CodecModel.from_pretrained(tmp_path).state_dict()
    assert 0.5 < partly.pop("codec.encoder.output.weight").std() / missing.std() < 2
    assert weights.keys() == partly.keys() and all(torch.equal(weights[name], partly[name]) for name in weights)


def test_padding_changes_no_code(integration: Any, shipped: Any, items: list[np.ndarray]) -> None:
    from transformers import EncodecFeatureExtractor

    inputs = EncodecFeatureExtractor()(items, sampling_rate=24000, return_tensors="pt")
    output = shipped(**inputs)
    assert output.audio_values.shape == inputs["input_values"].shape
    mask = shipped.get_audio_codes_mask(inputs["padding_mask"])
    assert mask.shape == output.audio_codes[:, 0].shape and not output.audio_codes.mT[~mask].any()
    three_axes = shipped(inputs["input_values"], inputs["padding_mask"][:, None])
    assert torch.equal(three_axes.audio_codes, output.audio_codes)
    for row, item in enumerate(items):
        alone = shipped(torch.from_numpy(item)[None, None])
        assert torch.equal(output.audio_codes[row][:, mask[row]], alone.audio_codes[0])
        assert torch.equal(output.audio_values[row, 0, : len(item)], alone.audio_values[0, 0])
        assert not output.audio_values[row, 0, len(item) :].any()


def test_it_gives_what_the_codec_gives(integration: Any, shipped: Any, items: list[np.ndarray], tmp_path: Path) -> None:
    """Half precision, too, gives these codes: it is not taken."""
    codec, waveform = Codec.from_pretrained("speech-24khz"), torch.from_numpy(items[1])[None, None]
    codes = codec.encode(waveform, 24000)
    assert torch.equal(shipped.encode(waveform).audio_codes, codes)
    shipped.save_pretrained(tmp_path)
    half = integration.CodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.encode(waveform).audio_codes, codes)
    assert torch.equal(shipped.encode(waveform, bandwidth=1.5).audio_codes, codes[:, :2])
    assert torch.equal(shipped.encode(waveform, num_quantizers=3, return_dict=False)[0], codes[:, :3])
    assert torch.equal(shipped.decode(codes[:, :3]).audio_values, codec.decode(codes[:, :3]))
    assert torch.equal(shipped(waveform, return_dict=False)[1], codec.decode(codes)[..., : waveform.shape[-1]])
    config = shipped.config
    assert (config.sampling_rate, config.hop_length, config.frame_rate) == (24000, 320, 75.0)
    assert (config.codebook_size, config.num_quantizers, config.num_codebooks, config.hidden_size) == (1024, 8, 8, 256)
    assert config.target_bandwidths == pytest.approx([0.75 * k for k in range(1, 9)])


def test_what_is_refused(shipped: Any) -> None:
    waveform, mask = torch.zeros(1, 1, 640), torch.ones(1, 640)
    mask[:, :10] = 0
    for bad, said in (
        ({"bandwidth": 2.0}, r"one of 0.75, 1.5, .*, 6 kbit/s, not 2"),
        ({"bandwidth": 1.5, "num_quantizers": 2}, "give one of them"),
        *(({"padding_mask": wrong}, "pad on the right") for wrong in (mask, 0 * mask)),
        ({"padding_mask": mask[0]}, r"float32 \[640\]"),
        ({"padding_mask": mask[:, 10:]}, "630 samples"),
        ({"padding_mask": [1]}, "not list"),
    ):
        with pytest.raises(CodecError, match=said):
            shipped(waveform, **bad)
    with pytest.raises(CodecError, match="padding_mask is not that of what was encoded"):
        shipped.decode(shipped.encode(waveform).audio_codes, torch.ones(1, 641))
    with pytest.raises(CodecError, match="the folder of a Codec"):
        type(shipped).from_pretrained(find_model("speech-24khz"))
