"""Speed and memory of a model, as ratios within one run (machines differ; ratios less so).

python recipes/benchmark.py              # encode and decode against transformers' EnCodec 24 kHz (extra ``bench``)
python recipes/benchmark.py --backends   # by torch in float32 and bfloat16, ONNX Runtime and its 8 bits; EnCodec, Mimi, DAC,
                                         # and SNAC (pip install snac); on 1 and 2 threads (extras ``bench``, ``onnx``)
python recipes/benchmark.py --frames     # streams of speech-24khz-live: single frames by each, the first sound (``onnx``)
python recipes/benchmark.py --memory     # peak memory and time of files of a minute, ten minutes and an hour
python recipes/benchmark.py --startup    # codec-encode from shell to exit, by both backends, and ``import torch`` alone
python recipes/benchmark.py --batch corpora/speech/valid.jsonl --device cuda   # items at once against one by one
"""

import codec.scripts  # noqa: F401  first: it says what the others lack

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from codec.audio import resample
from codec.base import CodecBase
from codec.cli.backends import BACKENDS
from codec.cli.live import CHUNK_SECONDS
from codec.container import Writer
from codec.corpus.manifest import read_manifest
from codec.corpus.scan import read_record
from codec.errors import EXIT_OK, CodecError, Parser, positive, run_command
from codec.model import Codec
from codec.pretrained import DEFAULT_MODEL

SECONDS = 10
BATCH = 32  # utterances
PUSHES = 20  # timed together
WAV_HEAD = 44  # bytes
COMMAND = "from codec.cli.commands import {}_main as main; raise SystemExit(main())"
Way = tuple[Callable[[], Any], Callable[[Any], object]]  # encode ten seconds; decode what that gave


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, in_a_row: int = 1) -> dict[str, float]:
    """Median wall time of each call in seconds, the calls taking turns so that a disturbance meets all of them.

    In its turn a call is made ``in_a_row`` times.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):  # the first to warm up
        for name, call in calls.items():
            times[name].append(timeit.timeit(call, number=in_a_row) / in_a_row)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def by_onnx(model: str, threads: int) -> dict[str, CodecBase[Any]]:
    """The model, run by ONNX Runtime on 32 and on 8 bits."""
    from codec.runtime import OnnxCodec

    return {name: OnnxCodec.from_pretrained(model, bits, threads) for name, bits in (("onnx", 32), ("onnx int8", 8))}


def in_bfloat16(codec: Codec, samples: NDArray[np.float32]) -> Way:
    """What ``encode`` and ``decode`` compute of one window, which they never do in half precision: it gives other codes."""
    waveform = torch.from_numpy(samples)[None, None]
    in_half = torch.autocast("cpu", torch.bfloat16)
    encode = in_half(lambda: codec.quantizer(codec.encoder(waveform)).codes)
    return encode, in_half(lambda codes: codec.decoder(codec.quantizer.decode(codes)))


def peers(samples: NDArray[np.float32], all_of_them: bool) -> dict[str, Way]:
    """Other codecs of 24 kHz, the first of them EnCodec. Their weights are random: the work is the same."""
    import transformers as t

    waveform = torch.from_numpy(samples)[None, None]
    encodec = t.EncodecModel(t.EncodecConfig()).eval()
    ways: dict[str, Way] = {
        "EnCodec, 6 kbit/s": (
            lambda: encodec.encode(waveform, bandwidth=6.0),
            lambda coded: encodec.decode(coded.audio_codes, coded.audio_scales),
        )
    }
    if not all_of_them:
        return ways
    mimi = t.MimiModel(t.MimiConfig()).eval()
    dac = t.DacModel(t.DacConfig(sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=32)).eval()
    ways["Mimi, 1.1 kbit/s"] = lambda: mimi.encode(waveform, num_quantizers=8), lambda c: mimi.decode(c.audio_codes)
    dac_codes = partial(dac.encode, waveform, n_quantizers=8)
    ways["DAC, 6 kbit/s"] = dac_codes, lambda c: dac.decode(audio_codes=c.audio_codes)
    try:
        from snac import SNAC
    except ModuleNotFoundError:
        print("without SNAC, which needs: pip install snac", file=sys.stderr)
        return ways
    snac = SNAC(24000, 48, [2, 4, 8, 8], None, 1024, [8, 8, 4, 2], None, 4096, 8, [4, 2, 1]).eval()
    return ways | {"SNAC, 0.98 kbit/s": (lambda: snac.encode(waveform), snac.decode)}


def against_encodec(model: str, rounds: int, all_of_them: bool) -> None:
    """Encode and decode ten seconds by each library that runs a model, and by other codecs."""
    codec = Codec.from_pretrained(model)
    if codec.sample_rate != 24000:
        raise CodecError(f"{model} is of {codec.sample_rate} Hz; the other codecs are of 24000")
    samples = np.random.default_rng(0).standard_normal(SECONDS * 24000, np.float32) * np.float32(0.1)
    ways = peers(samples, all_of_them)
    reference, threads = next(iter(ways)), torch.get_num_threads()
    codecs = {"torch": codec} | (by_onnx(model, threads) if all_of_them else {})
    ways |= {name: (partial(each.encode, samples, 24000), each.decode) for name, each in codecs.items()}
    if all_of_them:
        ways["torch bf16"] = in_bfloat16(codec, samples)
    calls: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        for name, (encode, decode) in ways.items():
            calls |= {f"{name} encode": encode, f"{name} decode": partial(decode, encode())}
        times = interleaved(calls, rounds)
    print(f"{codec.name} at {codec.bitrate / 1000:g} kbit/s, {SECONDS} s of audio, {threads} threads, {rounds} rounds")
    print("times EnCodec's speed in encoding, decoding, both; seconds for a second of audio")
    first = [times[f"{reference} {act}"] for act in ("encode", "decode")]
    for name in ways:
        there, back = (times[f"{name} {act}"] for act in ("encode", "decode"))
        ratios = f"{first[0] / there:6.2f}{first[1] / back:6.2f}{sum(first) / (there + back):6.2f}"
        print(f"{name:>17}:{ratios}{there / SECONDS:9.4f}{back / SECONDS:9.4f}")


def frame_by_frame(model: str, rounds: int, threads: int) -> None:
    """A push of one frame through each stream, against the time that the frame lasts."""
    codecs: dict[str, CodecBase[Any]] = {"torch": Codec.from_pretrained(model), **by_onnx(model, threads)}
    calls: dict[str, Callable[[], object]] = {}
    for name, each in codecs.items():
        samples = np.full((1, 1, each.hop_length), 0.01, np.float32)
        codes = np.ones((1, each.num_quantizers, 1), np.int64)
        calls[f"{name} encode"] = partial(each.streaming_encoder().push, samples)
        calls[f"{name} decode"] = partial(each.streaming_decoder().push, codes)
    rate = codecs["torch"].frame_rate
    for name, seconds in interleaved(calls, rounds, PUSHES).items():
        print(f"{name:>16}: {1000 * seconds:.2f} ms, {100 * seconds * rate:.0f} % of a frame's {1000 / rate:.1f} ms")
    # other decoders give no sound after so few frames
    for backend in BACKENDS if codecs["torch"].look_aheads[1] < CHUNK_SECONDS * codecs["torch"].sample_rate else ():
        waits = [first_sound(codecs["torch"], backend, threads) for _ in range(rounds)]
        print(f"{backend:>16}: codec-decode - - sounds {1000 * statistics.median(waits):.0f} ms after its first frames")


def first_sound(codec: CodecBase[Any], backend: str, threads: int) -> float:
    """Seconds from the first block of codes, of ``CHUNK_SECONDS``, in a loaded codec-decode's pipe to sound out of it."""
    command = (sys.executable, "-c", COMMAND.format("decode"), "-", "-", "--backend", backend)
    environment, pipe = os.environ | {"OMP_NUM_THREADS": str(threads)}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        writer = Writer(process.stdin, codec.header(None, codec.sample_rate))
        if len(process.stdout.read(WAV_HEAD)) < WAV_HEAD:  # comes when the weights are loaded
            raise CodecError("codec-decode failed")
        time.sleep(1)  # ONNX Runtime builds its session
        start = time.perf_counter()
        writer.write(np.ones((codec.num_quantizers, math.ceil(CHUNK_SECONDS * codec.frame_rate)), np.int64))
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def run(threads: int, *arguments: str) -> float:
    """Run Python on so many threads, whose modules stay compiled; returns its peak of resident memory in MiB."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise CodecError(f"python {' '.join(arguments)} failed")
    return usage.ru_maxrss / 1024


def noise(path: str, minutes: float) -> None:
    """Write a file of 24 kHz, block after block, as an hour would take much memory."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 24000, 1) as file:
        for _ in range(round(6 * minutes)):
            file.write(rng.standard_normal(SECONDS * 24000, dtype=np.float32) * 0.05)


def long_files(model: str, threads: int) -> None:
    """Peak resident memory and time of codec-encode and codec-decode on a minute, ten minutes and an hour of noise."""
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, 10, 60):
            wav, codes, back = (f"{folder}/{minutes}{name}" for name in (".wav", ".codes", "back.wav"))
            noise(wav, minutes)
            for command, source, target in (("encode", wav, codes), ("decode", codes, back)):
                start = time.perf_counter()
                peak = run(threads, "-c", COMMAND.format(command), "--model", model, source, target)
                seconds = time.perf_counter() - start
                print(f"{command} {minutes} min: peak {peak:.0f} MiB, {seconds:.1f} s")


def startup(model: str, rounds: int, threads: int) -> None:
    """codec-encode of ten seconds, from shell to exit, by each backend; and a bare ``import torch``."""
    with tempfile.TemporaryDirectory() as folder:
        wav, codes = f"{folder}/in.wav", f"{folder}/out.codes"
        noise(wav, SECONDS / 60)
        encode = ("-c", COMMAND.format("encode"), "--force", "--model", model, wav, codes, "--backend")
        calls: dict[str, Callable[[], object]] = {"import torch": partial(run, threads, "-c", "import torch")}
        calls |= {f"codec-encode, {name}": partial(run, threads, *encode, name) for name in BACKENDS}
        times = interleaved(calls, rounds)
    for name, value in times.items():
        print(f"{name:>19}: {value:.2f} s")
    shown = times["codec-encode, torch"] / times["codec-encode, onnx"]
    print(f"codec-encode of {SECONDS} s: onnx is {shown:.1f} times faster than torch, from shell to exit")


def at_once(model: str, manifest: str, device: str) -> None:
    """Encode and decode utterances of similar lengths one by one and at once; and what the rounding changes."""
    codec, host = Codec.from_pretrained(model, device), Codec.from_pretrained(model)
    rate, hop = codec.sample_rate, codec.hop_length
    loaded = (torch.from_numpy(resample(*read_record(record), rate)) for record in read_manifest(manifest))
    waveforms, frames, worst = sorted(loaded, key=len), Counter[str](), 0.0
    if not waveforms:
        raise CodecError(f"{manifest} lists no utterance")
    times: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        start = time.perf_counter()
        result = call().cpu()  # waits for the device
        times[name] += time.perf_counter() - start
        return result

    for start in range(-BATCH, len(waveforms), BATCH):
        items = waveforms[max(start, 0) : max(start, 0) + BATCH]
        lengths = [len(item) for item in items]
        batch = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)[:, None]
        encode, codes = partial(codec.encode, batch, rate, lengths=lengths), host.encode(batch, rate, lengths=lengths)
        decode = partial(codec.decode, codes, lengths=lengths)
        alone, together = timed("encode", encode), timed("encode at once", partial(encode, exact=False))
        difference = timed("decode", decode) - timed("decode at once", partial(decode, exact=False))
        if start < 0:  # that was to warm up
            times.clear()
            continue
        frames["all"] += sum(-(-length // hop) for length in lengths)
        frames["at once"] += int((alone != together).any(dim=1).sum())
        frames["on cpu"] += int((alone != codes).any(dim=1).sum())
        worst = max(worst, float(difference.abs().max()))
    seconds = sum(map(len, waveforms)) / rate
    print(f"{codec.name} on {device}, {len(waveforms)} utterances of together {seconds:.0f} s, {BATCH} at once")
    for name in ("encode", "decode"):
        speeds = [seconds / times[name], seconds / times[f"{name} at once"]]
        print("{}: {:.1f} times real time one by one, {:.1f} at once".format(name, *speeds))
    for name, pair in (("at once", "at once and one by one"), ("on cpu", "one by one here and on the CPU")):
        share = frames[name] / frames["all"]
        print(f"unequal codes {pair}: in {frames[name]} of {frames['all']} frames, {share:.4%}")
    print(f"largest difference of a decoded sample: {worst:.1e}")


def measure(args: argparse.Namespace) -> int:
    """Print the benchmark that was asked for; returns the exit code."""
    if args.batch:
        at_once(args.model, args.batch, args.device)
    elif args.what == "memory":
        long_files(args.model, args.threads)
    elif args.what == "startup":
        startup(args.model, args.rounds, args.threads)
    elif args.what == "frames":
        frame_by_frame(args.model, args.rounds, args.threads)
    else:
        every = args.what == "backends"
        for threads in (1, 2) if every else (args.threads,):
            torch.set_num_threads(threads)
            against_encodec(args.model, args.rounds, every)
    return EXIT_OK


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--model", help=f"default: {DEFAULT_MODEL}; of --frames speech-24khz-live")
    parser.add_argument("--threads", type=positive, default=2, help="default: %(default)s; --backends takes 1 and 2")
    parser.add_argument("--rounds", type=positive, default=7)
    what = parser.add_mutually_exclusive_group()
    for name in ("backends", "frames", "memory", "startup"):
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name)
    what.add_argument("--batch", metavar="MANIFEST", help="measure batches of its utterances")
    parser.add_argument("--device", default="cpu", help="of --batch (default: %(default)s)")
    args = parser.parse_args()
    if args.device != "cpu" and not args.batch:
        parser.error("--device is that of --batch")
    args.model = args.model or ("speech-24khz-live" if args.what == "frames" else DEFAULT_MODEL)
    torch.set_num_threads(args.threads)
    sys.exit(run_command("benchmark.py", lambda: measure(args)))
