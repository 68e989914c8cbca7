"""Analysis by synthesis: codes whose sound is nearer to the recording than that of the encoder's own."""

import pytest
import soundfile
import torch
from loading import SPEECH
from pystoi import stoi

import codec.base
from codec.model import Codec
from codec.refine import Distance


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("speech-24khz", 8), ("speech-24khz", 2), ("speech-24khz-single", 1)])
def test_speech_sounds_better(name: str, count: int) -> None:
    model, (speech, rate) = Codec.from_pretrained(name), soundfile.read(SPEECH[24000], dtype="float32")
    gain_db = model.gain_of(speech, rate)
    scores, distances = [], []
    for steps in (0, 4):
        codes = model.encode(speech, rate, count, gain_db=gain_db, refine_steps=steps)
        decoded = model.decode(codes, gain_db=gain_db)[0, :, : len(speech)]
        scores.append(stoi(speech, decoded[0].numpy(), rate))
        distances.append(Distance(torch.from_numpy(speech)[None], rate)(decoded).item())
    assert scores[1] > scores[0] + 0.001 and distances[1] < 0.97 * distances[0]


def test_it_is_never_worse_and_changes_nothing_else(tiny_model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are far too large the nearest codes of all are kept."""
    waveform = torch.from_numpy(soundfile.read(SPEECH[16000], dtype="float32")[0])[:32_000]
    distance = Distance(waveform[None], 16000)
    own = tiny_model.encode(waveform, 16000)
    refined = tiny_model.encode(waveform, 16000, refine_steps=3)
    assert not torch.equal(refined, own) and torch.equal(tiny_model.encode(waveform, 16000), own)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny_model.encode(waveform, 16000, refine_steps=3), refined)
    monkeypatch.setattr("codec.refine.STEP", 1e6)
    far = tiny_model.encode(waveform, 16000, refine_steps=2)
    assert max(distance(tiny_model.decode(codes)[0]) for codes in (refined, far)) <= distance(tiny_model.decode(own)[0])


def test_windows_and_batches_leave_no_trace(tiny_model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long signals are refined window by window, whatever they are batched with or cut into."""
    monkeypatch.setattr(codec.base, "WINDOW_FRAMES", 40)
    waveform = torch.from_numpy(soundfile.read(SPEECH[16000], dtype="float32")[0])[:20_000]
    batch = torch.stack([waveform.flip(0), waveform])
    whole = tiny_model.encode(batch[:, None], 16000, 2, lengths=[9_000, 20_000], refine_steps=2)[1]
    assert torch.equal(torch.cat(list(tiny_model.encode_blocks(waveform.split(777), 2, refine_steps=2)), dim=1), whole)
