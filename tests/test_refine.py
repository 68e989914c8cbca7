"""Analysis by synthesis: codes whose sound is nearer to the recording than that of the encoder's own."""

from pathlib import Path

import pytest
import soundfile
import torch
from loading import SPEECH
from pystoi import stoi
from torch import Tensor

from codec.corpus.manifest import Record
from codec.evaluation.codebooks import _add_entropy_bound
from codec.evaluation.measure import Measured, changed_codes
from codec.evaluation.systems import ModelFamily, Reconstruction
from codec.health import CodebookCounter
from codec.model import Codec
from codec.refine import SCALES, Distance

SOUND = torch.from_numpy(soundfile.read(SPEECH[16000], dtype="float32")[0][:32_000])


def distance(decoded: Tensor, recording: Tensor, sample_rate: int) -> Tensor:
    return torch.stack([Distance(recording[None], sample_rate, *scale)(decoded[:, 0]) for scale in SCALES]).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("speech-24khz", 8), ("speech-24khz", 2), ("speech-24khz-single", 1)])
def test_speech_sounds_better(name: str, count: int) -> None:
    model, (speech, rate) = Codec.from_pretrained(name), soundfile.read(SPEECH[24000], dtype="float32")
    codes = (model.encode(speech, rate, count, refine_steps=steps) for steps in (0, 15))
    plain, refined = (model.decode(each)[..., : len(speech)] for each in codes)
    assert stoi(speech, refined[0, 0].numpy(), rate) > stoi(speech, plain[0, 0].numpy(), rate) + 0.001
    assert distance(refined, torch.from_numpy(speech), rate) < 0.98 * distance(plain, torch.from_numpy(speech), rate)


def test_it_is_never_worse_and_changes_nothing_else(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are far too large the encoder's own codes are kept; what torch's defaults are changes nothing."""
    with torch.inference_mode():
        model = Codec.from_pretrained(tiny_model_folder)
    own = model.encode(SOUND, 16000)
    refined = model.encode(SOUND, 16000, refine_steps=3)
    assert not torch.equal(refined, own) and torch.equal(model.encode(SOUND, 16000), own)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.set_default_dtype(torch.float16)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert torch.equal(model.encode(SOUND, 16000, refine_steps=3), refined)
    finally:
        torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("codec.refine.RATE", 1e6)
    far = model.encode(SOUND, 16000, refine_steps=2)
    before, *after = (distance(model.decode(codes), SOUND, 16000) for codes in (own, refined, far))
    assert max(after) <= before


def test_windows_and_batches_leave_no_trace(tiny_model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long signals are refined window by window, whatever they are batched with or cut into."""
    monkeypatch.setattr("codec.base.WINDOW_FRAMES", 40)
    batch = torch.stack([SOUND.flip(0), SOUND])
    whole = tiny_model.encode(batch[:, None], 16000, 2, lengths=[9_000, 32_000], refine_steps=2)[1]
    pieces = tiny_model.encode_blocks(SOUND.split(777), 2, refine_steps=2)
    assert torch.equal(torch.cat(list(pieces), dim=1), whole)


def test_an_evaluation_refines_for_each_number_of_quantizers(tiny_model: Codec) -> None:
    """And in the same way what is changed for token stability: a lower level, which is set back, changes hardly a code."""
    waveform, record = SOUND[:8000].numpy(), Record("a", "a.wav", 8000, 16000)
    family = ModelFamily(tiny_model, [3, 1], True, refine_steps=2)
    outcomes, gain_db = list(family.reconstruct(record, waveform)), tiny_model.gain_of(waveform, 16000)
    for count, outcome in zip((3, 1), outcomes, strict=True):
        expected = tiny_model.encode(waveform, 16000, count, gain_db=gain_db, refine_steps=2)[0]
        assert isinstance(outcome, Reconstruction) and torch.equal(outcome.codes, expected)
    measured = Measured(0, 0.5, {"model-3": {}, "model-1": {}}, {})
    _add_entropy_bound(family, CodebookCounter(3, tiny_model.codebook_size), {0: outcomes[0].codes}, [measured])
    assert [len(cells) for cells in measured.cells.values()] == [1, 0], "the codes of one stage are not those kept"
    assert max(changed_codes(family, record, waveform, outcomes[0])["scale"]) < 0.05
