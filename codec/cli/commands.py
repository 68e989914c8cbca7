"""The commands codec-encode, codec-decode and codec-info."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codec import __version__
from codec.cli.jobs import Job, plan_jobs
from codec.errors import EXIT_FAILURE, EXIT_OK, CodecError, UsageError, one_line, run_command, say

TRANSFER_USAGE = """%(prog)s [options] INPUT OUTPUT
       %(prog)s [options] INPUT [INPUT ...] -o DIR"""
EXIT_NOTE = "exit codes: 0 done, 1 a file, model or device cannot be used, 2 bad usage, 130 interrupted"

ENCODE_EXAMPLES = """examples:
  codec-encode in.wav out.codes                 all quantizers of the default model
  codec-encode --bitrate 1.5 in.flac out.codes  at most 1.5 kbit/s
  codec-encode speech/ -o codes/                a folder, its tree mirrored
  cat in.wav | codec-encode - - > out.codes     from and to a pipe
"""
DECODE_EXAMPLES = """examples:
  codec-decode out.codes out.wav
  codec-decode --num-quantizers 2 out.codes out.wav   only the first two codes of each frame
  codec-decode codes/ -o speech/ --format flac        a folder, its tree mirrored
  codec-decode --salvage damaged.codes out.wav        silence where blocks are lost
"""
INFO_EXAMPLES = """examples:
  codec-info out.codes
  codec-info --json out.codes
  codec-info path/to/model_folder
  codec-info default
"""


@dataclass
class _Progress:
    """Messages and the progress bar, both on stderr so that stdout stays free for data."""

    command: str

    def note(self, text: str) -> None:
        say(f"{self.command}: {text}")

    def fail(self, text: str) -> None:
        self.note(f"error: {text}")


def encode_main(argv: Sequence[str] | None = None) -> int:
    """codec-encode: audio files to .codes files. Returns the exit code."""
    parser = _parser("codec-encode", "Encode speech to .codes files.", ENCODE_EXAMPLES, TRANSFER_USAGE)
    _add_transfer_arguments(
        parser, "audio file, folder (with -o), or - for stdin", ".codes file, or - for stdout", "the shipped one"
    )
    return _main("codec-encode", parser, argv, _encode)


def decode_main(argv: Sequence[str] | None = None) -> int:
    """codec-decode: .codes files to audio files. Returns the exit code."""
    parser = _parser("codec-decode", "Decode .codes files to audio.", DECODE_EXAMPLES, TRANSFER_USAGE)
    _add_transfer_arguments(
        parser,
        ".codes file, folder (with -o), or - for stdin",
        "audio file, its format told by its suffix, or - for WAV on stdout",
        "the one that the file names",
    )
    parser.add_argument("--format", type=_not_empty, help="audio format of the files written with -o (default: wav)")
    parser.add_argument(
        "--native-rate", action="store_true", help="write at the model's sample rate, not the original's"
    )
    parser.add_argument("--salvage", action="store_true", help="decode the intact blocks of a damaged file")
    return _main("codec-decode", parser, argv, _decode)


def info_main(argv: Sequence[str] | None = None) -> int:
    """codec-info: describe .codes files and models. Returns the exit code."""
    parser = _parser("codec-info", "Show what is in a .codes file or a model.", INFO_EXAMPLES)
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE", help=".codes file, model folder, or name of a shipped model"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return _main("codec-info", parser, argv, _info)


def _parser(name: str, description: str, examples: str, usage: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        usage=usage,
        description=description,
        epilog=f"{examples}\n{EXIT_NOTE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _after_two_dashes(argv: Sequence[str]) -> list[str]:
    """The arguments without their ``--``; names after it that begin with a dash are told apart from options by ``./``."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    names = [f"./{name}" if name.startswith("-") and name != "-" else name for name in argv[end + 1 :]]
    return [*argv[:end], *names]


def _add_transfer_arguments(parser: argparse.ArgumentParser, source: str, target: str, model: str) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"INPUT: {source}; OUTPUT: {target}")
    parser.add_argument("-o", "--output-dir", type=_not_empty, metavar="DIR", help="write all outputs into this folder")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--bitrate", type=float, metavar="KBPS", help="use as many quantizers as fit into this, in kbit/s"
    )
    rate.add_argument("--num-quantizers", type=int, metavar="K", help="use the first K quantizers (default: all)")
    parser.add_argument(
        "--model", type=_not_empty, help=f"shipped model, model folder, or hub id owner/name (default: {model})"
    )
    parser.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda (default: cpu)")
    parser.add_argument("--force", action="store_true", help="overwrite existing outputs")


def _main(
    name: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, _Progress], int],
) -> int:
    progress = _Progress(name)
    given = _after_two_dashes(sys.argv[1:] if argv is None else argv)
    args = parser.parse_intermixed_args(given)  # options may stand between INPUT and OUTPUT
    return run_command(name, lambda: run(args, progress))


def _for_each(jobs: list[Job], force: bool, progress: _Progress, transfer: Callable[[Job], None]) -> int:
    """Run the jobs, going on after a failure; a bar when there are several."""
    from tqdm import tqdm

    for stream, name, wanted in (
        (sys.stdin, "stdin", any(job.from_stdin for job in jobs)),
        (sys.stdout, "stdout", any(job.to_stdout for job in jobs)),
    ):
        if wanted and stream is None:
            raise UsageError(f"{name} is closed")
    failures = 0
    for job in tqdm(jobs, unit=" file", disable=None if len(jobs) > 1 else True):
        try:
            _check_target(job, force)
            transfer(job)
        except BrokenPipeError:
            raise
        except (CodecError, OSError) as error:
            failures += 1
            progress.fail(_naming(error, job.source_name, job.target_name))
    if failures and len(jobs) > 1:
        progress.note(f"{len(jobs) - failures} of {len(jobs)} files done, {failures} failed")
    return EXIT_FAILURE if failures else EXIT_OK


def _check_target(job: Job, force: bool) -> None:
    if job.to_stdout or not job.target.exists():
        return
    if job.target.is_dir():
        raise IsADirectoryError(f"{job.target} is a folder")
    if not force:
        raise FileExistsError(f"{job.target} exists; --force overwrites it")
    if not job.from_stdin and job.source.exists() and job.target.samefile(job.source):
        raise FileExistsError(f"{job.target} is the input itself; give another OUTPUT")


def _naming(error: Exception, source: str, *others: str) -> str:
    """The message on one line, beginning with the name of the file that it is about."""
    from codec.container import ContainerError

    text = one_line(error)
    if getattr(error, "filename", None):
        return text
    names = [start for name in (source, *others) for start in (f"{name}:", f"{name} ")]
    if text.startswith(tuple(names)) and not isinstance(error, ContainerError):  # the container does not know the name
        return text
    return f"{source}: {text}"


def _encode(args: argparse.Namespace, progress: _Progress) -> int:
    from codec.audio import audio_suffixes
    from codec.cli.transfer import Encoding, encode_file

    folder = args.output_dir and Path(args.output_dir)
    jobs = plan_jobs(args.paths, folder, audio_suffixes(), [".codes"], progress.note)
    _check_range(args)
    encoding = Encoding.load(args.model, args.device, args.num_quantizers, args.bitrate, progress.note)
    return _for_each(jobs, args.force, progress, lambda job: encode_file(encoding, job, progress.note))


def _decode(args: argparse.Namespace, progress: _Progress) -> int:
    from codec.audio import WRITTEN
    from codec.cli.transfer import Decoding, decode_file

    if args.format is not None and args.output_dir is None:
        raise UsageError("--format goes with -o; the suffix of OUTPUT tells its format")
    suffix = "." + (args.format or "wav").lower().lstrip(".")
    if suffix not in WRITTEN:
        raise UsageError(f"--format {args.format}: not written here; take wav, flac, ogg, mp3 or opus")
    targets = [suffix, *WRITTEN]
    folder = args.output_dir and Path(args.output_dir)
    jobs = plan_jobs(args.paths, folder, {".codes"}, targets, progress.note)
    _check_range(args)
    decoding = Decoding(args.model, args.device, args.num_quantizers, args.bitrate, args.native_rate, args.salvage)
    if args.model is not None:  # else the files name it
        decoding.load(args.model)
    return _for_each(jobs, args.force, progress, lambda job: decode_file(decoding, job, progress.note))


def _check_range(args: argparse.Namespace) -> None:
    if args.num_quantizers is not None and args.num_quantizers < 1:
        raise UsageError("--num-quantizers must be at least 1")
    if args.bitrate is not None and not 0 < args.bitrate < math.inf:
        raise UsageError("--bitrate must be positive")


def _info(args: argparse.Namespace, progress: _Progress) -> int:
    from codec.cli.info import describe

    failures = 0
    for index, name in enumerate(args.inputs):
        try:
            facts = describe(name)
        except UsageError:
            raise
        except (CodecError, OSError) as error:
            failures += 1
            progress.fail(_naming(error, name))
            continue
        if args.json:
            print(json.dumps(facts))
        else:
            print(("\n" if index else "") + "\n".join(f"{key:<20} {value}" for key, value in facts.items()))
        failures += "damage" in facts
    if sys.stdout is None:
        raise UsageError("stdout is closed")
    sys.stdout.flush()
    return EXIT_FAILURE if failures else EXIT_OK
