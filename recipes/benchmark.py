"""Speed and memory of a model, as ratios within one run (machines differ; ratios less so).

python recipes/benchmark.py              # encode and decode against transformers' EnCodec 24 kHz (extra ``bench``)
python recipes/benchmark.py --backends   # the same by torch, ONNX Runtime and its 8 bits, on 1 and 2 threads (``onnx``)
python recipes/benchmark.py --memory     # peak memory and speed of encoding an hour through codec-encode
python recipes/benchmark.py --startup    # codec-encode from shell to exit, by both backends, and ``import torch`` alone
python recipes/benchmark.py --search     # the nearest of so many codes, against one matrix of all distances
python recipes/benchmark.py --train recipes/default/default.yaml --set "data.train=[manifests/train.jsonl]"
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from codec.base import CodecBase
from codec.cli.backends import BACKENDS
from codec.errors import EXIT_OK, CodecError, Parser, run_command
from codec.model import Codec
from codec.pretrained import DEFAULT_MODEL
from codec.quantizers.lookup import nearest
from codec.training.config import load_train_config

SECONDS = 10


class BenchmarkError(CodecError):
    """A program that was to be measured failed, and has said why."""


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall time of each call in seconds, the calls taking turns so that a disturbance meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm up
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def against_encodec(codecs: dict[str, CodecBase[Any]], rounds: int) -> None:
    """Encode and decode ten seconds with each codec and with EnCodec, whose weights are random: the work is the same."""
    from transformers import EncodecConfig, EncodecModel

    peer = EncodecModel(EncodecConfig()).eval()
    rate, codec = peer.config.sampling_rate, codecs["torch"]
    noise = np.random.default_rng(0).standard_normal(SECONDS * max(rate, codec.sample_rate), np.float32) * np.float32(
        0.1
    )
    samples, waveform = noise[: SECONDS * codec.sample_rate], torch.from_numpy(noise[: SECONDS * rate])[None, None]
    with torch.no_grad():
        peer_codes = peer.encode(waveform, bandwidth=6.0)
        calls: dict[str, Callable[[], object]] = {
            "EnCodec encode": lambda: peer.encode(waveform, bandwidth=6.0),
            "EnCodec decode": lambda: peer.decode(peer_codes.audio_codes, peer_codes.audio_scales),
        }
        for name, codec in codecs.items():
            calls[f"{name} encode"] = partial(codec.encode, samples, codec.sample_rate)
            calls[f"{name} decode"] = partial(codec.decode, codec.encode(samples, codec.sample_rate))
        times = interleaved(calls, rounds)
    kbps = f"{codec.name} at {codec.bitrate / 1000:g} kbit/s, EnCodec at 6 kbit/s"
    print(f"{torch.get_num_threads()} threads, {SECONDS} s of audio, {kbps}, medians of {rounds} rounds")
    for name in ("EnCodec", *codecs):
        encode, decode = times[f"{name} encode"], times[f"{name} decode"]
        ratios = [times["EnCodec encode"] / encode, times["EnCodec decode"] / decode]
        ratios.append((times["EnCodec encode"] + times["EnCodec decode"]) / (encode + decode))
        speed = "encode {:.1f}, decode {:.1f}, both {:.1f} times EnCodec's speed".format(*ratios)
        print(f"{name:>9}: {speed}; {encode / SECONDS:.4f} + {decode / SECONDS:.4f} s per second of audio")


def by_backends(model: str, rounds: int) -> None:
    """The speed of one model by each library that runs it, on one thread and on two."""
    from codec.runtime import OnnxCodec

    for threads in (1, 2):
        torch.set_num_threads(threads)
        codecs: dict[str, CodecBase[Any]] = {"torch": Codec.from_pretrained(model)}
        codecs |= {
            name: OnnxCodec.from_pretrained(model, bits, threads) for name, bits in (("onnx", 32), ("onnx int8", 8))
        }
        against_encodec(codecs, rounds)


def on_threads(threads: int) -> dict[str, str]:
    """The environment of a program that uses so many threads."""
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def one_hour(model: str, threads: int) -> None:
    """Peak resident memory of codec-encode and codec-decode on an hour of noise."""
    with tempfile.TemporaryDirectory() as folder:
        wav, codes, back = (Path(folder) / name for name in ("hour.wav", "hour.codes", "back.wav"))
        rng = np.random.default_rng(0)
        with soundfile.SoundFile(wav, "w", 24000, 1) as file:
            for _ in range(60):
                file.write(rng.standard_normal(60 * 24000, dtype=np.float32) * 0.05)
        for command, source, target in (("encode", wav, codes), ("decode", codes, back)):
            start = time.perf_counter()
            code = f"from codec.cli.commands import {command}_main as main; raise SystemExit(main())"
            args = [sys.executable, "-c", code, "--model", model, str(source), str(target)]
            process = subprocess.Popen(args, env=on_threads(threads))
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            if status != 0:
                raise BenchmarkError(f"codec-{command} failed")
            print(
                f"{command} an hour: peak {usage.ru_maxrss / 1024:.0f} MiB, {seconds:.0f} s, {3600 / seconds:.0f} x real time"
            )


def startup(model: str, rounds: int, threads: int) -> None:
    """codec-encode of ten seconds, from shell to exit, by each backend; and a bare ``import torch``."""
    with tempfile.TemporaryDirectory() as folder:
        wav, codes = Path(folder) / "in.wav", Path(folder) / "out.codes"
        soundfile.write(wav, np.random.default_rng(0).standard_normal(SECONDS * 24000) * 0.05, 24000)
        encode = "from codec.cli.commands import encode_main as main; raise SystemExit(main())"

        def run(code: str, *args: str) -> None:
            if subprocess.run([sys.executable, "-c", code, *args], env=on_threads(threads)).returncode:
                raise BenchmarkError(f"python -c {code!r} failed")

        arguments = ["--force", "--model", model, str(wav), str(codes), "--backend"]
        calls: dict[str, Callable[[], object]] = {"import torch": partial(run, "import torch")}
        calls |= {f"codec-encode, {name}": partial(run, encode, *arguments, name) for name in BACKENDS}
        times = interleaved(calls, rounds)
    for name, value in times.items():
        print(f"{name:>19}: {value:.2f} s")
    shown = times["codec-encode, torch"] / times["codec-encode, onnx"]
    print(f"codec-encode of {SECONDS} s: onnx is {shown:.1f} times faster than torch, from shell to exit")


def by_one_matrix(points: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.addmm(codebook.square().sum(dim=1), points, codebook.t(), alpha=-2).argmin(dim=1)


def searching(rounds: int) -> None:
    """The nearest code of 16 s of frames among more and more codes of 16 dimensions."""
    frames, dim = 16 * 75, 16
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(frames, dim, generator=generator)
    for size in (1024, 8192, 65536, 262144):
        codebook = torch.randn(size, dim, generator=generator)
        calls: dict[str, Callable[[], object]] = {
            "tiles": partial(nearest, points, codebook),
            "matrix": partial(by_one_matrix, points, codebook),
        }
        times = interleaved(calls, rounds)
        each = 1e6 * times["tiles"] / frames
        print(
            f"{size:>7} codes: {each:.0f} us per frame, {times['matrix'] / times['tiles']:.1f} times faster than one matrix"
        )


def training(config: str, overrides: list[str], threads: int) -> None:
    """Speed of quantized training steps and the share of their time spent waiting for data, from a short real run."""
    manifests = json.dumps(load_train_config(config, overrides).data.train)
    settings = [*overrides, "phases.steps=60", "phases.autoencoder=0", "log.scalars_every=10"]
    settings += [f"data.valid={manifests}", "data.valid_limit=1"]  # validation is not measured
    sets = [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(Path(__file__).with_name("train.py")), "--config", config]
        command = [*script, "--out", f"{folder}/run", "--logger", "none", *sets]
        if subprocess.run(command, env=on_threads(threads), stdout=sys.stderr).returncode:
            raise BenchmarkError("train.py failed")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    laps = [line for line in lines if line["step"] > 20 and "speed/data_wait_share" in line]
    speed = statistics.median(line["speed/audio_seconds_per_second"] for line in laps)
    wait = statistics.median(line["speed/data_wait_share"] for line in laps)
    print(
        f"training on {threads} threads: {speed:.1f} s of audio per second; {100 * wait:.1f} % of the time waits for data"
    )


def measure(args: argparse.Namespace) -> int:
    """Print the benchmark that was asked for; returns the exit code."""
    if args.train:
        training(args.train, args.set, args.threads)
    elif args.memory:
        one_hour(args.model, args.threads)
    elif args.search:
        searching(args.rounds)
    elif args.startup:
        startup(args.model, args.rounds, args.threads)
    elif args.backends:
        by_backends(args.model, args.rounds)
    else:
        against_encodec({"torch": Codec.from_pretrained(args.model)}, args.rounds)
    return EXIT_OK


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=7)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--backends", action="store_true")
    what.add_argument("--memory", action="store_true")
    what.add_argument("--startup", action="store_true")
    what.add_argument("--search", action="store_true")
    what.add_argument("--train", metavar="CONFIG", help="measure training with this configuration")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides of that configuration"
    )
    args = parser.parse_args()
    if args.set and not args.train:
        parser.error("--set changes the configuration of --train")
    torch.set_num_threads(args.threads)
    return run_command("benchmark.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
