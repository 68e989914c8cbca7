"""The commands, as a user meets them: files in and out, pipes, exit codes, and messages instead of tracebacks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec import Codec, container
from codec.cli.commands import decode_main, encode_main, info_main
from codec.container import BLOCK_FRAMES, Header

Samples = NDArray[np.float32]
Run = Callable[..., int]

HOP, RATE = 80, 16000  # of the tiny model
LENGTHS = [(1, 16000, 1), (80, 16000, 1), (81, 16000, 1), (40_959, 16000, 1), (3331, 8000, 1), (7, 11025, 1)]
LENGTHS += [(1, 44100, 2), (44_101, 44100, 2), (1, 48000, 1), (100_003, 96000, 3)]
MAINS = {"encode": encode_main, "decode": decode_main, "info": info_main}


@pytest.fixture
def run(tiny_model_folder: Path) -> Run:
    """``run("encode", "in.wav", "out.codes")`` calls the command with the tiny model and returns its exit code."""

    def call(command: str, *args: object) -> int:
        model = [] if command == "info" or "--model" in args else ["--model", tiny_model_folder]
        try:
            return MAINS[command]([str(arg) for arg in (*model, *args)])
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            return exit.code

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def sound() -> Samples:
    """Twenty seconds at 16 kHz: four blocks of a file."""
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(20 * RATE)).astype(np.float32)


def process(command: str, *args: object) -> list[str]:
    code = f"from codec.cli.commands import {command}_main as main; raise SystemExit(main())"
    return [sys.executable, "-c", code, *map(str, args)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line and no traceback."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


# ---- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "rate", "channels"), LENGTHS)
def test_exactly_as_many_samples(folder: Path, run: Run, length: int, rate: int, channels: int) -> None:
    noise = np.random.default_rng(length).uniform(-0.3, 0.3, (length, channels))
    soundfile.write("in.wav", noise, rate)
    assert run("encode", "in.wav", "out.codes") == 0
    assert run("decode", "out.codes", "out.wav") == 0
    info = soundfile.info("out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (length, rate, 1, "PCM_16")
    assert run("decode", "out.codes", "native.flac", "--native-rate") == 0
    native = soundfile.info("native.flac")
    assert (native.frames, native.samplerate) == (-(-length * RATE // rate), RATE)


def test_speech_equals_what_the_library_gives(
    folder: Path, run: Run, speech_path: Path, tiny_model_folder: Path
) -> None:
    import torch

    assert run("encode", speech_path, "out.codes") == 0
    assert run("decode", "out.codes", "out.wav", "--native-rate") == 0
    samples, rate = soundfile.read(speech_path, dtype="float32")
    codec = Codec.from_pretrained(tiny_model_folder)
    codes = codec.encode(torch.from_numpy(samples), rate)
    header, stored = container.read("out.codes")
    np.testing.assert_array_equal(stored, codes[0].numpy())
    assert header.model == "tiny" and codec.fingerprint.startswith(header.fingerprint)
    decoded, _ = soundfile.read("out.wav", dtype="float32")
    expected = codec.decode(codes)[0, 0].numpy()[: len(decoded)]
    assert np.abs(decoded - np.clip(expected, -1, 1)).max() <= 1 / 32768


def test_blocks_of_a_long_file_leave_no_seam(folder: Path, run: Run, sound: Samples, tiny_model_folder: Path) -> None:
    import torch

    soundfile.write("in.wav", sound, RATE, subtype="FLOAT")
    assert run("encode", "in.wav", "out.codes") == 0
    codec = Codec.from_pretrained(tiny_model_folder)
    padded = torch.from_numpy(sound)[None, None]
    np.testing.assert_array_equal(
        container.read("out.codes")[1], codec.quantizer(codec.encoder(padded)).codes[0].numpy()
    )


def test_mixed_down_is_said_once(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        soundfile.write(f"{name}.wav", np.zeros((100, 2)), RATE)
    assert run("encode", "a.wav", "b.wav", "-o", "out") == 0
    assert one_line(capsys) == "codec-encode: a.wav: 2 channels mixed down to one\n"


def test_samples_far_beyond_full_scale_are_refused(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """As 16-bit values stored as floats; a loud recording is not."""
    soundfile.write("loud.wav", np.full(12 * RATE, 3.0), RATE, subtype="FLOAT")
    assert run("encode", "loud.wav", "loud.codes") == 0
    assert capsys.readouterr().err == ""
    soundfile.write("wrong.wav", np.full(12 * RATE, 32767.0), RATE, subtype="FLOAT")
    assert run("encode", "wrong.wav", "wrong.codes") == 1
    assert "wrong.wav: waveform must be in [-1, 1], but reaches 32767; divide 16-bit values" in one_line(capsys)


def test_names_that_begin_with_a_dash(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("-x.wav", "-"):
        soundfile.write(folder / name, np.zeros(100), RATE, format="WAV")
    assert run("encode", "--", "-x.wav", "-x.codes") == 0
    assert run("encode", "./-", "dash.codes") == 0
    assert names(folder) == ["-", "-x.codes", "-x.wav", "dash.codes"]


@pytest.mark.parametrize("option", ["--model", "-o"])
def test_empty_option_values_are_refused(
    folder: Path, run: Run, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", "a.wav", "a.codes", option, "") == 2
    assert "must not be empty" in capsys.readouterr().err


def test_what_stands_beside_the_files_of_a_folder(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Links to folders are named, links to nothing fail, and neither is passed over in silence."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    soundfile.write(elsewhere / "z.wav", np.zeros(100), RATE)
    (folder / "in").mkdir()
    soundfile.write("in/a.wav", np.zeros(100), RATE)
    (folder / "in" / "folder").symlink_to(elsewhere)
    (folder / "in" / "b.wav").symlink_to("a.wav")
    assert run("encode", "in", "-o", "out") == 0
    assert "in: links to folders not followed: 1; give them by name" in one_line(capsys)
    assert names(folder / "out") == ["a.codes", "b.codes"]
    (folder / "in" / "lost.wav").symlink_to("nowhere.wav")
    assert run("encode", "in", "-o", "out", "--force") == 1
    assert "in/lost.wav: No such file" in capsys.readouterr().err


def test_outputs_through_links_and_onto_the_input(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(100), RATE)
    (folder / "real.codes").write_bytes(b"old")
    (folder / "link.codes").symlink_to("real.codes")
    assert run("encode", "in.wav", "link.codes", "--force") == 0
    assert (folder / "link.codes").is_symlink() and container.read("real.codes")[0].num_samples == 100
    (folder / "same.codes").write_bytes((folder / "in.wav").read_bytes())
    assert run("encode", "same.codes", "same.codes", "--force") == 1
    assert "same.codes is the input itself" in one_line(capsys)
    assert soundfile.info("same.codes").frames == 100


@pytest.mark.parametrize("name", ["t", "not"])
def test_messages_name_the_file_whatever_its_name(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / name).write_bytes(b"SVQC")
    assert run("decode", name, "out.wav") == 1
    assert one_line(capsys).startswith(f"codec-decode: error: {name}: ")


def test_closed_streams_leave_the_data_alone(folder: Path, tiny_model_folder: Path) -> None:
    """With stderr closed nothing is said, least of all into the data."""
    soundfile.write("stereo.wav", np.zeros((100, 2)), RATE)
    command = process("encode", "--model", tiny_model_folder, "stereo.wav")
    quoted = " ".join(f"'{part}'" for part in command)
    subprocess.run(["bash", "-c", f"{quoted} - 2>&- > a.codes"], check=True)
    assert container.read("a.codes")[0].num_samples == 100
    for source, target, redirection, name in (
        ("stereo.wav", "-", ">&-", "stdout"),
        ("-", "b.codes", "<&-", "stdin"),
    ):
        start = " ".join(f"'{part}'" for part in process("encode", "--model", tiny_model_folder, source, target))
        done = subprocess.run(["bash", "-c", f"{start} {redirection}"], capture_output=True, text=True)
        assert done.returncode == 2 and f"error: {name} is closed" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a name cannot be")
def test_names_that_are_no_text(folder: Path, tiny_model_folder: Path) -> None:
    name = b"caf\xe9"
    soundfile.write("plain.wav", np.zeros(100), RATE)
    os.rename(b"plain.wav", name + b".wav")
    for command, source, target in (("encode", b".wav", b".codes"), ("decode", b".codes", b".flac")):
        start = process(command, "--model", tiny_model_folder)
        done = subprocess.run([*start, name + source, name + target], capture_output=True)
        assert done.returncode == 0, done.stderr
    assert (name + b".flac") in os.listdir(b".")


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "opus", "WAV"])
def test_output_formats(folder: Path, run: Run, sound: Samples, suffix: str) -> None:
    soundfile.write("in.flac", sound[:RATE], RATE)
    assert run("encode", "in.flac", "out.codes") == 0
    assert run("decode", "out.codes", f"out.{suffix}") == 0
    assert soundfile.info(f"out.{suffix}").frames == RATE


def test_opus_has_not_all_rates(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(4410), 44100)
    assert run("encode", "in.wav", "out.codes") == 0
    assert run("decode", "out.codes", "out.opus") == 1
    assert "out.opus: Opus has no sample rate 44100 Hz; take .wav" in one_line(capsys)
    assert run("decode", "out.codes", "out.opus", "--native-rate") == 0
    assert names(folder) == ["in.wav", "out.codes", "out.opus"]


# ---- bitrates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "stages", "noted"),
    [
        (["--num-quantizers", 1], 1, False),
        (["--num-quantizers", 3], 3, False),
        (["--bitrate", 1], 1, False),
        (["--bitrate", 2.99], 2, True),
        (["--bitrate", 3], 3, False),
        (["--bitrate", 100], 3, True),
    ],
    ids=str,
)
def test_bitrates(
    folder: Path,
    run: Run,
    sound: Samples,
    capsys: pytest.CaptureFixture[str],
    option: list[object],
    stages: int,
    noted: bool,
) -> None:
    soundfile.write("in.wav", sound[:RATE], RATE)
    assert run("encode", "in.wav", "some.codes", *option) == 0
    assert ("using" in capsys.readouterr().err) == noted
    assert run("encode", "in.wav", "all.codes") == 0
    header, codes = container.read("some.codes")
    np.testing.assert_array_equal(codes, container.read("all.codes")[1][:stages])
    assert header.num_quantizers == stages
    assert run("decode", "some.codes", "a.wav") == 0
    capsys.readouterr()
    assert run("decode", "all.codes", "b.wav", *option) == 0
    assert capsys.readouterr().err.count("using") == noted
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_more_than_there_is(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(80), RATE)
    assert run("encode", "in.wav", "out.codes", "--num-quantizers", 4) == 2
    assert "--num-quantizers 4: there are only 3" in one_line(capsys)
    assert run("encode", "in.wav", "out.codes", "--bitrate", 0.9) == 2
    assert "--bitrate 0.9: the lowest is 1 kbit/s" in one_line(capsys)
    assert run("encode", "in.wav", "out.codes", "--num-quantizers", 2) == 0
    assert run("decode", "out.codes", "out.wav", "--num-quantizers", 3) == 1
    assert "out.codes: --num-quantizers 3: there are only 2" in one_line(capsys)
    assert names(folder) == ["in.wav", "out.codes"]


# ---- several files, folders -----------------------------------------------------------------------------------------


def test_a_folder_is_mirrored(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.wav", "deep/b.FLAC", "deep/er/c.ogg", ".hidden/d.wav", "._a.wav", "notes.txt", "v1.2.wav"):
        path = Path("speech") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt" or path.name.startswith("._"):
            path.write_text("no audio")
        else:
            soundfile.write(path, np.zeros(500), RATE)
    assert run("encode", "speech", "-o", "codes") == 0
    assert "speech: files of other kinds passed over: 1" in one_line(capsys)
    assert names(Path("codes")) == ["a.codes", "deep/b.codes", "deep/er/c.codes", "v1.2.codes"]
    assert run("decode", "codes", "-o", "again", "--format", "flac") == 0
    assert names(Path("again")) == ["a.flac", "deep/b.flac", "deep/er/c.flac", "v1.2.flac"]
    assert run("decode", "codes/a.codes", "codes/deep", "-o", "flat") == 0
    assert names(Path("flat")) == ["a.wav", "b.wav", "er/c.wav"]


def test_one_bad_file_does_not_stop_the_others(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.wav", "c.wav"):
        soundfile.write(name, np.zeros(500), RATE)
    Path("b.wav").write_text("no audio")
    assert run("encode", "a.wav", "b.wav", "c.wav", "-o", "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("codec-encode: error: b.wav is not audio") and said[1:] == [
        "codec-encode: 2 of 3 files done, 1 failed"
    ]
    assert names(Path("out")) == ["a.codes", "c.codes"]
    Path("out/a.codes").write_bytes(b"foreign")
    assert run("decode", "out", "-o", "again") == 1
    assert names(Path("again")) == ["c.wav"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "in.wav"], "give INPUT OUTPUT, or several inputs with -o DIR"),
        (["encode", "in.wav", "b.wav", "c.wav"], "give INPUT OUTPUT, or several inputs with -o DIR"),
        (["encode", "in.wav", "out.wav"], "OUTPUT must end in .codes"),
        (["encode", "in.wav", "sub/in.wav"], "OUTPUT must end in .codes"),
        (["encode", "sub", "out.codes"], "sub is a folder; give -o DIR"),
        (["encode", "in.wav", "dir.codes"], "dir.codes is a folder; give -o dir.codes"),
        (["encode", "in.wav", "sub/in.wav", "-o", "out"], "would both become out/in.codes; rename one"),
        (["encode", "in.wav", "in.wav", "-o", "out"], "would both become out/in.codes"),
        (["encode", "-", "-o", "out"], "stdin has no name"),
        (["encode", "dir.codes", "-o", "out"], "no audio file in dir.codes"),
        (["decode", "sub", "-o", "out"], "no .codes file in sub"),
        (["encode", "in.wav", "-o", "in.wav"], "-o in.wav is a file"),
        (["encode", "", "-o", "out"], "a path is empty"),
        (["encode", "in.wav", "out.codes", "--num-quantizers", 0], "--num-quantizers must be at least 1"),
        (["encode", "in.wav", "out.codes", "--bitrate", 0], "--bitrate must be positive"),
        (["encode", "in.wav", "out.codes", "--bitrate", "inf"], "--bitrate must be positive"),
        (["encode", "in.wav", "out.codes", "--bitrate", "nan"], "--bitrate must be positive"),
        (["decode", "a.codes", "-o", "out", "--format", "nonsense"], "--format nonsense: not written here; take wav"),
        (["decode", "a.codes", "-o", "out", "--format", "raw"], "--format raw: not written here; take wav"),
        (["decode", "a.codes", "a.flac", "--format", "flac"], "--format goes with -o"),
        (["decode", "a.codes", "a.raw"], "OUTPUT must end in an audio suffix"),
        (["info", "-"], "reads files, not stdin"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_usage(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], args: list[object], message: str
) -> None:
    Path("sub").mkdir()
    Path("dir.codes").mkdir()
    for name in ("in.wav", "sub/in.wav"):
        soundfile.write(name, np.zeros(80), RATE)
    before = names(folder)
    assert run(*args) == 2  # type: ignore[arg-type]
    assert message in [line for line in capsys.readouterr().err.splitlines() if "error" in line][-1]
    assert names(folder) == before


@pytest.mark.parametrize(
    "args",
    [[], ["a", "b", "--bitrate", "x"], ["a", "b", "--nonsense"], ["a", "b", "--bitrate=1", "--num-quantizers=1"]],
    ids=str,
)
def test_bad_options(args: list[str], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", *args) == 2 and run("decode", *args) == 2
    assert "usage: codec-encode [options] INPUT OUTPUT" in capsys.readouterr().err


# ---- existing files -------------------------------------------------------------------------------------------------


def test_existing_files_are_kept_without_force(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(80), RATE)
    assert run("encode", "in.wav", "good.codes") == 0
    for args in (
        ["encode", "in.wav", "out.codes"],
        ["encode", "in.wav", "-o", "."],
        ["decode", "good.codes", "out.wav"],
    ):
        target = Path({"-o": "in.codes"}.get(args[2], args[2]))
        target.write_text("mine")
        assert run(*args) == 1
        assert f"{target} exists; --force overwrites it" in one_line(capsys)
        assert target.read_text() == "mine"
        assert run(*args, "--force") == 0
        assert target.read_bytes() != b"mine"


def test_a_failure_harms_nothing_in_spite_of_force(folder: Path, run: Run, sound: Samples) -> None:
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "in.codes") == 0
    data = bytearray(Path("in.codes").read_bytes())
    data[-20] ^= 1
    Path("in.codes").write_bytes(data)
    Path("out.wav").write_text("mine")
    assert run("decode", "in.codes", "out.wav", "--force") == 1
    assert Path("out.wav").read_text() == "mine"
    sound = sound.copy()
    sound[-1] = np.nan
    soundfile.write("nan.wav", sound, RATE, subtype="FLOAT")
    assert run("encode", "nan.wav", "in.codes", "--force") == 1
    assert Path("in.codes").read_bytes() == data
    assert names(folder) == ["in.codes", "in.wav", "nan.wav", "out.wav"]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "text.wav", "x.codes"], "error: text.wav is not audio"),
        (["encode", "empty.wav", "x.codes"], "error: empty.wav is empty"),
        (["encode", "silent.wav", "x.codes"], "error: silent.wav holds no samples"),
        (["encode", "nan.wav", "x.codes"], "error: nan.wav holds NaN"),
        (
            ["encode", "slow.wav", "x.codes"],
            "error: slow.wav: original_sample_rate must be from 1000 to 768000, not 10",
        ),
        (["encode", "samples.raw", "x.codes"], "error: samples.raw: raw samples"),
        (["encode", "nowhere.wav", "x.codes"], "error: nowhere.wav: No such file or directory"),
        (["encode", "nowhere.wav", "-o", "x"], "error: nowhere.wav: No such file or directory"),
        (["encode", "in.wav", "text.wav/x.codes"], "error: text.wav/x.codes: Not a directory"),
        (["encode", "in.wav", "text.wav/deep/x.codes"], "Not a directory"),
        (["encode", "in.wav", "x" * 300 + ".codes"], "File name too long"),
        (["encode", "in.wav", "x.codes", "--model", "nonsense"], "error: no model 'nonsense': give a shipped name"),
        (["encode", "in.wav", "x.codes", "--model", "."], "error: . is not a model folder: it lacks config.json"),
        (["encode", "in.wav", "x.codes", "--device", "nonsense"], "error: device nonsense cannot be used here"),
        (["encode", "in.wav", "x.codes", "--device", "cuda:77"], "use --device cpu"),
        (["encode", "in.wav", "x.codes", "--device", "meta"], "error: device meta cannot be used here"),
        (["encode", "in.wav", "x.codes", "--device", ""], "error: device "),
        (["decode", "a.codes", "b.codes", "-o", "x", "--model", "nonsense"], "error: no model 'nonsense'"),
        (["decode", "empty.codes", "x.wav"], "error: empty.codes: the file is empty"),
        (["decode", "text.codes", "x.wav"], "error: text.codes: not a .codes file"),
        (
            ["decode", "truncated.codes", "x.wav"],
            "error: truncated.codes: truncated: 1 of 1 blocks are missing; no block is intact",
        ),
        (["decode", "truncated.codes", "x.wav", "--salvage"], "no block is intact"),
        (["decode", "absurd.codes", "x.wav"], "blocks are missing"),
        (["decode", "absurd.codes", "x.wav", "--salvage"], "no block is intact"),
        (["decode", "good.codes", "good.codes/x.wav"], "error: good.codes/x.wav: Not a directory"),
        (["info", "text.codes"], "error: text.codes: not a .codes file"),
        (["info", "nowhere"], "error: nowhere: no such file, model folder or shipped model (speech-24khz, "),
        (["info", "."], "error: . is not a model folder"),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else "",
)
def test_failures_are_one_line(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], args: list[str], message: str, tiny_model_folder: Path
) -> None:
    for name in ("text.wav", "text.codes"):
        Path(name).write_text("hello, world\n" * 100)
    for name in ("empty.wav", "empty.codes"):
        Path(name).touch()
    Path("samples.raw").write_bytes(bytes(2000))
    soundfile.write("in.wav", np.zeros(800), RATE)
    soundfile.write("silent.wav", np.zeros(0), RATE)
    soundfile.write("slow.wav", np.zeros(100), 10)
    soundfile.write("nan.wav", np.full(800, np.nan), RATE, subtype="FLOAT")
    header = Header("tiny", Codec.from_pretrained(tiny_model_folder).fingerprint[:32], RATE, RATE, 800, HOP, 3, 32)
    data = container.dumps(header, np.zeros((3, 10), int))
    Path("good.codes").write_bytes(data)
    Path("truncated.codes").write_bytes(data[:-3])
    absurd = Header("tiny", header.fingerprint, RATE, RATE, 2**60, HOP, 3, 32)
    Path("absurd.codes").write_bytes(container.pack_header(absurd) + bytes(100))
    before = names(folder)
    assert run(*args) == 1
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and said[-1].startswith(f"codec-{args[0]}: error: ")
    assert len(said) == 1, said
    assert names(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files")
def test_a_full_disk(folder: Path, run: Run, sound: Samples, capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "in.codes") == 0
    Path("out.wav").write_text("mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for args in (
        ["encode", "in.wav", "out.codes"],
        ["decode", "in.codes", "out.wav"],
        ["decode", "in.codes", "out.flac"],
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            assert run(*args, "--force") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert one_line(capsys).startswith(f"codec-{args[0]}: error: {args[2]}")
    assert names(folder) == ["in.codes", "in.wav", "out.wav"] and Path("out.wav").read_text() == "mine"


def test_another_model_is_refused(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], tiny_config: object, tiny_model_folder: Path
) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = Codec(tiny_config)  # type: ignore[arg-type]
    other.save_pretrained("other")
    soundfile.write("in.wav", np.zeros(800), RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    assert run("decode", "out.codes", "out.wav", "--model", "other") == 1
    said = one_line(capsys)
    assert other.fingerprint[:32] in said and Codec.from_pretrained(tiny_model_folder).fingerprint[:32] in said
    assert "'tiny'" in said and "'other'" in said
    assert decode_main(["out.codes", "out.wav"]) == 1
    assert "made with model 'tiny', which is not a shipped one; give it with --model" in one_line(capsys)
    assert not Path("out.wav").exists()


# ---- salvage --------------------------------------------------------------------------------------------------------


def test_salvage_keeps_the_time_of_a_damaged_block(
    folder: Path, run: Run, sound: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    assert run("decode", "out.codes", "whole.wav") == 0
    header, _ = container.read("out.codes")
    assert header.num_blocks == 4
    data = bytearray(Path("out.codes").read_bytes())
    data[-(header.bytes_in_block(3) + 4 + 100)] ^= 1  # near the end of the third block
    Path("out.codes").write_bytes(data)
    assert run("decode", "out.codes", "out.wav") == 1
    assert "out.codes: block 3 of 4 is damaged (its checksum is wrong); --salvage decodes" in one_line(capsys)
    assert not Path("out.wav").exists()
    assert run("decode", "out.codes", "out.wav", "--salvage") == 0
    assert one_line(capsys).endswith("block 3 of 4 is damaged (its checksum is wrong); 5.1 s of silence instead\n")
    whole, _ = soundfile.read("whole.wav")
    saved, _ = soundfile.read("out.wav")
    assert len(saved) == len(sound)
    start, stop, near = 2 * BLOCK_FRAMES * HOP, 3 * BLOCK_FRAMES * HOP, 20 * HOP
    assert not saved[start:stop].any()
    np.testing.assert_array_equal(saved[: start - near], whole[: start - near])
    np.testing.assert_array_equal(saved[stop + near :], whole[stop + near :])
    assert whole[start:stop].any()


def test_salvage_of_a_truncated_file_ends_early(
    folder: Path, run: Run, sound: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    data = Path("out.codes").read_bytes()
    Path("out.codes").write_bytes(data[: len(data) * 2 // 5])
    assert run("decode", "out.codes", "out.wav") == 1
    assert "truncated: 3 of 4 blocks are missing; --salvage" in one_line(capsys)
    assert run("decode", "out.codes", "out.wav", "--salvage") == 0
    assert one_line(capsys).endswith("3 of 4 blocks are missing; the output ends 14.9 s early\n")
    assert soundfile.info("out.wav").frames == BLOCK_FRAMES * HOP


@pytest.mark.parametrize("option", [[], ["--salvage"]], ids=str)
def test_salvage_is_not_advised_where_nothing_is_intact(
    folder: Path, run: Run, sound: Samples, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    data, header = bytearray(Path("out.codes").read_bytes()), container.read("out.codes")[0]
    start = len(container.pack_header(header))
    data[start:] = bytes(value ^ 1 for value in data[start:])
    Path("out.codes").write_bytes(data)
    assert run("decode", "out.codes", "out.wav", *option) == 1
    assert "block 1 of 4 is damaged (its checksum is wrong); no block is intact" in one_line(capsys)
    assert names(folder) == ["in.wav", "out.codes"]


def test_salvage_is_advised_for_a_later_block(
    folder: Path, run: Run, sound: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("in.wav", sound, RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    data, header = bytearray(Path("out.codes").read_bytes()), container.read("out.codes")[0]
    data[len(container.pack_header(header)) + 20] ^= 1
    Path("out.codes").write_bytes(data)
    assert run("decode", "out.codes", "out.wav") == 1
    assert "block 1 of 4 is damaged (its checksum is wrong); --salvage decodes" in one_line(capsys)
    assert run("decode", "out.codes", "out.wav", "--salvage") == 0
    assert one_line(capsys).endswith("5.1 s of silence instead\n")


def test_salvage_leaves_bytes_at_the_end_out(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(800), RATE)
    assert run("encode", "in.wav", "out.codes") == 0
    with open("out.codes", "ab") as file:
        file.write(b"more")
    assert run("decode", "out.codes", "out.wav") == 1
    assert "bytes follow the last block" in one_line(capsys)
    assert run("decode", "out.codes", "out.wav", "--salvage") == 0
    assert soundfile.info("out.wav").frames == 800


# ---- information ----------------------------------------------------------------------------------------------------


def test_info(folder: Path, run: Run, capsys: pytest.CaptureFixture[str], tiny_model_folder: Path) -> None:
    soundfile.write("in.wav", np.zeros(22050), 44100)
    assert run("encode", "in.wav", "out.codes", "--num-quantizers", 2) == 0
    assert run("info", "--json", "out.codes", tiny_model_folder) == 0
    file, model = map(json.loads, capsys.readouterr().out.splitlines())
    assert file["fingerprint_prefix"] == model["fingerprint"][:32] and file["model"] == model["model"] == "tiny"
    expected = {"duration_s": 0.5, "num_samples": 22050, "original_rate_hz": 44100, "model_rate_hz": RATE}
    expected |= {"frames": 100, "num_quantizers": 2, "codebook_size": 32, "bitrate_kbps": 2, "checksums": "correct"}
    assert expected.items() <= file.items() and file["bytes"] == Path("out.codes").stat().st_size
    assert model["bitrate_kbps"] == "1 to 3" and model["frame_rate_hz"] == 200
    data = bytearray(Path("out.codes").read_bytes())
    data[-1] ^= 1
    Path("bad.codes").write_bytes(data)
    assert run("info", "bad.codes", "nowhere", "out.codes") == 1
    said = capsys.readouterr()
    assert "WRONG" in said.out and "block 1 of 1 is damaged" in said.out and "correct" in said.out
    assert said.err.startswith("codec-info: error: nowhere: no such file")


# ---- processes: pipes, signals, imports -----------------------------------------------------------------------------


def test_pipes(
    folder: Path, run: Run, sound: Samples, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write("in.flac", sound[:RATE], RATE)
    Path("-").write_text("a file with this name is not meant")
    assert run("encode", "in.flac", "file.codes") == 0
    assert run("decode", "file.codes", "file.wav") == 0
    command = process("encode", "-", "-", "--model", tiny_model_folder)
    done = subprocess.run(command, input=Path("in.flac").read_bytes(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == Path("file.codes").read_bytes()
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(done.stdout)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    assert run("decode", "-", "-") == 0
    assert out.getvalue() == Path("file.wav").read_bytes()


@pytest.mark.parametrize(
    ("command", "message"),
    [("encode", "error: stdin is not audio that libsndfile reads"), ("decode", "error: stdin: not a .codes file")],
)
def test_nonsense_from_a_pipe(
    folder: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    message: str,
) -> None:
    for content, expected in ((b"hello, world" * 9, message), (b"", "empty")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run(command, "-", "out.wav" if command == "decode" else "out.codes") == 1
        assert expected in one_line(capsys)
    assert names(folder) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_read_as_stdin_is(folder: Path, run: Run, sound: Samples) -> None:
    soundfile.write("in.wav", sound[:RATE], RATE)
    os.mkfifo("pipe.wav")
    writer = threading.Thread(target=lambda: Path("pipe.wav").write_bytes(Path("in.wav").read_bytes()))
    writer.start()
    assert run("encode", "pipe.wav", "pipe.codes") == 0
    writer.join()
    assert run("encode", "in.wav", "in.codes") == 0
    assert Path("pipe.codes").read_bytes() == Path("in.codes").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_or_closed_stdout(folder: Path) -> None:
    header = Header("tiny", "0" * 32, RATE, RATE, 800, HOP, 1, 32)
    container.write("a.codes", header, np.zeros((1, 10), int))
    command = process("info", "a.codes")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, done.stderr) == (1, "codec-info: error: No space left on device\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, env=env)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("command", "number"), [("encode", signal.SIGINT), ("decode", signal.SIGTERM)])
def test_an_interrupted_run_leaves_nothing(
    folder: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tiny_model_folder: Path,
    command: str,
    number: signal.Signals,
) -> None:
    hour = 3600 * RATE
    source, target = ("in.wav", "out.codes") if command == "encode" else ("in.codes", "out.wav")
    if command == "encode":
        soundfile.write(source, np.zeros(RATE, np.int16), RATE)
        data = bytearray(Path(source).read_bytes())
        data[40:44] = b"\xff" * 4  # as many samples as there are
        Path(source).write_bytes(data)
        os.truncate(source, 2 * hour)
    else:
        fingerprint = Codec.from_pretrained(tiny_model_folder).fingerprint[:32]
        header = Header("tiny", fingerprint, RATE, RATE, hour, HOP, 3, 32)
        container.write(source, header, np.zeros((3, header.num_frames), np.int64))
    Path(target).write_text("mine")
    finished = threading.Event()

    def interrupt() -> None:
        while len(names(folder)) < 3:  # until there is a temporary file
            if finished.wait(0.02):
                return
        finished.wait(0.3)
        os.kill(os.getpid(), number)
        while not finished.wait(5):  # an exception raised inside a callback of the garbage collector is lost
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert run(command, "--force", source, target) == 130
    finally:
        finished.set()
        thread.join()
    assert one_line(capsys) == f"codec-{command}: interrupted; nothing half-written is left\n"
    assert names(folder) == sorted([source, target]) and Path(target).read_text() == "mine"


@pytest.mark.parametrize("command", MAINS)
def test_help_and_version(command: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    said = capsys.readouterr().out
    assert (
        f"usage: codec-{command}" in said and f"examples:\n  codec-{command} " in said and "exit codes: 0 done" in said
    )
    assert max(map(len, said.splitlines())) < 120
    assert run(command, "--version") == 0
    assert capsys.readouterr().out == f"codec-{command} {__import__('codec').__version__}\n"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from codec.cli.commands import encode_main, decode_main\n"
        "for main in (encode_main, decode_main):\n"
        "    try: main(['--help'])\n"
        "    except SystemExit: pass\n"
        "raise SystemExit(not {'torch', 'numpy', 'soundfile'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_options_may_stand_between_input_and_output(folder: Path, tiny_model_folder: Path) -> None:
    soundfile.write(folder / "between.wav", np.zeros(800), 16000)
    paths = str(folder / "between.wav"), str(folder / "between.codes")
    assert encode_main([paths[0], "--num-quantizers", "1", paths[1], "--model", str(tiny_model_folder)]) == 0
    assert (folder / "between.codes").is_file()
