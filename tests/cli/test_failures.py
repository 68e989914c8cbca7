"""What goes wrong: one line for what a user can mend, a traceback for a bug, no half-written file, no data lost."""

import importlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import soundfile
import torch
from loading import Refused, Said, flipped, full_disk
from shell import HOP, RATE, Run, names, process

from codec import Codec, container
from codec.cli.commands import decode_main
from codec.container import BLOCK_FRAMES, FORMER, Header
from codec.errors import STOPPING, legible, run_command


@pytest.fixture
def header(tiny_model: Codec) -> Header:
    """Of ten frames of the tiny model."""
    return tiny_model.header(800, RATE)


FAILURES: list[tuple[Any, str]] = [
    (["encode", "empty.wav", "x.codes"], "error: empty.wav is empty"),
    (["encode", "integers.wav", "x.codes"], "integers.wav: waveform must be in [-1, 1], but reaches 32767; divide"),
    (["encode", "good.codes", "x.codes"], "good.codes is not audio that libsndfile reads"),
    (["encode", "nowhere.wav", "x.codes"], "error: nowhere.wav: No such file or directory"),
    (["encode", "in.wav", "empty.wav/x.codes"], "error: empty.wav/x.codes: Not a directory"),
    (["encode", "in.wav", "x" * 300 + ".codes"], "File name too long"),
    (["encode", "in.wav", "x.codes", "--model", "nonsense"], "error: no model 'nonsense': give a shipped name"),
    (["encode", "in.wav", "x.codes", "--num-quantizers", "4"], "error: --num-quantizers 4: there are only 3"),
    (["encode", "in.wav", "x.codes", "--bitrate", "0.9"], "error: --bitrate 0.9: the lowest is 1 kbit/s"),
    (["decode", "good.codes", "x.wav", "--num-quantizers", "4"], "good.codes: --num-quantizers 4: there are only"),
    (["decode", "foreign.codes", "x.wav"], f"the file says 'tiny', fingerprint {'0' * 32}; this is 'tiny', finge"),
    (["decode", "absurd.codes", "x.wav"], "truncated: its end is missing"),
    (["info", "nowhere"], "error: nowhere: no such file, model folder or shipped model (speech-24khz-live-v3, "),
    (["info", "folder"], "error: folder is not a model folder"),
]
USAGE: list[tuple[Any, str]] = [
    (["encode", "in.wav"], "give INPUT OUTPUT, or several inputs with -o DIR"),
    (["encode", "in.wav", "out.wav"], "OUTPUT must end in .codes"),
    (["encode", "folder", "out.codes"], "folder is a folder; give -o DIR"),
    (["encode", "-", "-o", "out"], "stdin has no name"),
    (["encode", "in.wav", "-"], "stdout is a terminal"),
    (["decode", "dir.codes", "-o", "out"], "no .codes file in dir.codes"),
    (["encode", "", "-o", "out"], "an argument is empty"),
    (["info", "--model="], "an argument is empty: '--model='"),
    (["encode", "in.wav", "out.codes", "--bitrate", "nan"], "--bitrate must be positive"),
    (["encode", "in.wav", "a.codes", "--bitrate=1", "--num-quantizers=1"], "not allowed with argument --bitrate"),
    (["decode", "a.codes", "-o", "out", "--format", "nonsense"], "--format nonsense: not written here; take wav"),
    (["decode", "a.codes", "a.flac", "--format", "flac"], "--format goes with -o"),
    (["encode", "folder", "-o", "out", "--workers", 0], "argument --workers: must be a whole number of at least 1"),
    (["decode", "a.codes", "a.raw"], "OUTPUT must end in an audio suffix"),
    (["info", "-"], "reads files, not stdin"),
    (["encode", "in.wav", "a.codes", "--backend", "onnx", "--device", "cuda"], "--device cuda needs torch; ONNX"),
]


@pytest.mark.parametrize(
    ("code", "args", "message"),
    [*((1, *each) for each in FAILURES), *((2, *each) for each in USAGE)],
    ids=lambda value: "-".join(map(str, value))[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(run: Run, one_line: Said, header: Header, code: int, args: Any, message: str) -> None:
    Path("empty.wav").touch()
    for name in ("folder", "dir.codes"):
        Path(name).mkdir()
    soundfile.write("in.wav", np.zeros(800), RATE)
    soundfile.write("integers.wav", np.full(800, 32767.0), RATE, subtype="FLOAT")
    container.write("good.codes", header, np.zeros((3, 10), int))
    Path("absurd.codes").write_bytes(container.pack_header(replace(header, num_samples=2**60)) + bytes(100))
    container.write("foreign.codes", replace(header, fingerprint="0" * 32), np.zeros((3, 10), int))
    before = names()
    with patch.object(sys.stdout, "isatty", return_value=True):
        assert run(*args) == code
    said = one_line()
    assert message in said and said.startswith(f"codec-{args[0]}: error: ")
    assert names() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such names cannot be")
@pytest.mark.parametrize("stem", ["a\nb", "two  blanks", "\x1b[31m", os.fsdecode(b"caf\xe9")])
def test_any_name_is_said_on_one_line(
    run: Run, refused: Refused, header: Header, capsys: pytest.CaptureFixture[str], stem: str
) -> None:
    Path(f"{stem}.wav").write_bytes(b"RIFF")
    refused(run("encode", f"{stem}.wav", "-o", "out"), f"codec-encode: error: {legible(stem)}.wav is not audio")
    with open(f"{stem}.wav", "wb") as file:
        soundfile.write(file, np.zeros(100), RATE, format="WAV")
    assert run("encode", f"{stem}.wav", "-o", "out") == 0
    assert run("decode", f"out/{stem}.codes", f"out/{stem}.flac") == 0
    assert run("info", f"out/{stem}.codes") == 0
    assert capsys.readouterr().out.splitlines()[0].split(None, 1) == ["file", f"out/{legible(stem)}.codes"]


@pytest.mark.parametrize(("command", "source"), [("encode", "in.wav"), ("decode", "in.codes")])
def test_a_bug_is_a_traceback_and_too_little_memory_is_one_line(
    run: Run, encoded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str, source: str
) -> None:
    """What numpy or torch raises inside our code is no mistake of the user, and ends the loop over the files."""
    work = Mock(side_effect=[ValueError("a bug"), RuntimeError("a bug"), MemoryError, torch.cuda.OutOfMemoryError])
    monkeypatch.setattr(Codec, f"{command}_blocks", work)
    for bug in (ValueError, RuntimeError):
        with pytest.raises(bug, match="a bug"):
            run(command, source, "-o", "out")
    for _ in range(2):
        refused(run(command, source, "-o", "out"), f"codec-{command}: error: out of memory: use shorter pieces")
    assert names() == ["in.codes", "in.wav"]


def test_a_model_that_is_not_shipped_must_be_given(refused: Refused, header: Header) -> None:
    container.write("tiny.codes", header, np.zeros((3, 10), int))
    message = "tiny.codes: made with model 'tiny', which is not a shipped one; give it with --model"
    refused(decode_main(["tiny.codes", "a.wav"]), message)
    container.write("tiny.codes", replace(header, fingerprint=min(FORMER)), np.zeros((3, 10), int))
    former = message.replace("it with --model", "tests/golden/speech-24khz-single")
    refused(decode_main(["tiny.codes", "a.wav"]), former)


# ---- damaged files --------------------------------------------------------------------------------------------------


SILENCE = "block {} is damaged (its checksum or a code is wrong); 1.3 s of silence instead"
SALVAGED: dict[str, tuple[list[int], int | None, bytes, list[str]]] = {  # damaged blocks, end, more; what is said
    "middle": ([2], None, b"", [SILENCE.format(3)]),
    "truncated": ([], 600, b"", ["truncated: its end is missing; the output ends 18.7 s early"]),
    "longer": ([], None, b"more", ["bytes follow the last block; they are left out"]),
    "both": ([0], -1, b"", [SILENCE.format(1), "truncated: its end is missing; the output ends 0.8 s early"]),
}


@pytest.mark.parametrize("case", SALVAGED)
def test_salvage(run: Run, encoded: Path, stderr: Said, case: str) -> None:
    """Intact blocks are decoded as ever, the time of damaged ones passes in silence, a missing end is left out."""
    assert run("decode", encoded, "whole.wav") == 0
    blocks, end, more, lines = SALVAGED[case]
    data, header = encoded.read_bytes(), container.read(encoded)[0]
    for index in blocks:
        num_bytes = BLOCK_FRAMES * header.num_quantizers * header.bits_per_code // 8 + 4
        data = flipped(data, len(container.pack_header(header)) + index * num_bytes + 20)
    encoded.write_bytes(data[:end] + more)
    assert run("decode", encoded, "out.wav") == 1
    advice = f"{lines[0].partition(';')[0]}; codec-decode --salvage decodes the intact blocks"
    assert stderr() == f"codec-decode: error: in.codes: {advice}\n" and not Path("out.wav").exists()
    assert run("decode", encoded, "out.wav", "--salvage") == 0
    assert stderr().splitlines() == [f"codec-decode: in.codes: {line}" for line in lines]
    whole, saved = soundfile.read("whole.wav")[0], soundfile.read("out.wav")[0]
    size = BLOCK_FRAMES * HOP
    assert len(saved) == {"truncated": size, "both": 15 * size}.get(case, len(whole))
    expected = whole[: len(saved)]
    for index in blocks:
        expected[index * size : (index + 1) * size] = 0
    edges = [len(saved), *(edge * size for index in blocks for edge in (index, index + 1))]
    near = [abs(np.flatnonzero(saved != expected) - edge) <= 20 * HOP for edge in edges]
    assert np.any(near, axis=0).all()  # only sound that takes a lost block as its context may differ


# ---- nothing is lost ------------------------------------------------------------------------------------------------


def test_a_full_disk(run: Run, encoded: Path, refused: Refused) -> None:
    Path("out.wav").write_text("mine")
    for command, source, target in (("encode", "in.wav", "out.codes"), ("decode", "in.codes", "out.wav")):
        with full_disk(5000):
            refused(run(command, source, target, "--force"), f"codec-{command}: error: {target}")
    assert names() == ["in.codes", "in.wav", "out.wav"] and Path("out.wav").read_text() == "mine"


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Whoever runs in the background ignores ctrl-C."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_interrupt_changes_nothing(one_line: Said) -> None:
    """On the way out; the next command can be interrupted again."""
    for _ in range(2):
        assert run_command("x", lambda: signal.raise_signal(signal.SIGINT) or 0) == 130
        signal.raise_signal(signal.SIGINT)
        assert one_line() == "x: interrupted; nothing half-written is left\n"


def import_a_module() -> None:
    """Extension modules turn an interrupt into an ImportError, as if they were broken."""
    code = "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError"
    Path("torn.py").write_text(f"import signal\n{code}")
    importlib.import_module("torn")


def read_a_file() -> None:
    """It neither is lost in libsndfile, which reads from Python, nor makes it believe that the file ends."""
    sent: list[None] = []

    class File(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if not sent:
                sent.append(signal.raise_signal(signal.SIGINT))
            return super().readinto(buffer)

    soundfile.write("a.flac", np.zeros(800), RATE)
    assert len(soundfile.read(File(Path("a.flac").read_bytes()))[0]) == 800


@pytest.mark.parametrize("work", [import_a_module, read_a_file])
def test_an_interrupt_is_not_lost(work: Callable[[], None], one_line: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    start = time.monotonic()
    assert run_command("x", lambda: work() or time.sleep(5) or 0) == 130 and time.monotonic() - start < 5
    assert one_line() == "x: interrupted; nothing half-written is left\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(run: Run, encoded: Path, one_line: Said, number: int) -> None:
    Path("in.wav").write_text("mine")

    def interrupted(*_: object) -> None:
        assert len(names()) == 3, "there is a temporary file"
        signal.raise_signal(number)

    with patch("codec.audio.AudioWriter.write", interrupted):
        assert run("decode", "--force", encoded, "in.wav") == 130
    assert one_line() == "codec-decode: interrupted; nothing half-written is left\n"
    assert names() == ["in.codes", "in.wav"] and Path("in.wav").read_text() == "mine"


# ---- streams --------------------------------------------------------------------------------------------------------


def shell(command: list[str], redirections: str) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {' '.join(map(shlex.quote, command))} {redirections}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_a_closed_stderr_leaves_the_data_alone(tiny_model_folder: Path) -> None:
    """Nothing is said, least of all into the data."""
    soundfile.write("stereo.wav", np.zeros((100, 2)), RATE)
    encode = process("encode", "--model", tiny_model_folder)
    assert shell([*encode, "stereo.wav", "-"], "2>&- > a.codes").returncode == 0
    assert container.read("a.codes")[0].num_samples == 100


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_or_closed_stdout(header: Header) -> None:
    container.write("a.codes", header, np.zeros((3, 10), int))
    done = shell(process("info", "a.codes"), "> /dev/full")
    assert (done.returncode, done.stderr) == (1, "codec-info: error: No space left on device\n")
    done = shell(process("info", "a.codes"), "| true")
    assert (done.returncode, done.stderr) == (1, "")
    _reader, writer = os.pipe()
    os.set_blocking(writer, False)  # what a pipe takes a part of is not all written
    many, raw = process("info", *["a.codes"] * 400), os.environ | {"PYTHONUNBUFFERED": "1"}
    full = subprocess.run(many, stdout=writer, stderr=subprocess.PIPE, env=raw)
    assert full.returncode == 1 and b"without blocking" in full.stderr
