"""From pipe to pipe while the input goes on: what comes out before the end, and that it is what the whole gives."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
from loading import Refused, Said, encoded
from shell import RATE, Run, Samples, process

from codec import Codec, container
from codec.cli.backends import BACKENDS
from codec.container import Reader, Writer

Piped = Callable[..., tuple[int, bytes]]


class _Pipe(io.BytesIO):
    """Stands for stdin or stdout; as a pipe, it gives at most 1000 bytes at once."""

    def seekable(self) -> bool:
        return False

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(min(size or 0, 1000))


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, run: Run) -> Piped:
    """``piped("encode", data)`` gives the exit code and the stdout of ``codec-encode - -``."""

    def call(command: str, data: bytes, *options: object) -> tuple[int, bytes]:
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(_Pipe(data)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
        return run(command, "-", "-", *options), out.getvalue()

    return call


def unknown_length(data: bytes, size: bytes = b"\xff\xff\xff\xff") -> bytes:
    """A WAV file as it is written to a pipe."""
    at = data.index(b"data") + 4
    return data[:4] + size + data[8:at] + size + data[at + 4 :]


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "backend"),
    [
        *((RATE, 1, "PCM_16", backend) for backend in BACKENDS),
        *((44100, 2, "PCM_24", "torch"), (8000, 1, "FLOAT", "torch"), (48000, 3, "PCM_U8", "torch")),
        (RATE, 1, "DOUBLE", "torch"),
    ],
)
def test_codes_are_those_of_the_file(
    run: Run, sound: Samples, piped: Piped, rate: int, channels: int, subtype: str, backend: str
) -> None:
    samples, options = sound[: 30_001 * channels].reshape(-1, channels), ("--backend", backend)
    data = encoded(samples, rate, subtype=subtype)
    Path("in.wav").write_bytes(data)
    assert run("encode", "in.wav", "file.codes", "--no-normalize", *options) == 0
    header, codes = container.read("file.codes")
    sizes = (b"\xff\xff\xff\xff", bytes(4), b"\0\xff\xff\x7f")
    for stream in (data, *(unknown_length(data, size) for size in sizes)):
        code, out = piped("encode", stream, *options)
        again, live = container.loads(out)
        assert code == 0 and again == header
        np.testing.assert_array_equal(live, codes)
        assert len(list(Reader(io.BytesIO(out)).blocks())) > 4


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_no_plain_wav_is_read_as_a_whole(run: Run, sound: Samples, piped: Piped, wide: bool) -> None:
    data = bytearray(encoded(sound[:RATE], RATE, **({"subtype": "PCM_32"} if wide else {"form": "FLAC"})))
    if wide:
        data[34] = 24  # bits of a sample, which takes four bytes
    Path("in").write_bytes(data)
    Path("-").write_text("a file with this name is not meant")
    assert run("encode", "in", "file.codes") == run("decode", "file.codes", "file.wav") == 0
    _, codes = piped("encode", bytes(data))
    assert codes == Path("file.codes").read_bytes()
    assert piped("decode", codes) == (0, Path("file.wav").read_bytes())


def test_raw_samples(run: Run, sound: Samples, piped: Piped, one_line: Said, refused: Refused) -> None:
    data = encoded(sound[:20_000])
    raw = data[data.index(b"data") + 8 :]
    code, out = piped("encode", raw, "--raw", RATE)
    assert piped("encode", raw + b"x", "--raw", RATE) == (0, out)
    assert (code, out) == piped("encode", data) and code == 0
    assert (code, out) == piped("encode", data + data) and "40044 bytes that follow its" in one_line()
    code, with_head = piped("decode", out)
    assert code == 0 and piped("decode", out, "--raw") == (0, with_head[44:]) and len(with_head) == 44 + len(raw)
    for bad in (["a.wav", "b.codes", "--raw", 8000], ["-", "b.codes", "--raw", 0]):
        assert run("encode", *bad) == 2
        assert "--raw goes with - -" in one_line()
    assert piped("encode", raw, "--raw", RATE, "--refine-steps", 4)[0] == 2
    assert "--refine-steps is for files" in one_line()
    refused(piped("encode", raw, "--raw", 0)[0], "stdin: original_sample_rate must be from 1000")


@pytest.mark.parametrize(("rate", "backend"), [(RATE, "torch"), (RATE, "onnx"), (44100, "torch")])
def test_audio_is_that_of_the_file(run: Run, sound: Samples, piped: Piped, rate: int, backend: str) -> None:
    """Also from a file whose length stands at its end."""
    code, coded = piped("encode", encoded(sound[:30_001], rate))
    Path("live.codes").write_bytes(coded)
    container.write("whole.codes", *container.loads(coded))
    assert run("decode", "whole.codes", "whole.wav") == run("decode", "live.codes", "file.wav") == code == 0
    assert Path("whole.wav").read_bytes() == Path("file.wav").read_bytes()
    assert run("decode", "live.codes", "-o", ".", "--skip-existing") == run("decode", "live.codes", "-o", ".") - 1 == 0
    code, out = piped("decode", coded, "--backend", backend)
    Path("live.wav").write_bytes(out)
    assert code == 0 and run("encode", "live.wav", "again.codes") == 0  # its unknown length is understood
    expected, decoded = soundfile.read("whole.wav")[0], np.frombuffer(out[44:], "<i2") / 32768
    assert len(decoded) == len(expected) == 30_001
    assert np.abs(decoded - expected).max() <= 1.1 / 32768


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(np.zeros(9000, np.float32))[:-100], "stdin is damaged: only 8,950 of 9,000 samples can be read"),
        (encoded(np.zeros(0, np.float32)), "stdin holds no samples"),
        (encoded(np.full(9000, np.nan, np.float32), subtype="FLOAT"), "stdin: waveform holds NaN"),
        (b"RIFF", "stdin is not audio that libsndfile reads"),
        (b"", "stdin is empty"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_the_input(piped: Piped, refused: Refused, data: bytes, message: str) -> None:
    """One line; and what went out has no end, so that whoever reads it knows."""
    code, out = piped("encode", data)
    refused(code, message)
    said = {True: "truncated: its end is missing", False: "not a .codes file" if data else "the file is empty"}
    refused(piped("decode", out or data)[0], f"stdin: {said[bool(out)]}")


def test_a_stream_whose_end_is_missing_is_salvaged(sound: Samples, piped: Piped, stderr: Said) -> None:
    _, coded = piped("encode", encoded(sound[:RATE], RATE // 2))
    _, whole = piped("decode", coded)
    code, out = piped("decode", coded[:-50], "--salvage")
    assert code == 0 and "truncated: its end is missing; the output ends there" in stderr()
    assert out[: len(out) // 2] == whole[: len(out) // 2]


# ---- processes ------------------------------------------------------------------------------------------------------


def start(command: str, model: Path, *options: str, **streams: IO[bytes] | int) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(process(command, "-", "-", "--model", model, *options), **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_sound_comes_out_before_the_input_ends(sound: Samples, tiny_model_folder: Path, backend: str) -> None:
    data, options = unknown_length(encoded(sound[:RATE])), ("--backend", backend)
    encoder = start("encode", tiny_model_folder, *options)
    with encoder, start("decode", tiny_model_folder, *options, stdin=encoder.stdout) as decoder:
        encoder.stdin.write(data[: 44 + RATE])  # half a second
        encoder.stdin.flush()
        first = decoder.stdout.read(44 + 2 * 4000)  # a quarter of a second of sound; the rest has not been written
        encoder.stdin.write(data[44 + RATE :])
        encoder.stdin.close()
        assert len(first) == 44 + 2 * 4000 and len(first + decoder.stdout.read()) == len(data)
        assert (encoder.wait(), decoder.wait()) == (0, 0)
        assert encoder.stderr.read() == decoder.stderr.read() == b""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_stream_is_ended(sound: Samples, tiny_model_folder: Path) -> None:
    data = unknown_length(encoded(sound[:RATE]))
    with start("encode", tiny_model_folder) as encoder:
        encoder.stdin.write(data)
        encoder.stdin.flush()
        reader = Reader(encoder.stdout)
        blocks = reader.blocks()
        codes = [next(blocks), next(blocks)]
        encoder.send_signal(signal.SIGINT)
        codes += blocks
        assert reader.header.num_samples and reader.header.num_samples <= RATE
        assert sum(block.shape[1] for block in codes if isinstance(block, np.ndarray)) == reader.header.num_frames
        assert encoder.wait() == 130
        assert encoder.stderr.read() == b"codec-encode: interrupted; what came until then is encoded\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_consumer_that_goes_ends_it_quietly(sound: Samples, tiny_model_folder: Path, command: str) -> None:
    data, head = unknown_length(encoded(sound)), 44
    if command == "decode":
        stream = io.BytesIO()
        writer = Writer(stream, Codec.from_pretrained(tiny_model_folder).header(None, RATE))
        head = stream.tell()
        writer.write(np.zeros((3, 2000), int))
        data = stream.getvalue()
    Path("begin").write_bytes(data)
    Path("more").write_bytes(data[head:])
    endless = subprocess.Popen(["bash", "-c", "cat begin; while cat more; do :; done"], stdout=subprocess.PIPE)
    with endless, start(command, tiny_model_folder, stdin=endless.stdout) as child:
        endless.stdout.close()  # the child alone holds it
        assert child.stdout.read(100)
        child.stdout.close()
        assert (child.wait(), child.stderr.read()) == (1, b"")
