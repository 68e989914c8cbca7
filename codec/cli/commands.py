"""The commands codec-encode, codec-decode and codec-info."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from codec.cli.backends import BACKENDS, DECODERS
from codec.cli.jobs import log_error, plan_jobs, run_jobs
from codec.errors import EXIT_FAILURE, EXIT_OK, CodecError, Parser, UsageError, legible, positive, run_command, say

if TYPE_CHECKING:
    from codec.cli.transfer import Worker

log = logging.getLogger("codec")  # of all modules

TRANSFER_USAGE = """%(prog)s [options] INPUT OUTPUT
       %(prog)s [options] INPUT [INPUT ...] -o DIR"""
EXIT_NOTE = "exit codes: 0 done, 1 a file, model or device cannot be used, 2 bad usage, 130 interrupted"

ENCODE_EXAMPLES = """examples:
  codec-encode in.wav out.codes                 all quantizers of the default model
  codec-encode --bitrate 1.5 in.flac out.codes  at most 1.5 kbit/s
  codec-encode speech/ -o codes/                a folder, its tree mirrored; --skip-existing goes on after a stop
  arecord -f S16_LE -r 24000 | codec-encode - - | codec-decode - - --model speech-24khz-live | aplay    live
  codec-encode speech/ -o codes/ --workers 8    on eight processes"""
DECODE_EXAMPLES = """examples:
  codec-decode out.codes out.wav
  codec-decode --num-quantizers 2 out.codes out.wav   only the first two codes of each frame
  codec-decode codes/ -o speech/ --format flac        a folder, its tree mirrored
  codec-decode --salvage damaged.codes out.wav        silence where blocks are lost"""
INFO_EXAMPLES = """examples:
  codec-info --json out.codes
  codec-info codes/                all .codes files of a folder
  codec-info default               a model, by its name or folder
  codec-info --environment         versions, devices, and what is not installed"""


class _Lines(logging.Handler):
    """Writes log records to stderr, past a progress bar; stdout stays free for data."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command
        self.said: set[str] = set()  # a file may be read twice, and some messages are of all files

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            say(f"{self.command}: {text}")


def encode_main(argv: Sequence[str] | None = None) -> int:
    """codec-encode: audio files to .codes files. Returns the exit code."""
    parser = Parser("codec-encode", TRANSFER_USAGE, "Encode speech to .codes files.", ENCODE_EXAMPLES)
    source, target = "audio file, folder (with -o), or - for stdin", ".codes file, or - for stdout"
    same = "length, level, model and bitrate, refined or not"
    _add_transfer_arguments(parser, source, target, same, model="the shipped one", backends=BACKENDS)
    level = "files are brought to one level, and back when decoded"
    add = parser.add_argument
    add("--channel", type=positive, metavar="N", help="encode this channel, from 1 on, not the mean of all")
    add("--no-normalize", action="store_true", help=f"keep the level of the input, as live pipes do (default: {level})")
    refine = "look N times for codes of files that sound nearer to the input; 15 come much nearer, and are slow"
    add("--refine-steps", type=positive, default=0, metavar="N", help=refine)
    raw = "stdin holds raw 16-bit samples of one channel at this rate, which keep their level"
    add("--raw", type=int, metavar="HZ", help=raw)
    return _run(parser, argv, _encode)


def decode_main(argv: Sequence[str] | None = None) -> int:
    """codec-decode: .codes files to audio files. Returns the exit code."""
    parser = Parser("codec-decode", TRANSFER_USAGE, "Decode .codes files to audio.", DECODE_EXAMPLES)
    source = ".codes file, folder (with -o), or - for stdin"
    target = "audio file, its format told by its suffix, or - for WAV on stdout"
    same = "length and rate, by whatever model and of however many quantizers"
    _add_transfer_arguments(parser, source, target, same, model="the one that the file names", backends=DECODERS)
    add = parser.add_argument
    add("--format", help="audio format of the files written with -o (default: wav)")
    add("--native-rate", action="store_true", help="write at the model's sample rate, not the original's")
    add("--salvage", action="store_true", help="decode the intact blocks of a damaged file")
    add("--raw", action="store_true", default=None, help="with - -: write raw 16-bit samples, without a WAV header")
    return _run(parser, argv, _decode)


def info_main(argv: Sequence[str] | None = None) -> int:
    """codec-info: describe .codes files and models. Returns the exit code."""
    parser = Parser("codec-info", None, "Show what is in a .codes file or a model.", INFO_EXAMPLES)
    names = ".codes file or a folder of them, model folder, or name of a shipped model"
    parser.add_argument("inputs", nargs="*", metavar="FILE", help=names)
    _add_backend(parser, BACKENDS)
    parser.add_argument("--environment", action="store_true", help="show versions, devices and optional packages")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return _run(parser, argv, _info)


def _add_transfer_arguments(
    parser: Parser, source: str, target: str, same: str, model: str, backends: Sequence[str]
) -> None:
    add, add_rate = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    skip = f"pass over inputs whose output is intact and of their {same}; with --force, others are made anew"
    workers = "processes for several inputs, of one thread each (default: 1)"
    add("paths", nargs="+", metavar="PATH", help=f"INPUT: {source}; OUTPUT: {target}; missing folders are made")
    add("-o", "--output-dir", metavar="DIR", help="write all outputs into this folder")
    add_rate("--bitrate", type=float, metavar="KBPS", help="use as many quantizers as fit into this, in kbit/s")
    add_rate("--num-quantizers", type=positive, metavar="K", help="use the first K quantizers (default: all)")
    add("--model", help=f"shipped model, model folder, or hub id owner/name (default: {model})")
    add("--device", default="cpu", help="torch device, such as cpu or cuda (default: cpu)")
    _add_backend(parser, backends)
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--skip-existing", action="store_true", help=skip)
    add("--workers", type=positive, default=1, metavar="N", help=workers)


def _add_backend(parser: Parser, backends: Sequence[str]) -> None:
    about = "the library that runs models (default: torch if it is installed, else onnx)"
    about += "; onnx8 rounds to 8 bits and is the fastest" * ("onnx8" in backends)
    parser.add_argument("--backend", choices=backends, help=about)


def _run(parser: Parser, argv: Sequence[str] | None, work: Callable[[argparse.Namespace], int]) -> int:
    lines = _Lines(parser.prog)
    log.setLevel(logging.INFO)
    parser.epilog = f"{parser.epilog}\n\n{EXIT_NOTE}"
    given = _after_two_dashes(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given, intermixed=True)  # options anywhere
    if args.backend not in (None, "torch"):  # then only numpy has OpenBLAS, whose threads start slowly and gain nothing
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    advice = "; --skip-existing goes on" if getattr(args, "output_dir", None) else ""
    log.addHandler(lines)
    try:
        return run_command(parser.prog, lambda: work(args), f"nothing half-written is left{advice}")
    finally:
        log.removeHandler(lines)


def _after_two_dashes(argv: Sequence[str]) -> list[str]:
    """The arguments without ``--``; names after it that begin with a dash get ``./``, so that they are no options."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    names = [f"./{name}" if name.startswith("-") and name != "-" else name for name in argv[end + 1 :]]
    return [*argv[:end], *names]


def _encode(args: argparse.Namespace) -> int:
    from codec.audio import audio_suffixes
    from codec.cli.transfer import FileEncoder

    return _transfer(args, FileEncoder, audio_suffixes(), [".codes"])


def _decode(args: argparse.Namespace) -> int:
    from codec.audio import WRITTEN
    from codec.cli.transfer import FileDecoder

    if args.format is not None and args.output_dir is None:
        raise UsageError("--format goes with -o; the suffix of OUTPUT tells its format")
    suffix = "." + (args.format or "wav").lower().lstrip(".")
    if suffix not in WRITTEN:
        raise UsageError(f"--format {args.format}: not written here; take wav, flac, ogg, mp3 or opus")
    return _transfer(args, FileDecoder, {".codes"}, [suffix, *WRITTEN])


def _transfer(
    args: argparse.Namespace, kind: type[Worker], source_suffixes: Collection[str], target_suffixes: Sequence[str]
) -> int:
    if args.raw is not None and args.paths != ["-", "-"]:
        raise UsageError("--raw goes with - -, from stdin to stdout; files hold their sample rate")
    if args.bitrate is not None and not 0 < args.bitrate < math.inf:
        raise UsageError("--bitrate must be positive")
    jobs = plan_jobs(args.paths, args.output_dir, source_suffixes, target_suffixes)
    args.workers = min(args.workers, len(jobs))
    return run_jobs(jobs, kind(args), args.workers)


def _info(args: argparse.Namespace) -> int:
    from codec.cli.info import describe, environment, names_in

    if "-" in args.inputs or not (args.inputs or args.environment):
        raise UsageError("codec-info reads files, not stdin; give a FILE, or --environment")
    failed = False
    names = [""] * args.environment + [each for name in args.inputs for each in names_in(name)]
    for index, name in enumerate(names):
        try:
            facts = describe(name, args.backend) if name else environment()
        except (CodecError, OSError) as error:
            log_error(error, name)
            failed = True
            continue
        if args.json:
            print(json.dumps(facts))
        else:
            lines = [f"{key:<20} {legible(str(value))}" for key, value in facts.items()]
            print("\n".join([""] * (index > 0) + lines))
        failed = failed or "damage" in facts
    return EXIT_FAILURE if failed else EXIT_OK
