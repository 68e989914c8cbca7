"""The shipped models: small enough, known to their files, and intelligible."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from loading import SPEECH, Speech
from safetensors import safe_open

from codec import Codec, container
from codec.audio import resample
from codec.cli.commands import decode_main, encode_main
from codec.evaluation.metrics import Pair, pesq_wb, stoi
from codec.pretrained import ModelError, find_model, shipped_models
from codec.runtime import OnnxCodec

# name: quantizers, codebook size, bit/s, and the least PESQ-WB and STOI of two short clips
SHIPPED = {
    "speech-24khz-live-v3": (8, 1024, 6000, 2.5, 0.88),
    "speech-24khz-single-v3": (1, 262144, 1350, 1.5, 0.8),
    "speech-24khz-v3": (8, 1024, 6000, 2.8, 0.9),
}
LIVE = ("speech-24khz", "speech-24khz-live-v3")


@pytest.fixture(scope="module", params=SHIPPED)
def model(request: pytest.FixtureRequest) -> Codec:
    return Codec.from_pretrained(request.param)


def test_the_list_is_whole() -> None:
    assert shipped_models() == list(SHIPPED)
    for name in ("default", "speech-24khz", "speech-24khz-v3"):
        assert find_model(name).name == Codec.from_pretrained().name == "speech-24khz-v3"


def test_size_rates_and_card(model: Codec) -> None:
    folder: Path = find_model(model.name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 30e6
    assert (model.sample_rate, model.frame_rate) == (24000, 75)
    assert (model.num_quantizers, model.codebook_size, model.bitrate) == SHIPPED[model.name][:3]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert model.fingerprint in card and "Not yet measured" not in card


@pytest.mark.slow
def test_files_tell_their_model(tmp_path: Path) -> None:
    """A .codes file names its model with the version; two decoders of the same codes are not mistaken for another model."""
    decoded = {}
    for name in ("speech-24khz", "speech-24khz-single"):
        codes, audio = tmp_path / f"{name}.codes", tmp_path / f"{name}.wav"
        assert encode_main([str(SPEECH[24000]), str(codes), "--model", name]) == 0
        assert container.read(codes)[0].model == f"{name}-v3"
        for model in ("", *shipped_models()):
            code = decode_main([str(codes), str(audio), "--force", *(["--model", model] if model else [])])
            assert code == (0 if model in ("", f"{name}-v3") or (name, model) == LIVE else 1)
            if code == 0:
                decoded[name, model] = soundfile.read(audio)[0]
    assert np.array_equal(decoded["speech-24khz", ""], decoded["speech-24khz", "speech-24khz-v3"])
    for other in (LIVE, ("speech-24khz-single", "")):
        assert not np.allclose(decoded["speech-24khz", ""], decoded[other], atol=1e-3)


def test_a_second_decoder_holds_no_weight_twice(tmp_path: Path) -> None:
    live, full = Codec.from_pretrained("speech-24khz-live"), Codec.from_pretrained("speech-24khz")
    assert live.fingerprint == full.fingerprint
    with safe_open(find_model("speech-24khz-live") / "model.safetensors", framework="pt") as file:
        assert file.metadata()["base"] == full.name
        assert all(name.startswith("decoder.") for name in file.keys())  # noqa: SIM118
    live.save_pretrained(tmp_path, bits=8, base="speech-24khz")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"base":"speech-24khz-v3"', b'"base":"speech-24khz-v9"'))
    for load in (Codec.from_pretrained, OnnxCodec.from_pretrained):
        with pytest.raises(ModelError, match="goes with the shipped model 'speech-24khz-v9', which this version"):
            load(tmp_path)


@pytest.mark.slow
def test_speech_stays_intelligible(model: Codec, speech: Speech) -> None:
    samples, rate = speech
    waveform = torch.from_numpy(resample(samples, rate, model.sample_rate))[None, None]
    decoded = model.decode(model.encode(waveform, model.sample_rate))
    pair = Pair(samples, resample(decoded[0, 0].numpy(), model.sample_rate, rate)[: len(samples)], rate)
    *_, least_pesq, least_stoi = SHIPPED[model.name]
    assert pesq_wb(pair) > least_pesq and stoi(pair) > least_stoi
