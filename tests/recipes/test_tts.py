"""The TTS recipe in small: manifest to tokens, a few steps, speech while it is written."""

import json
from pathlib import Path

import pytest
import torch
from loading import ASSETS, SPEECH, Refused, load_script, recorded

from codec import Codec, audio
from codec.corpus.manifest import Record, write_manifest
from codec.tokens import TokenLayout

pytest.importorskip("transformers")
tts = load_script("recipes/tts/tts.py")


@pytest.fixture(scope="module")
def single() -> Codec:
    return Codec.from_pretrained("speech-24khz-single")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six parts of two clips of one speaker, 1.3 s each, and a clip of another speaker."""
    samples = torch.cat([audio.load(path)[0][0] for path in (ASSETS / "example.wav", SPEECH[24000])])
    records = [Record("other", str(SPEECH[16000]), 48000, 16000, speaker="other")]
    for index, part in enumerate(samples.split(31200)[:6]):
        records.append(recorded(tmp_path / f"p{index}.wav", part.numpy(), speaker="one", text=f"ö{index}"))
    write_manifest(tmp_path / "train.jsonl", records)
    return tmp_path / "train.jsonl"


@pytest.mark.slow
def test_a_corpus_becomes_tokens_a_model_and_speech(manifest: Path, tmp_path: Path, single: Codec) -> None:
    run = tmp_path / "run"
    assert tts.main(["prepare", str(run), "--manifest", str(manifest), "--speaker", "one"]) == 0
    corpus = tts.Corpus(run)
    assert sorted([*corpus.train, *corpus.held_out]) == [f"p{index}" for index in range(6)]
    waveform, _ = audio.load(tmp_path / "p3.wav")
    codes = single.encode(waveform, 24000, gain_db=single.gain_of(waveform, 24000))[0]
    assert torch.equal(corpus.codes["p3"].long(), codes)
    ids, targets = corpus.batch(["p3", "p5"])
    special = corpus.layout.special_ids
    assert ids[0, :5].tolist() == [*"ö3".encode(), special["begin"], 256 + int(codes[0, 0])]
    learnt = targets[0, targets[0] >= 0]
    assert torch.equal(corpus.layout.to_codes(learnt), codes) and learnt[-1] == special["end"]
    assert torch.equal(ids[0, 1:][targets[0, :-1] >= 0][: len(learnt) - 1], learnt[:-1]), "each id is the last target"

    assert tts.main(["train", str(run), "--steps", "12"]) == 0
    report = json.loads((run / "train.json").read_text())
    assert report["bits_trained_on"] < report["bits_held_out_by_frequencies"] - 1
    assert report["ids_trained_on"] == sum(corpus.codes[name].shape[-1] + 1 for name in corpus.train)

    options = ["--count", "1", "--prompt-seconds", "0.5", "--seconds", "0.5"]
    assert tts.main(["generate", str(run), *options, "--text", "good morning"]) == 0
    report = json.loads((run / "generate.json").read_text())
    spoken, rate = audio.load(run / "0.wav")
    assert rate == 24000 and spoken.shape[-1] / rate == pytest.approx(38 / 75 + report["audio_seconds"])
    assert 0 < report["valid_ids"] <= 1 and 0 < report["of_it_decoding"] < report["cpu_seconds_per_second"]
    for wrong in (["--seconds", "nan"], ["--prompt-seconds", "-1"], ["--count", "9"]):
        assert tts.main(["generate", str(run), *wrong]) == 1
    assert tts.main(["prepare", str(run), "--manifest", str(manifest)]) == 1  # there are tokens already


@pytest.mark.slow
def test_what_is_written_is_spoken_at_once_and_as_a_whole(tmp_path: Path, single: Codec) -> None:
    codes = single.encode(*audio.load(SPEECH[24000]))[0]
    layout = TokenLayout(1, single.codebook_size, tts.TEXT_IDS)
    ids = layout.to_tokens(codes)
    spurious = torch.cat([torch.tensor([104, 105]), ids[:50], torch.tensor([layout.special_ids["pad"], 7]), ids[50:]])
    with audio.AudioWriter(tmp_path / "out.wav", single.sample_rate) as writer:
        speaker = tts.Speaker(single, writer, prompt_samples=0)
        speaker.put(spurious[None, :20])
        for one in spurious[20:]:
            speaker.put(one[None])
        heard = -speaker.before
        speaker.end()
    late = speaker.decoder.look_ahead + tts.FRAMES_PER_PUSH * single.hop_length
    whole = single.decode(codes[None])[0]
    assert whole.shape[-1] - late <= heard < whole.shape[-1]
    torch.testing.assert_close(audio.load(tmp_path / "out.wav")[0], whole.clamp(-1, 1), atol=1e-4, rtol=0)


def test_mistakes_are_named(manifest: Path, tmp_path: Path, refused: Refused) -> None:
    prepare = ["prepare", str(tmp_path / "run"), "--manifest", str(manifest)]
    for arguments, message in (
        ([*prepare, "--speaker", "nobody"], "0 utterances of speaker nobody"),
        ([*prepare, "--model", "speech-24khz"], "8 codes per frame"),
        (["train", str(tmp_path / "run")], "has no tokens yet"),
    ):
        refused(tts.main(arguments), message)
