"""Exports of a run or several, and pictures of their curves, which overwrite nothing unasked."""

import json
from pathlib import Path

import pytest
import torch
from loading import Refused, recipe
from safetensors.torch import load_file
from training_runs import TWO_STEPS, state, train

from codec.model import Codec
from codec.pretrained import find_model


def test_export_takes_the_mean_of_runs_of_one_model(
    corpus: Path, model: Path, tmp_path: Path, refused: Refused
) -> None:
    one, other, mean = tmp_path / "one", tmp_path / "other", tmp_path / "mean"
    for seed, tuned in enumerate((one, other), 5):
        assert train(corpus, tuned, *TWO_STEPS, f"seed={seed}", flags=("--init", str(model))) == 0
    assert recipe("export", one, mean, "--average-with", other) == 0
    first, second = state(one, 2, "average"), state(other, 2, "average")
    assert any(not torch.equal(first[key], second[key]) for key in first)
    for key, tensor in load_file(mean / "model.safetensors").items():
        torch.testing.assert_close(tensor, (first[key] + second[key]) / 2, rtol=1e-6, atol=1e-8)
    card = (mean / "README.md").read_text()
    assert "mean of the weights of 2 runs" in card and "Seed 5." in card and "Seed 6." in card
    assert f"began from the weights of {model}" in card

    stranger = tmp_path / "stranger"
    assert train(corpus, stranger, *TWO_STEPS, "seed=9") == 0
    config = json.loads((stranger / "config.json").read_text())
    refused(recipe("export", one, tmp_path / "no", "--average-with", stranger), "did not begin from one model with")
    (stranger / "checkpoints/step_00000002/state.json").write_text('{"step": 2}')  # without a hash
    for section, change, message in (
        ("phases", {}, "has another quantizer.stages.0.basis than"),
        ("phases", {"autoencoder": 2}, "has no quantizer yet: it comes after 2"),
        ("model", {"latent_dim": 40}, "trained another architecture"),
    ):
        (stranger / "config.json").write_text(json.dumps(config | {section: config[section] | change}))
        refused(recipe("export", one, tmp_path / "no", "--average-with", stranger), message)
        assert not (tmp_path / "no").exists()


def test_export_takes_a_further_decoder(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    run, model, live = tmp_path / "run", tmp_path / "model", tmp_path / "live"
    assert train(corpus, run, *TWO_STEPS, "look_aheads=[2]", "phases.adversarial=0") == 0
    assert recipe("export", run, model) == 0 and recipe("export", run, live, "--look-ahead", 2) == 0
    whole, early = Codec.from_pretrained(model), Codec.from_pretrained(live)
    assert early.config.decoder.look_ahead == 2 and early.fingerprint == whole.fingerprint
    trained = state(run, 2, "average")
    assert torch.equal(whole.decoder.head.output.weight, trained["decoder.head.output.weight"])
    for name, weight in early.decoder.named_parameters():
        assert torch.equal(weight, trained[f"others.0.{name}"]), name
    message = "no further decoder of look-ahead 3; its look_aheads are [2]"
    refused(recipe("export", run, tmp_path / "no", "--look-ahead", 3), message)


def test_exports_are_not_overwritten(run: Path, tmp_path: Path, refused: Refused) -> None:
    model = tmp_path / "model"
    refused(recipe("export", run, model, "--evaluation", tmp_path / "nowhere"), "nowhere is no finished report")
    assert not model.exists()
    refused(recipe("export", find_model("speech-24khz"), model), " is not the folder of a training run")
    assert recipe("export", run, model) == 0
    (model / "README.md").write_text("mine")
    refused(recipe("export", run, model), f"export.py: error: {model}/config.json exists; --force overwrites it")
    assert (model / "README.md").read_text() == "mine"
    assert recipe("export", run, model, "--force") == 0
    assert (model / "README.md").read_text() != "mine"
    refused(recipe("export", run, model / "README.md"), "README.md is a file; give a folder")


@pytest.mark.slow
def test_curves_are_drawn_as_far_as_they_go(run: Path, tmp_path: Path, refused: Refused) -> None:
    few, picture = tmp_path / "few", tmp_path / "curves.png"
    few.mkdir()
    (few / "metrics.jsonl").write_text('{"step": 1, "loss/mel": 0.5}\n{"step": 2, "lo')  # no stft, broken off
    assert recipe("plot", few, "--out", picture) == 0
    refused(recipe("plot", few, "--curves", "lossmel", "--out", tmp_path / "none.png"), "no curve is named lossmel")
    assert not (tmp_path / "none.png").exists()
    picture.write_text("mine")
    refused(recipe("plot", run, "--out", picture), f"{picture} exists; --force overwrites it")
    assert picture.read_text() == "mine"
    assert recipe("plot", run, "--curves", "codebook/usage_*", "--out", picture, "--force") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_distil_gives_another_encoder(corpus: Path, tiny_model_folder: Path, tmp_path: Path, refused: Refused) -> None:
    """One that looks less far ahead, for the same codebooks and decoder."""
    fast, arguments = tmp_path / "fast", ("--manifest", corpus / "train.jsonl", "--minutes", 0.01, "--look-ahead")
    assert recipe("distil", tiny_model_folder, fast, *arguments, 4) == 0
    before, after = Codec.from_pretrained(tiny_model_folder), Codec.from_pretrained(fast)
    assert after.fingerprint == before.fingerprint
    assert after.encoder_context.right == 4 < before.encoder_context.right
    for name, tensor in before.decoder.state_dict().items():
        torch.testing.assert_close(after.decoder.state_dict()[name], tensor, atol=1e-2, rtol=1e-2)
    refused(recipe("distil", tiny_model_folder, fast, *arguments, 4), "holds a model")
    refused(recipe("distil", tiny_model_folder, tmp_path / "other", *arguments, 400), "look_ahead")
