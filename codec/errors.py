"""The package's errors, and how a command ends with one: an exit code and one line that says what is wrong.

::

    CodecError (a ValueError)         what a user can mend: the message says what and how
    ├── UsageError                    of a command line: exit code 2
    ├── ConfigError                   codec.config
    ├── ContainerError                codec.container
    ├── AudioError                    codec.audio
    ├── ModelError                    codec.pretrained
    ├── ManifestError, PrepareError                  codec.corpus
    ├── CheckpointError, TrainingError               codec.training
    └── MetricError, EvaluationError, ReportError    codec.evaluation

Any other ``ValueError`` or ``RuntimeError``, as numpy and torch raise them, is a bug and shows its traceback.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from codec import __version__

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
STOPPING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # there is no SIGHUP on Windows
GRACE_SECONDS = 1.0  # an interrupted command has so long to end by itself; later signals count again
IMPORT_MACHINERY = "<frozen importlib._bootstrap>"  # the file name of Python's own code that imports modules

DISTRIBUTION = "simvq-codec"  # what pip calls this package
EXTRAS = {  # package -> the extra of this one that brings it; heavy packages are imported where they are used
    **dict.fromkeys(("accelerate", "matplotlib", "tensorboard", "yaml"), "train"),
    **dict.fromkeys(("librosa", "pesq", "pystoi"), "eval"),
    "huggingface_hub": "hub",
    "onnxruntime": "onnx",
    "transformers": "transformers",
    "av": "formats",
    "gradio": "demo",
    "ray": "ray",
    "pyarrow": "ray",
}


_interrupted = -math.inf  # when the command was interrupted, on the monotonic clock
_instead: Callable[[], None] | None = None  # what the next interrupt calls; by default it raises KeyboardInterrupt


class CodecError(ValueError):
    """The error of all that the package refuses; the message is one line that says what is wrong and how to mend it."""

    def __str__(self) -> str:
        return legible(super().__str__())


class UsageError(CodecError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Parses a command line; help keeps the line breaks of description and epilog, and an error is one line."""

    def __init__(self, *names: Any, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(self, args: Any = None, namespace: Any = None, intermixed: bool = False) -> Any:
        """Refuse empty arguments, as an unset variable of a shell gives them: as paths they would be this folder."""
        for each in sys.argv[1:] if args is None else args:
            if re.fullmatch(r"(--[\w-]+=)?", each):
                self.error(f"an argument is empty: {each!r}")
        return (super().parse_intermixed_args if intermixed else super().parse_args)(args, namespace)

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: error: {message} (see {self.prog} --help)")
        raise SystemExit(EXIT_USAGE)


def positive(text: str) -> int:
    """Read a whole number of at least 1 (a ``type`` of arguments)."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def legible(text: str) -> str:
    """Any text as one line that is safe on a terminal: control characters escaped, the middle of a long text cut out."""
    line = " ".join((text if len(text) <= 1000 else f"{text[:500]} [...] {text[-500:]}").split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def install_command(package: str) -> str:
    """How to install a package: by its extra; alone if torch is missing, which an extra would bring, too."""
    from importlib.metadata import distributions  # here: it takes some time

    if package not in EXTRAS or not any(distributions(name="torch")):
        return f"pip install {package}".replace("yaml", "PyYAML")
    if any(distributions(name=DISTRIBUTION)):
        return f"pip install '{DISTRIBUTION}[{EXTRAS[package]}]'"
    return f"pip install -e '.[{EXTRAS[package]}]'"


def one_line(error: BaseException) -> str:
    """The message of an error on one line: of files as ``path: reason``, of a missing package with its extra."""
    if text := environment_fault(error):
        return text
    if isinstance(error, OSError) and error.strerror:
        return legible(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return legible(str(error)) or type(error).__name__


def environment_fault(error: BaseException) -> str:
    """The fault of the machine behind an error: a missing or broken package, or too little memory; "" if there is none."""
    if isinstance(error, ImportError) and error.path is None:  # also where a mere folder has its name
        package = (error.name or "").partition(".")[0]
        if package == "torch":  # models also run without it, but not everything does
            return "this needs the package torch, which is missing: pip install torch"
        if package in EXTRAS and isinstance(error, ModuleNotFoundError):
            return f"the package {package} is missing: {install_command(package)}"
    if isinstance(error, (ImportError, OSError)):  # OSError: of a library that it loads
        for frame, _ in traceback.walk_tb(error.__traceback__):
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if frame.f_code.co_name == "<module>" and package in ("torch", *EXTRAS):  # it was being imported
                reason = legible(str(error))
                return f"the package {package} is installed but cannot be used ({reason}): install it again"
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's is a RuntimeError
    if full or "can't allocate memory" in str(error):
        return "out of memory: use shorter pieces, smaller batches or fewer processes"
    return ""


def run_command(name: str, work: Callable[[], int], interrupted: str = "nothing half-written is left") -> int:
    """Do a command's work; return its exit code, or that of the error that ended it, which is printed in one line.

    SIGTERM and a closed terminal act as ctrl-C: temporary files are removed, the message ends with ``interrupted``.
    """
    global _interrupted
    _interrupted = -math.inf
    for number in STOPPING if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup stays in force
            signal.signal(number, _interrupt)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    with suppress(OSError, ValueError, AttributeError):  # no descriptor; an older Python on Windows
        os.set_blocking(sys.stdin.fileno(), True)  # otherwise a pause in the input would look like its end
    # if they are closed: what is written there must not go into a file that was opened with their number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper):
        before.reconfigure(errors="backslashreplace")  # as stderr: names of files may be any bytes
        with suppress(OSError):  # it has no number
            if isinstance(before.buffer, io.RawIOBase):  # PYTHONUNBUFFERED: a write may take a part, without an error
                sys.stdout = open(before.fileno(), "w", 1, before.encoding, before.errors, closefd=False)  # noqa: SIM115
    try:
        code = work()
        sys.stdout.flush()  # here, where a full disk is an error
        # Python need not search for reference cycles at its end; but cycles of an error hold objects of soxr's
        if code == EXIT_OK:
            atexit.register(gc.freeze)
        return code
    except UsageError as error:
        say(f"{name}: error: {one_line(error)} (see {name} --help)")
        return EXIT_USAGE
    except KeyboardInterrupt as stop:
        say(f"{name}: interrupted; {str(stop) or interrupted}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE  # the reader of our output has gone: there is nobody to tell
    except (CodecError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (CodecError, OSError)) and not environment_fault(error):
            raise
        say(f"{name}: error: {one_line(error)}")
        return EXIT_FAILURE
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            drop_output()
        sys.stdout = before


def drop_output() -> None:
    """Throw away what stdout still holds: after it has failed, the interpreter's flush at exit would fail too."""
    with suppress(OSError):  # it has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not again while the command ends: a second one would leave temporary files."""
    global _interrupted, _instead
    if time.monotonic() - _interrupted > GRACE_SECONDS and not is_postponed(number, frame):
        _interrupted = time.monotonic()
        instead, _instead = _instead, None
        if instead is None:
            raise KeyboardInterrupt
        instead()


@contextmanager
def at_interrupt(instead: Callable[[], None]) -> Iterator[None]:
    """In this context the first interrupt of a command only calls ``instead``."""
    global _instead
    _instead = instead
    try:
        yield
    finally:
        _instead = None


def is_postponed(number: int, frame: FrameType | None) -> bool:
    """Whether a signal was postponed, to come again soon, as an exception would be lost here or become another error:
    where libsndfile reads from Python, or a module is imported.
    """
    codes = [each.f_code for each, _ in traceback.walk_stack(frame)]
    if not any(code.co_name.startswith("vio_") or code.co_filename == IMPORT_MACHINERY for code in codes):
        return False
    timer = threading.Timer(0.02, os.kill, (os.getpid(), number))
    timer.daemon = True  # if the command has ended by then, there is nothing left to stop
    timer.start()
    return True


def say(text: str) -> None:
    """A line on stderr, past a progress bar if there is one."""
    bars = sys.modules.get("tqdm")
    (bars.tqdm.write if bars else print)(legible(text), file=sys.stderr)
