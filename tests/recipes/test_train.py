"""Training end to end: phases, resume to the bit, kill, signals, two processes, guards, messages."""

import math
import os
import shutil
import signal
import sys
import types
from itertools import product
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import yaml
from loading import DEBUG, Refused, load_script, recipe, recorded, wait_for
from safetensors.torch import load_file
from training_runs import QUANTIZED, QUIET, RECIPES, TORCHRUN, command, finish, start, state, train

from codec.corpus.manifest import Record, write_manifest
from codec.errors import install_command
from codec.training.checkpoint import latest_checkpoint, read_checkpoint, whole_checkpoints
from codec.training.config import load_train_config
from codec.training.data import SegmentDataset
from codec.training.losses import SpectralLoss
from codec.training.progress import TrainingError
from codec.training.tracking import read_scalars

MUON = "optimizer.muon_learning_rate=1.0e-3"
LONG = ("phases.steps=100000", "log.valid_every=100000")


def test_a_short_run_goes_through_all_phases(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(corpus, tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 1 took ") and "; 7 more take 0:0" in said[0], "before the first scalars"
    assert [line.split(":")[0] for line in said[1:]] == [f"step {n}" for n in (2, 4, 4, 6, 8, 8)] + ["done at step 8"]
    points = read_scalars(tmp_path / "metrics.jsonl")
    names = {step: {key for point in points if point["step"] == step for key in point} for step in (2, 4, 6)}
    assert {"loss/mel", "learning_rate", "speed/data_wait_share"} < names[2]
    assert {"loss/commitment", "codebook/usage_3", "valid/mel", "valid_codebook/perplexity_1"} < names[4] - names[2]
    assert {"loss/discriminator", "loss/feature_matching", "gradient_norm/discriminator"} < names[6] - names[4]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_00000004", "step_00000008"}


@pytest.mark.slow
def test_resume_is_exact_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    """8 steps equal 4 steps, a new process, and 4 more: both networks, their optimizers, and the running average."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(corpus, whole, MUON) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000008")
    finish(start([*command(corpus, parts, MUON), *QUIET, "--resume"]))
    a, b, middle = state(whole, 8), state(parts, 8), state(whole, 4)
    groups = {name.split("/")[0] for name in a}
    optimizers = {"optimizer", "matrix_optimizer", "discriminator_optimizer"}
    assert groups == {"codec", "average", "discriminators"} | optimizers
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    assert any(not torch.equal(middle[name], a[name]) for name in a if name.startswith("codec/"))


def test_the_best_is_that_of_most_utterances(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([(3.0, 1), (4.5, 4), (4.0, 4), (3.5, 3)])  # as where files cannot be read for a while
    points = (dict(zip(("valid/mel", "valid/utterances"), point, strict=True)) for point in found)
    monkeypatch.setattr(load_script("recipes/train.py"), "validate", lambda *_: next(points))
    one_term = ("losses.windows=[512,2048]", "losses.mels=[32,64]", "losses.weights.stft=0")
    assert train(corpus, tmp_path, *QUANTIZED, *one_term, "phases.steps=4", "log.valid_every=1") == 0
    assert read_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))[1].best == "step_00000003"


def test_what_cannot_be_resumed_is_one_line(
    corpus: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = ("phases.steps=1", *QUANTIZED)
    adamw, muon = tmp_path / "adamw", tmp_path / "muon"
    assert train(corpus, adamw, *one_step) == 0 and train(corpus, muon, *one_step, MUON) == 0
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    for run, change, message in (
        (adamw, "model.latent_dim=48", "does not fit this configuration: "),
        (adamw, "model.sample_rate=16000", "model.sample_rate differs, 24000 there and 16000"),
        (adamw, "look_aheads=[2]", "look_aheads differs, [] there and [2] here"),
        (adamw, "phases.autoencoder=2", "phases.autoencoder differs, 0 there and 2 here"),
        (adamw, MUON, "optimizer.muon_learning_rate stays above 0, or stays 0"),
        (muon, "seed=0", "holds the state of other optimizers"),
        (tmp_path / "none", "seed=0", "no checkpoint in"),
    ):
        refused(train(corpus, run, *one_step, "phases.steps=2", change, flags=("--resume",)), message)
    message = "holds a run already; continue it with --resume or choose another --out"
    refused(train(corpus, adamw, *one_step, "phases.steps=2"), message)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before
    changes, drawn, draw = ("data.batch_size=2", "phases.steps=2", "seed=5"), list[int](), SegmentDataset.__getitem__
    monkeypatch.setattr(SegmentDataset, "__getitem__", lambda self, index: drawn.append(index) or draw(self, index))
    assert train(corpus, adamw, *one_step, *changes, flags=("--resume",)) == 0
    notes = (adamw / "notes.md").read_text().strip()
    what = "data.batch_size is 2 instead of 4, phases.steps is 2 instead of 1, seed is 5 instead of 0"
    assert notes == f"From step 1 on, {what}."
    assert drawn == [4, 5], "none that the first step saw, four of them"
    (adamw / "config.json").write_text('{"model": {}, "mod')
    code = train(corpus, adamw, *one_step, "phases.steps=2", flags=("--resume",))
    refused(code, f"{adamw / 'config.json'} is damaged: ")


def test_a_run_as_long_as_a_time(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The learning rate comes down by the clock; what is held in memory is drawn from as files are."""
    settings = (*QUANTIZED, *LONG, "phases.minutes=0.05", "log.scalars_every=1", "data.resident=true")
    assert train(corpus, tmp_path, *settings) == 0
    assert "; the run ends after 0.05 minutes" in capsys.readouterr().out
    rates = [point["learning_rate"] for point in read_scalars(tmp_path / "metrics.jsonl") if "learning_rate" in point]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 2
    assert len(rates) < 100000 and latest_checkpoint(tmp_path / "checkpoints").name == f"step_{len(rates):08d}"
    assert train(corpus, tmp_path, *settings, flags=("--resume",)) == 0
    said = capsys.readouterr().out
    assert "nothing left to do" in said and "--set phases.minutes=0.1\n" in said


def test_legs_of_minutes_make_one_run(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again and again trains on, at least by a step, even after a run killed in its first save."""
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    reached = 0
    for _ in range(2):
        assert train(corpus, tmp_path, *QUANTIZED, "phases.steps=100000", flags=("--minutes", "0.0001")) == 0
        before, reached = reached, int(latest_checkpoint(tmp_path / "checkpoints").name.removeprefix("step_"))
        assert reached > before
        said = capsys.readouterr().out
        assert f"stopped at step {reached}:" in said and "; the same command goes on from there" in said


@pytest.mark.slow
def test_processes_whose_clocks_differ_end_together(corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, runpy, time\nclock, speed = time.monotonic, 1 + int(os.environ['RANK'])\n"
        f"time.monotonic = lambda: speed * clock()\nrunpy.run_path({str(RECIPES / 'train.py')!r}, run_name='__main__')\n"
    )
    settings = (*QUANTIZED, *LONG, "phases.minutes=0.05", "log.scalars_every=1")
    args = [*command(corpus, tmp_path / "run", *settings, launcher=(*TORCHRUN, "2")), *QUIET]
    args[args.index(str(RECIPES / "train.py"))] = str(script)
    assert "\ndone at step " in finish(start(args))[0]


def test_a_quantizer_without_parameters_is_trained_around_and_averaged(corpus: Path, tmp_path: Path) -> None:
    """Its tables are running means, which move without gradient."""
    settings = ("model.quantizer.kind=ema_vq", "model.quantizer.num_quantizers=1", "model.quantizer.codebook_dim=32")
    assert train(corpus, tmp_path, "model.latent_dim=32", *settings) == 0
    codec, average = state(tmp_path, 8, "codec"), state(tmp_path, 8, "average")
    tables = [name for name in codec if name.endswith(".sums")]
    assert tables and all(torch.equal(codec[name], average[name]) for name in tables)


def adversarial_run(*settings: str, step: int = 0) -> tuple[Any, Any]:
    """The script, and a run of it in this process, without data and with discriminators from the start."""
    script, accelerator = load_script("recipes/train.py"), accelerate.Accelerator(cpu=True)
    config = load_train_config(DEBUG, ["phases.autoencoder=0", "phases.adversarial=0", *settings])
    networks = script.build_networks(config, accelerator, None)
    spectral, counters = SpectralLoss(config.model.sample_rate, config.losses), script.Counters(step=step)
    return script, script.Run(config, accelerator, Path("unused"), networks, spectral, None, [], counters)


def test_a_non_finite_step_changes_nothing_and_many_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """Of the codec's, while the discriminators' gradient is finite all along."""
    script, run = adversarial_run("optimizer.max_bad_steps=3", step=7)
    batch = {"waveform": 0.1 * torch.randn(2, 1, 9600), "bandwidth": torch.full((2,), 12000.0)}
    batch |= {"index": torch.tensor([70, 71])}
    weight, counters = run.networks.codec.decoder.head.output.weight, run.counters

    def step(mel: float) -> bool:
        run.config.losses.weights["mel"], before = mel, weight.clone()
        script.train_step(run, batch)
        return torch.equal(weight, before)

    assert step(math.nan) and step(math.inf) and (counters.bad_steps, counters.bad_in_a_row) == (2, 2)
    assert "step 7 skipped" in caplog.text and "[70, 71]" in caplog.text
    assert not step(1.0) and (counters.bad_steps, counters.bad_in_a_row) == (2, 0)
    with pytest.raises(TrainingError, match=r"3 steps in a row.*learning_rate"):
        for _ in range(3):
            step(math.nan)


@pytest.mark.parametrize(("share", "count"), [(1.0, 4), (0.5, 2)])
def test_discriminators_see_their_share_and_no_more_than_the_recordings_bandwidth(share: float, count: int) -> None:
    """Neither of the recorded nor of the decoded speech: what a fresh decoder puts above must not give it away."""
    script, run = adversarial_run(f"discriminator.batch_share={share}")
    seen: list[torch.Tensor] = []
    run.networks.discriminators.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = {"waveform": 0.1 * torch.randn(4, 1, 9600), "bandwidth": torch.tensor([8000.0, 12000.0] * 2)}
    script.train_step(run, batch | {"index": torch.arange(4)})
    (waveform,) = seen  # the recorded and the decoded at once
    assert len(waveform) == 2 * count
    power = torch.fft.rfft(waveform[:, 0]).abs().square()
    above = power[:, round(8000 / 24000 * 9600) :].sum(dim=1) / power.sum(dim=1)
    assert (above[0::2] < 1e-8).all() and (above[1::2] > 1e-3).all()


def test_every_launch_shares_the_batch_of_every_configuration_evenly() -> None:
    for launch, config in product(*(sorted((RECIPES / name).glob("*.yaml")) for name in ("accelerate", "libritts"))):
        count = yaml.safe_load(launch.read_text())["num_processes"]
        assert config == DEBUG or load_train_config(config).data.batch_size % count == 0, (launch, config)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "decoder"])
def test_two_processes_average_to_the_gradients_of_one(corpus: Path, model: Path, tmp_path: Path, trained: str) -> None:
    """After one step Adam's first moment is (1 - beta1) times the clipped gradient; it must be that of the whole batch."""
    settings = ("phases.steps=1", "phases.autoencoder=0", "phases.adversarial=0", "quantizer_dropout=0.0")
    settings += ("losses.weights.adversarial=1.0", "losses.weights.feature_matching=1.0")
    settings += (f"train={trained}", "log.valid_every=1", "look_aheads=[2]")
    one, two, flags = tmp_path / "one", tmp_path / "two", ("--init", str(model))
    assert train(corpus, one, *settings, flags=flags) == 0
    output, errors = finish(start([*command(corpus, two, *settings, launcher=(*TORCHRUN, "2")), *QUIET, *flags]))
    assert "strides do not match" not in errors
    assert "utterances 4" in output, "each validation file counts once, over both processes"
    for kind in ("optimizer", "discriminator_optimizer"):
        states = [state(run, 1, kind) for run in (one, two)]
        moments = [name for name in states[0] if name.endswith("/exp_avg")]
        assert len(moments) > 12
        a, b = (torch.cat([tensors[name].flatten() for name in moments]) for tensors in states)
        assert a.norm() > 0 and (a - b).norm() / a.norm() < 1e-3, kind


@pytest.mark.slow
def test_a_run_is_killed_resumed_exported_and_trained_on(corpus: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    checkpoints = run / "checkpoints"
    process = start(command(corpus, run, *LONG, "data.workers=1"))
    wait_for(lambda: whole_checkpoints(checkpoints), process)
    process.kill()
    process.communicate(timeout=60)  # to the end of stdout, which the reading processes hold too: they end as well
    assert list((run / "tensorboard").iterdir())
    last = int(latest_checkpoint(checkpoints).name.removeprefix("step_")) + 2
    assert train(corpus, run, f"phases.steps={last}", flags=("--resume",)) == 0
    kept = {path.name for path in checkpoints.iterdir()}
    assert f"step_{last:08d}" in kept and len(kept) <= 3

    assert recipe("export", run, model, "--with-discriminator") == 0
    assert "made here | CC0" in (model / "README.md").read_text()
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / "cpu.yaml"))
    tuned = tmp_path / "tuned"  # the precision is fixed for a process
    finish(start([*command(corpus, tuned, "precision=bf16", launcher=launcher), *QUIET, "--init", str(model)]))
    assert {tensor.dtype for tensor in state(tuned, 8).values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_stops_and_saves(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A terminal's ctrl-C and its end reach the reading processes too."""
    before = signal.signal(number, signal.SIG_DFL)  # or the run would leave it ignored, where nohup started the tests
    process = start([*command(corpus, tmp_path, *LONG, "data.workers=2"), *QUIET])
    signal.signal(number, before)
    wait_for(lambda: whole_checkpoints(tmp_path / "checkpoints"), process)
    os.killpg(process.pid, number)
    output, errors = finish(process)
    assert "Traceback" not in errors, errors
    stopped = output.splitlines()[-1]
    assert stopped.startswith("stopped at step ") and "--resume" in stopped
    assert (tmp_path / "checkpoints" / f"step_{int(stopped.split()[3].rstrip(':')):08d}").is_dir()


def test_a_run_starts_from_an_exported_model(corpus: Path, model: Path, tmp_path: Path, refused: Refused) -> None:
    """With another quantizer: encoder, decoder and discriminators as they were, the codebook from the data."""
    flags, single = ("--init", str(model)), tmp_path / "single"
    other = ("model.quantizer.kind=simvq", "model.quantizer.num_quantizers=1", "optimizer.learning_rate=1.0e-12")
    assert train(corpus, single, "phases.steps=1", *other, flags=flags) == 0
    exported, started = load_file(model / "model.safetensors"), state(single, 1, "codec")
    for name in exported:
        assert name.startswith("quantizer.") or torch.allclose(started[name], exported[name], atol=1e-6)
    assert not torch.equal(started["quantizer.weight"], torch.eye(8))
    discriminators, stored = state(single, 1, "discriminators"), load_file(model / "discriminator.safetensors")
    assert discriminators.keys() == stored.keys() and all(torch.equal(discriminators[k], stored[k]) for k in stored)
    for change, message in (
        ("discriminator.periods=[2]", "holds other discriminators"),
        ("model.latent_dim=16", "only quantizer, look_ahead and added blocks may differ"),
        ("model.decoder.depth=1", "only quantizer, look_ahead and added blocks may differ"),
    ):
        refused(train(corpus, tmp_path / "unlike", change, flags=flags), message)


def test_a_decoder_is_trained_on_fixed_codes(corpus: Path, model: Path, tmp_path: Path, refused: Refused) -> None:
    settings, run = ("phases.steps=2", "phases.adversarial=0", "train=decoder", MUON), tmp_path / "run"
    assert train(corpus, run, *settings, flags=("--init", str(model))) == 0
    assert train(corpus, tmp_path / "all", *settings, "quantizer_dropout=0.0", flags=("--init", str(model))) == 0
    a, b = state(run, 2), state(tmp_path / "all", 2)
    assert not all(torch.equal(a[name], b[name]) for name in a), "a decoder learns to do with few stages, too"
    before = load_file(model / "model.safetensors")
    for group in ("codec", "average"):
        after = state(run, 2, group)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved == {name for name in after if name.startswith("decoder.")}
    (point,) = (point for point in read_scalars(run / "metrics.jsonl") if "loss/total" in point)
    assert point["loss/commitment"] > 0 and point["loss/codebook"] > 0 and point["loss/adversarial"] > 0
    changes = (*settings, "model.quantizer.codebook_size=64", "phases.adversarial=2")
    for flags in ((), ("--init", str(model))):
        refused(train(corpus, tmp_path / "none", *changes, flags=flags), "train: decoder needs --init with a model of")


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "silent.jsonl", [recorded(tmp_path / "silent.wav", np.zeros(24000))])
    write_manifest(tmp_path / "gone.jsonl", [Record(name, f"{name}.wav", 24000, 24000) for name in "abc"])
    gone, silent = (f"data.train=[{tmp_path}/{name}.jsonl]" for name in ("gone", "silent"))
    for settings, message in (
        (("data.train=[nowhere.jsonl]",), "nowhere.jsonl"),
        (("data.valid=[]",), "data.valid: no utterance in an empty list; give a manifest"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: No such file or directory"),
        ((gone, "data.workers=1"), "3 of 3 files tried cannot be read"),
        ((silent, *QUANTIZED), "the latents do not vary: the input is silent or"),
    ):
        refused(train(corpus, tmp_path / "run", *settings), message)
    refused(
        train(corpus, tmp_path / "early", gone.replace("train", "valid")), "data.valid: none of 3 files can be read"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")  # as launchers set it
    refused(train(corpus, tmp_path / "early"), "more processes, but this one sees none")
    assert not (tmp_path / "early").exists(), "before anything is written"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """Though a folder with the package's name lies beside the script, where Python takes it for the package."""
    module = types.ModuleType("accelerate")
    module.__path__ = [str(RECIPES / "accelerate")]
    monkeypatch.delitem(sys.modules, "accelerate.utils")
    monkeypatch.setitem(sys.modules, "accelerate", module)
    reason = f"the package accelerate is missing: {install_command('accelerate')}"
    refused(recipe("train", "--config", DEBUG), f"train.py: error: {reason}\n")
