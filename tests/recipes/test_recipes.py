"""Training end to end: phases, resume to the bit, kill, two processes, guards, export; on a corpus made here."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import soundfile
import torch
from loading import load_script
from safetensors.torch import load_file

from codec.cli.commands import decode_main, encode_main
from codec.config import ConfigError
from codec.corpus.manifest import Record, write_manifest
from codec.model import Codec
from codec.training.checkpoint import latest_checkpoint, read_checkpoint
from codec.training.config import TrainConfig, load_train_config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
CONFIGS = sorted(RECIPES.glob("*/*.yaml"))
CONFIGS = [path for path in CONFIGS if path.parent.name not in ("accelerate", "collapse")]
DEBUG = RECIPES / "libritts" / "debug.yaml"
SHORT = ["phases.steps=8", "phases.autoencoder=2", "phases.ramp=2", "phases.adversarial=5", "data.segment_seconds=0.2"]
SHORT += [
    "log.scalars_every=2",
    "log.valid_every=4",
    "log.checkpoint_every=4",
    "data.workers=0",
    "optimizer.warmup_steps=1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short harmonic sounds as train and dev."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    records = []
    for index in range(4):
        t = np.arange(24000) / 24000
        tone = sum(np.sin(2 * np.pi * (100 + 40 * index) * k * t) / k for k in range(1, 20))
        soundfile.write(folder / f"{index}.wav", 0.1 * tone + 0.002 * rng.standard_normal(24000), 24000)
        records.append(
            Record(str(index), str(folder / f"{index}.wav"), 24000, 24000, source="made here", licence="CC0")
        )
    write_manifest(folder / "train.jsonl", records)
    write_manifest(folder / "dev.jsonl", records)
    return folder


def command(
    corpus: Path, run: Path, *settings: str, launcher: tuple[str, ...] = (), flags: tuple[str, ...] = ()
) -> list[str]:
    paths = [f"data.train=[{corpus}/train.jsonl]", f"data.valid=[{corpus}/dev.jsonl]"]
    start = [sys.executable, *launcher, str(RECIPES / "train.py")]
    return [*start, "--config", str(DEBUG), "--out", str(run), "--cpu", "--set", *paths, *settings, *flags]


def train(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(  # a run that hangs is a failure
        command(*args, **kwargs),  # type: ignore[arg-type]
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / f"step_{step:08d}")[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_configs_are_valid(path: Path) -> None:
    config = load_train_config(path)
    with torch.device("meta"):
        codec = Codec(config.model)
    assert codec.hop_length == 320 and codec.num_quantizers >= 1


def test_the_shipped_configs_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "simvq_4k",
        "simvq_8k",
        "simvq_65k",
        "simvq_262k",
        "residual",
        "simvq_8k_16khz",
        "debug",
        "default",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder.stride=[8]", "unknown key model.encoder.stride"),
        ("optimizer.learning_rate=5e-4", "YAML reads 5e-4 as text"),
        ("data.segment_seconds=0.41", "not a multiple of the hop"),
        ("model.decoder.kind=upsampling", "decoder.kind must be one of 'istft'"),
        ("losses.weights.gan=2.0", "weights: unknown term gan"),
        ("phases.adversarial=1", "before the quantizer"),
        ("data.segment_seconds=.nan", "segment_seconds must be a positive number"),
        ("data.valid_limit=-1", "valid_limit must not be negative"),
        ("data.gain_db=[0.0, .inf]", "a lowest and a highest gain"),
        ("losses.windows=[0]", "windows must be multiples of 4"),
        ("losses.phase_windows=[]", "phase_windows must be among windows, one at least, or weights.stft 0"),
        ("losses.weights.mel=-1.0", "weights.mel must be a number from 0 on"),
        ("losses={weights: {envelope: 1.0}, envelope_windows: []}", "envelope_windows must be among windows"),
        ("optimizer.learning_rate=-1.0", "learning rates must be positive"),
        ("optimizer.final_ratio=7.0", "final_ratio must be from 0 to 1"),
        ("optimizer.warmup_steps=-5", "warmup_steps must not be negative"),
        ("optimizer.max_bad_steps=0", "max_bad_steps must be at least 1"),
        ("log.audio_examples=-1", "audio_examples must not be negative"),
        ("data.train=x.jsonl", "data.train must be a list"),
        ("nonsense", "KEY=VALUE"),
        ("seed=[", "not YAML"),
    ],
)
def test_config_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config(DEBUG, [override])


def test_mistaken_bases_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for base, message in (("5", "base must be the name of a file, not 5"), ("a.yaml", "its own base")):
        path.write_text(f"base: {base}\n")
        with pytest.raises(ConfigError, match=message):
            load_train_config(path)


def test_terms_without_weight_are_not_computed() -> None:
    script = load_script("recipes/train.py")
    assert script.build_spectral(load_train_config(DEBUG)).terms == ("mel", "stft")
    other = ["losses.weights={stft: 0.0, envelope: 0.5}", "losses.windows=[512]", "losses.mels=[64]"]
    assert script.build_spectral(load_train_config(DEBUG, other)).terms == ("mel", "envelope")


def test_a_configuration_that_is_no_text_is_named() -> None:
    with pytest.raises(ConfigError, match=r"example\.wav is not text"):
        load_train_config(ROOT / "tests" / "assets" / "example.wav")


def test_learning_rate_warms_up_twice_and_falls_to_its_end() -> None:
    config = TrainConfig()
    rates = [config.learning_rate(step) for step in range(config.phases.steps + 1)]
    assert rates[0] < 0.02 and rates[99] > 0.98
    assert rates[500] < 0.02 < 0.9 < rates[660]
    assert rates[-1] == pytest.approx(config.optimizer.final_ratio)


def test_resume_is_exact_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    """8 steps equal 4 steps, a new process, and 4 more: both networks, their optimizers, and the running average."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = [*SHORT, "optimizer.muon_learning_rate=1.0e-3"]
    done = train(corpus, whole, *settings, flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr
    assert not (whole / "tensorboard").exists()
    assert train(corpus, parts, *settings, flags=("--logger", "none")).returncode == 0
    for path in (parts / "checkpoints").glob("step_00000008"):
        path.rename(tmp_path / "gone")
    done = train(corpus, parts, *settings, flags=("--resume", "--logger", "none"))
    assert done.returncode == 0, done.stderr
    a, b = state(whole, 8), state(parts, 8)
    groups = {name.split("/")[0] for name in a}
    assert groups == {"codec", "average", "judges", "optimizer", "matrix_optimizer", "judge_optimizer"}
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    middle = state(whole, 4)
    assert any(not torch.equal(middle[name], a[name]) for name in a if name.startswith("codec/"))
    again = train(corpus, whole, *SHORT)
    assert again.returncode == 1 and "--resume" in again.stderr and "Traceback" not in again.stderr


def test_tables_that_training_moves_without_gradient_reach_the_averaged_model(corpus: Path, tmp_path: Path) -> None:
    done = train(corpus, tmp_path, *SHORT, "model.quantizer.kind=residual_ema_vq", flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr
    tensors = state(tmp_path, 8)
    moved = [name for name in tensors if name.startswith("codec/") and name.endswith(".sums")]
    assert moved and all(torch.equal(tensors[name], tensors[name.replace("codec", "average", 1)]) for name in moved)


def test_a_quantizer_without_parameters_is_trained_around(corpus: Path, tmp_path: Path) -> None:
    single = ["model.quantizer.kind=ema_vq", "model.quantizer.num_quantizers=1", "model.quantizer.codebook_dim=32"]
    done = train(corpus, tmp_path, *SHORT, "model.latent_dim=32", *single, flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr


def test_a_run_killed_in_its_first_save_begins_anew(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_00000004.tmp").mkdir(parents=True)
    settings = [*SHORT, "phases.steps=1", "phases.autoencoder=0", "phases.adversarial=-1"]
    done = train(corpus, tmp_path, *settings, flags=("--logger", "none", "--minutes", "1"))
    assert done.returncode == 0, done.stderr
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step_00000001"


def test_processes_that_see_different_checkpoints_say_so(corpus: Path, tmp_path: Path) -> None:
    """As on machines without a common disk: each process here is given a folder of its own."""
    settings = [*SHORT, "phases.steps=1", "phases.autoencoder=0", "phases.adversarial=-1"]
    assert train(corpus, tmp_path / "0", *settings, flags=("--logger", "none")).returncode == 0
    wrapper = tmp_path / "each.py"
    wrapper.write_text(
        "import os, runpy, sys\n"
        f"sys.argv[sys.argv.index('--out') + 1] = r'{tmp_path}/' + os.environ['RANK']\n"
        f"sys.path.insert(0, r'{RECIPES}')\n"
        f"runpy.run_path(r'{RECIPES}/train.py', run_name='__main__')\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(wrapper)]
    rest = command(corpus, tmp_path / "0", *settings, flags=("--logger", "none", "--minutes", "1"))[2:]
    done = subprocess.run([*launcher, *rest], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert "must lie on a disk that all machines share: the processes see checkpoints of step 1, none" in done.stderr


def test_a_checkpoint_is_written_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("recipes/train.py")
    run = in_process_run(script, load_train_config(DEBUG))
    written: list[int] = []
    monkeypatch.setattr(script, "save_checkpoint", lambda folder, step, *_: written.append(step))
    run.folder = tmp_path
    for step in (1, 1, 2, 2, 2, 5):
        run.counters.step = step
        run.save()
    assert written == [1, 2, 5]


def test_two_processes_average_to_the_gradients_of_one(corpus: Path, tmp_path: Path) -> None:
    """After one step Adam's first moment is (1 - beta1) times the clipped gradient; it must be that of the whole batch."""
    settings = [*SHORT, "phases.steps=1", "phases.autoencoder=0", "phases.adversarial=0", "quantizer_dropout=0.0"]
    settings += ["losses.weights.adversarial=1.0", "losses.weights.feature_matching=1.0", "log.valid_every=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    done = train(corpus, one, *settings, flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = train(corpus, two, *settings, launcher=launcher, flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "strides do not match" not in done.stderr
    assert "utterances 4" in done.stdout, "each validation file counts once, over both processes"
    a, b = state(one, 1), state(two, 1)
    moments = [name for name in a if name.endswith("/exp_avg")]
    assert len(moments) > 40
    for kind in ("optimizer", "judge_optimizer"):
        flat = [torch.cat([s[name].flatten() for name in moments if name.startswith(kind + "/")]) for s in (a, b)]
        assert flat[0].norm() > 0
        difference = (flat[0] - flat[1]).norm() / flat[0].norm()
        assert difference < 1e-3, (kind, difference)


def in_process_run(script: Any, config: TrainConfig, step: int = 0) -> Any:
    """A run of the script in this process, without data."""
    accelerator = accelerate.Accelerator(cpu=True)
    networks, spectral = script.build_networks(config, accelerator, None), script.build_spectral(config)
    return script.Run(config, accelerator, Path("unused"), networks, spectral, None, [], script.Counters(step=step))


def test_a_non_finite_step_changes_nothing_and_many_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    script = load_script("recipes/train.py")
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    config = load_train_config(DEBUG, ["optimizer.max_bad_steps=3"])
    run, batch = in_process_run(script, config, step=7), {"index": torch.tensor([70, 71])}
    counters = run.counters

    def step(factor: float) -> torch.Tensor:
        loss = (factor * layer(torch.ones(1, 3))).sum()
        return script.update(run, loss, layer, [optimizer], batch)  # type: ignore[no-any-return]

    before = layer.weight.clone()
    step(math.nan)
    step(math.inf)
    assert torch.equal(layer.weight, before) and (counters.bad_steps, counters.bad_in_a_row) == (2, 2)
    assert "step 7 skipped" in caplog.text and "[70, 71]" in caplog.text
    step(1.0)
    assert not torch.equal(layer.weight, before) and (counters.bad_steps, counters.bad_in_a_row) == (2, 0)
    with pytest.raises(script.TrainingError, match=r"3 steps in a row.*learning_rate"):
        for _ in range(3):
            step(math.nan)


def test_discriminators_see_no_more_than_the_recordings_bandwidth() -> None:
    """Neither of the recorded nor of the decoded speech: what a fresh decoder puts above must not give it away."""
    script = load_script("recipes/train.py")
    config = load_train_config(DEBUG, ["phases.autoencoder=0", "phases.adversarial=0"])
    run = in_process_run(script, config)
    seen: list[torch.Tensor] = []
    run.networks.judges.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = {"waveform": 0.1 * torch.randn(4, 1, 9600), "bandwidth": torch.tensor([8000.0, 12000.0] * 2)}
    batch["index"] = torch.arange(4)
    script.train_step(run, batch)
    assert [len(waveform) for waveform in seen] == [8, 4, 4]  # both at once, then the recorded, then the decoded
    for waveform in seen:
        power = torch.fft.rfft(waveform[:, 0]).abs().square()
        above = power[:, round(8000 / 24000 * 9600) :].sum(dim=1) / power.sum(dim=1)
        assert (above[0::2] < 1e-8).all() and (above[1::2] > 1e-3).all()


def test_a_diverging_run_stops_with_advice(corpus: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "optimizer.learning_rate=1.0e+30", "optimizer.max_bad_steps=2", "phases.autoencoder=100"]
    done = train(corpus, tmp_path / "run", *settings, "phases.adversarial=-1", flags=("--logger", "none"))
    assert done.returncode == 1 and "2 steps in a row" in done.stderr and "Traceback" not in done.stderr


def test_debug_run_is_killed_resumed_exported_and_used(corpus: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    args = command(
        corpus, run, "phases.steps=24", "phases.autoencoder=6", "phases.adversarial=12", "log.checkpoint_every=4"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    wait_for(lambda: any((run / "checkpoints").glob("step_*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # to the end of stdout, which the reading processes hold too: they end as well
    process = subprocess.Popen([*args, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    known = set((run / "checkpoints").glob("step_*"))
    wait_for(lambda: set((run / "checkpoints").glob("step_*")) - known, process)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    done = subprocess.run([*args, "--resume"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "done at step 24" in done.stdout, done.stderr
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert "step_00000024" in kept and len(kept) <= 3
    assert list((run / "tensorboard").iterdir())

    export = [sys.executable, str(RECIPES / "export.py"), str(run), str(model), "--with-discriminator"]
    done = subprocess.run(export, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in model.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "discriminator.safetensors",
    }
    assert "made here | CC0" in (model / "README.md").read_text()
    average = {k.removeprefix("average/"): v for k, v in state(run, 24).items() if k.startswith("average/")}
    exported = load_file(model / "model.safetensors")
    assert exported.keys() == average.keys() and all(torch.equal(exported[k], average[k]) for k in average)

    speech = ROOT / "tests" / "assets" / "example.wav"
    assert encode_main([str(speech), str(tmp_path / "a.codes"), "--model", str(model)]) == 0
    assert decode_main([str(tmp_path / "a.codes"), str(tmp_path / "a.wav"), "--model", str(model)]) == 0
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(speech).frames

    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / "cpu.yaml"))
    flags = ("--init", str(model), "--logger", "none")
    tuned = train(corpus, tmp_path / "tuned", *SHORT, launcher=launcher, flags=flags)
    assert tuned.returncode == 0, tuned.stderr

    # with another quantizer: encoder and decoder as they were, the codebook from the data
    other = ["model.quantizer.kind=simvq", "model.quantizer.num_quantizers=1", "optimizer.learning_rate=1.0e-12"]
    single = train(corpus, tmp_path / "single", *SHORT, "phases.steps=1", *other, flags=flags)
    assert single.returncode == 0, single.stderr
    started = {k.removeprefix("codec/"): v for k, v in state(tmp_path / "single", 1).items() if k.startswith("codec/")}
    kept = [key for key in exported if not key.startswith("quantizer.")]
    assert all(torch.allclose(started[key], exported[key], atol=1e-6) for key in kept)
    assert not torch.equal(started["quantizer.weight"], torch.eye(8))
    judges = {k.removeprefix("judges/"): v for k, v in state(tmp_path / "single", 1).items() if k.startswith("judges/")}
    given = load_file(model / "discriminator.safetensors")
    assert judges.keys() == given.keys() and all(torch.equal(judges[k], given[k]) for k in given)
    fewer = train(corpus, tmp_path / "fewer", *SHORT, "discriminator.periods=[2]", flags=flags)
    assert fewer.returncode == 1 and "holds other discriminators" in fewer.stderr
    for number, change in enumerate(["model.latent_dim=16", "model.decoder.depth=1"]):
        unlike = train(corpus, tmp_path / f"unlike{number}", *SHORT, change, flags=flags)
        assert unlike.returncode == 1 and "only the quantizer may differ, and there may be more blocks" in unlike.stderr


def test_bf16_autocast_trains_and_stores_float32(corpus: Path, tmp_path: Path) -> None:
    done = train(corpus, tmp_path / "run", *SHORT, "precision=bf16", flags=("--logger", "none"))
    assert done.returncode == 0, done.stderr
    assert {t.dtype for t in state(tmp_path / "run", 8).values()} == {torch.float32}


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path) -> None:
    for settings, message in (
        (["model.sample_rat=1"], "unknown key model.sample_rat"),
        (["data.train=[nowhere.jsonl]"], "nowhere.jsonl"),
        (["--config", "nowhere.yaml"], "error: nowhere.yaml: No such file or directory"),
    ):
        done = train(corpus, tmp_path / "run", *settings)
        assert done.returncode == 1 and message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def recipe(name: str, *args: object) -> int:
    """The exit code of a script's main, called with these arguments."""
    script = load_script(f"recipes/{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        return script.main()  # type: ignore[no-any-return]


def test_export_takes_the_mean_of_runs_from_one_model(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SHORT, "phases.steps=2", "phases.autoencoder=0", "phases.adversarial=-1"]
    start, one, other = (tmp_path / name for name in ("start", "one", "other"))
    assert train(corpus, start, *settings, flags=("--logger", "none")).returncode == 0
    assert recipe("export", start, tmp_path / "model") == 0
    for seed, run in enumerate((one, other), 5):
        flags = ("--logger", "none", "--init", str(tmp_path / "model"))
        assert train(corpus, run, *settings, f"seed={seed}", flags=flags).returncode == 0
    assert recipe("export", one, tmp_path / "mean", "--average-with", other) == 0
    first, second = ({k: v for k, v in state(run, 2).items() if k.startswith("average/")} for run in (one, other))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    for key, tensor in mean.items():
        expected = (first[f"average/{key}"] + second[f"average/{key}"]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-8)
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "mean of the weights of 2 runs" in card and "Seed 5." in card and "Seed 6." in card

    stranger = tmp_path / "stranger"
    assert train(corpus, stranger, *settings, "seed=9", flags=("--logger", "none")).returncode == 0
    capsys.readouterr()
    assert recipe("export", one, tmp_path / "no", "--average-with", stranger) == 1
    assert "basis than" in (said := capsys.readouterr().err) and "did not begin from one model" in said
    wider = json.loads((stranger / "config.json").read_text())
    wider["model"]["decoder"]["width"] += 8
    (stranger / "config.json").write_text(json.dumps(wider))
    assert recipe("export", one, tmp_path / "no", "--average-with", stranger) == 1
    assert "trained another architecture" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_exports_and_pictures_are_not_overwritten(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SHORT, "phases.steps=2", "phases.autoencoder=0", "phases.adversarial=-1"]
    run, model, picture = tmp_path / "run", tmp_path / "model", tmp_path / "curves.png"
    assert train(corpus, run, *settings, flags=("--logger", "none")).returncode == 0
    assert recipe("export", run, model, "--evaluation", tmp_path / "nowhere") == 1
    assert "nowhere is not the report that codec-evaluate makes of a model" in capsys.readouterr().err
    assert not model.exists()
    assert recipe("export", run, model) == 0
    (model / "README.md").write_text("mine")
    assert recipe("export", run, model) == 1
    assert capsys.readouterr().err == f"error: {model}/config.json exists; --force overwrites it\n"
    assert (model / "README.md").read_text() == "mine"
    assert recipe("export", run, model, "--force") == 0
    assert (model / "README.md").read_text() != "mine"
    assert recipe("export", run, model / "README.md") == 1
    assert "README.md is a file; give a folder" in capsys.readouterr().err

    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "metrics.jsonl").write_text(
        '{"step": 1, "loss/mel": 0.5}\n{"step": 2, "lo'
    )  # no stft, broken off
    assert recipe("plot", tmp_path / "few", "--out", tmp_path / "few.png") == 0
    assert recipe("plot", tmp_path / "few", "--curves", "lossmel", "--out", tmp_path / "none.png") == 1
    assert "no curve is named lossmel" in capsys.readouterr().err and not (tmp_path / "none.png").exists()
    curves = load_script("recipes/plot.py").read_curves(run, "codebook/usage_*")
    assert sorted(curves) == ["codebook/usage_1", "codebook/usage_2", "codebook/usage_3"]
    assert all(steps == [2] and 0 < values[0] <= 1 for steps, values in curves.values())
    assert recipe("plot", run, "--out", picture) == 0
    picture.write_text("mine")
    assert recipe("plot", run, "--out", picture) == 1
    assert f"{picture} exists; --force overwrites it" in capsys.readouterr().err and picture.read_text() == "mine"
    assert recipe("plot", run, "--out", picture, "--force") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


HOOKED = """
import importlib.machinery, os, runpy, signal, sys
script, blocked, interrupting = sys.argv[1:4]
sys.argv, sys.path[0] = sys.argv[3:], os.path.dirname(script)
original = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    if name == interrupting:
        os.kill(os.getpid(), signal.SIGINT)
    top = name.partition(".")[0]
    return original(name, [sys.path[0]] if name == top == blocked else path, target)
importlib.machinery.PathFinder.find_spec = find_spec
runpy.run_path(script, run_name="__main__")
"""


def hooked(script: str, blocked: str, interrupting: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe where one package is not installed, and where ctrl-C comes as another one is imported."""
    start = [sys.executable, "-c", HOOKED, str(RECIPES / script), blocked, interrupting]
    return subprocess.run([*start, *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("train.py", "accelerate", "train"),
        ("train.py", "yaml", "train"),
        ("plot.py", "matplotlib", "train"),
        ("benchmark.py", "transformers", "bench"),
    ],
)
def test_a_missing_extra_is_named(script: str, package: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/mel": 0.5}\n')
    args = {"train.py": ["--config", str(DEBUG)], "plot.py": [str(tmp_path)], "benchmark.py": []}[script]
    done = hooked(script, package, "", *args)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: the package {package} is missing") and f"[{extra}]" in done.stderr


@pytest.mark.parametrize("package", ["torch", "yaml"])
def test_an_interrupt_before_training_is_one_line(package: str) -> None:
    """While the script's packages are imported, and while it sets up."""
    done = hooked("train.py", "", package, "--config", str(DEBUG))
    assert (done.returncode, done.stderr) == (130, "interrupted before training began\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_stops_and_saves(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A terminal's ctrl-C and many a cluster's SIGTERM reach the reading processes too."""
    run = tmp_path / "run"
    args = command(corpus, run, "phases.steps=100000", "data.workers=2", "log.checkpoint_every=4")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*args, "--logger", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    wait_for(lambda: any((run / "checkpoints").glob("step_*")), process)
    os.killpg(process.pid, number)
    output, errors = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 0 and "Traceback" not in errors, errors
    stopped = output.splitlines()[-1]
    assert stopped.startswith("stopped at step ") and "--resume" in stopped
    assert (run / "checkpoints" / f"step_{int(stopped.split()[3].rstrip(':')):08d}").is_dir()


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_audio_is_one_sentence(corpus: Path, tmp_path: Path, workers: int) -> None:
    write_manifest(tmp_path / "bad.jsonl", [Record(str(i), str(tmp_path / f"{i}.wav"), 24000, 24000) for i in range(3)])
    settings = [*SHORT, f"data.train=[{tmp_path}/bad.jsonl]", f"data.workers={workers}"]
    done = train(corpus, tmp_path / "run", *settings, flags=("--logger", "none"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith("error: 3 of 3 files tried cannot be read"), done.stderr


def test_resuming_what_is_done_or_different_is_one_line(corpus: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "phases.steps=1", "phases.autoencoder=0", "phases.adversarial=-1"]
    run, flags = tmp_path / "run", ("--resume", "--logger", "none")
    assert train(corpus, run, *settings, flags=flags[1:]).returncode == 0
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    done = train(corpus, run, *settings, flags=flags)
    assert done.returncode == 0 and "nothing left to do" in done.stdout and "--set phases.steps=" in done.stdout
    done = train(corpus, run, *settings, "model.latent_dim=48", flags=flags)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 500
    assert "does not fit this configuration: " in done.stderr and " tensors are" in done.stderr
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


def test_the_optimizers_stay_what_they_are_within_a_run(corpus: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "phases.steps=1", "phases.autoencoder=0", "phases.adversarial=-1"]
    muon, flags = "optimizer.muon_learning_rate=1.0e-3", ("--logger", "none")
    for run, first, then in ((tmp_path / "adamw", (), (muon,)), (tmp_path / "muon", (muon,), ())):
        assert train(corpus, run, *settings, *first, flags=flags).returncode == 0
        done = train(corpus, run, *settings, "phases.steps=2", *then, flags=(*flags, "--resume"))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "holds the state of other optimizers: within a run optimizer.muon_learning_rate" in done.stderr


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "training made no checkpoint in time"
        time.sleep(0.05)


def test_legs_of_minutes_make_one_run(corpus: Path, tmp_path: Path) -> None:
    """The same command again and again trains on, straight from a shard."""
    settings = [*SHORT, "phases.adversarial=-1", "phases.steps=100000"]
    first = train(corpus, tmp_path / "run", *settings, flags=("--logger", "none", "--minutes", "0.001"))
    assert first.returncode == 0, first.stderr
    reached = latest_checkpoint(tmp_path / "run" / "checkpoints").name
    assert f"stopped at step {int(reached.removeprefix('step_'))}:" in first.stdout
    assert "; the same command goes on from there" in first.stdout
    second = train(corpus, tmp_path / "run", *settings, flags=("--logger", "none", "--minutes", "0.05"))
    assert second.returncode == 0, second.stderr
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name > reached
