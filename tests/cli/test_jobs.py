"""Which file goes where: folders, several files, existing outputs, links."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loading import Refused, Said, wait_for
from shell import RATE, Run, Samples, names, process, write

from codec.errors import CodecError
from codec.workers import spread


def test_a_folder_is_mirrored(run: Run, stderr: Said) -> None:
    write(*(f"speech/{name}" for name in ("a.wav", "deep/b.FLAC", "deep/er/c.ogg", ".hidden/d.wav", "v1.2.wav")))
    for name in ("notes.txt", "._a.wav"):
        Path("speech", name).write_text("no audio")
    assert run("encode", "speech", "-o", "codes") == 0
    passed, done = stderr().splitlines()
    assert passed == "codec-encode: speech: other files and links to folders passed over: 1" and "done: 4" in done
    assert names("codes") == ["a.codes", "deep/b.codes", "deep/er/c.codes", "v1.2.codes"]
    assert run("decode", "codes", "-o", "again", "--format", "flac") == 0
    assert names("again") == ["a.flac", "deep/b.flac", "deep/er/c.flac", "v1.2.flac"]
    assert run("decode", "codes/a.codes", "codes/deep", "-o", "flat") == 0
    assert names("flat") == ["a.wav", "b.wav", "er/c.wav"]


def test_what_fails_is_named_and_stops_no_other(run: Run, stderr: Said) -> None:
    write("in/a.wav", "in/c.wav")
    Path("in/d.wav").write_text("no audio")
    assert run("encode", "in", "in/../in/a.wav", "-o", "out") == 1  # a.wav twice is no clash
    error, counts = stderr().splitlines()
    assert error.startswith("codec-encode: error: in/d.wav is not audio")
    assert counts == "codec-encode: files done: 2, failed: 1" and names("out") == ["a.codes", "c.codes"]
    Path("out/a.codes").write_bytes(b"foreign")
    assert run("decode", "out", "-o", "again") == 1
    assert names("again") == ["c.wav"]


def test_two_inputs_for_one_output(run: Run, one_line: Said) -> None:
    write("in/a.wav", "in/a.flac")
    assert run("encode", "in", "-o", "out") == 2
    assert "in/a.flac and in/a.wav would both become out/a.codes; rename one of them" in one_line()
    assert not Path("out").exists()
    for name in ("talk.2024", "talk.2025"):
        Path(name).write_bytes(Path("in/a.wav").read_bytes())
    assert run("encode", "talk.2024", "talk.2025", "-o", "dated") == 0
    assert names("dated") == ["talk.2024.codes", "talk.2025.codes"]


def test_a_stopped_run_goes_on(run: Run, sound: Samples, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there counts if it is what the same command makes; anything else is an error, and stays."""
    write(*(f"in/{name}.wav" for name in "abcd"), samples=sound[: RATE // 2])
    for command, source, target in (("encode", "in", "codes"), ("decode", "codes", "out")):
        assert run(command, source, "-o", target) == 0
        content = {path: path.read_bytes() for path in sorted(Path(target).iterdir())}
        done, other, damaged, missing = content
        if command == "encode":
            assert run("encode", "in/b.wav", other, "--num-quantizers", 2, "--force") == 0
        else:
            write(str(other), samples=sound[: RATE // 4])
        before = other.read_bytes()
        damaged.write_bytes(content[damaged][:-40] if command == "encode" else b"no audio")
        missing.unlink()
        capsys.readouterr()
        again = [command, source, "-o", target, "--skip-existing"]
        assert run(*again) == 1
        *errors, counts = capsys.readouterr().err.splitlines()
        assert counts == f"codec-{command}: files done: 1, there already: 1, failed: 2"
        say = "codec-{}: error: {} exists but is damaged, or was made otherwise (input or settings); --force overwrites it"
        assert errors == [say.format(command, target) for target in (other, damaged)]
        assert other.read_bytes() == before and missing.read_bytes() == content[missing]
        stamp = done.stat().st_mtime_ns
        assert run(*again, "--force") == 0 and done.stat().st_mtime_ns == stamp
        assert {path: path.read_bytes() for path in content} == content
        assert run(*again) == 0 and "files done: 0, there already: 4" in capsys.readouterr().err
    write("in/a.wav", samples=sound[: RATE // 2] / 128)  # the same codes at another level
    for level in ([], ["--no-normalize"]):
        assert run("encode", "in/a.wav", "-o", "codes", "--skip-existing", *level) == 1
    assert run("encode", "in/b.wav", "-o", "codes", "--force", "--no-normalize") == 0
    write("in/b.wav", samples=sound[: RATE // 4])  # of another length
    assert run("encode", "in/b.wav", "-o", "codes", "--skip-existing", "--no-normalize") == 1


@pytest.mark.slow
def test_several_processes(run: Run, sound: Samples, stderr: Said) -> None:
    """Files, lines and exit code are what one process gives, and so is an error that ends all."""
    write(*(f"in/{name}.wav" for name in "abcd"), samples=np.stack(2 * [sound[: RATE // 2]], axis=1))
    for name in ("in/e.wav", "in/f.wav"):
        Path(name).write_text("no audio")
    said, content = [], []
    for number in (1, 2):
        codes = run("encode", "in", "-o", "codes", "--bitrate", 2.5, "--force", "--workers", number)
        again = run("encode", "in", "-o", "codes", "--bitrate", 2.5, "--skip-existing", "--workers", number)
        audio = run("decode", "codes", "-o", "out", "--force", "--workers", number)
        assert (codes, again, audio) == (1, 1, 0)
        said.append(stderr())
        content.append([Path(folder, name).read_bytes() for folder in ("codes", "out") for name in names(folder)])
    assert said[0] == said[1] and "there already: 4, failed: 2" in said[0] and content[0] == content[1]
    for option in (["--bitrate", 0.1], ["--device", "nonsense"]):
        assert run("encode", "in", "-o", "codes", "--workers", 2, *option) == 1
        assert stderr().count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_all_processes(tiny_model_folder: Path) -> None:
    write("in/a.wav", "in/b.wav", samples=np.zeros(3600 * RATE, np.int16))
    command = process("encode", "in", "-o", "out", "--workers", 2, "--model", tiny_model_folder)
    main = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(names("out")) == 2, main)
    os.killpg(main.pid, signal.SIGINT)
    said = main.communicate(timeout=60)[1]  # stderr ends with the last of them
    assert said == "codec-encode: interrupted; nothing half-written is left; --skip-existing goes on\n"
    assert main.returncode == 130 and names("out") == []


def test_a_process_that_is_killed() -> None:
    with pytest.raises(CodecError, match="a worker process died"), spread(os._exit, [1, 2], 2) as results:
        next(results)


def test_links(run: Run, stderr: Said) -> None:
    """To folders they are named, to nothing they fail, to files they are what they lead to, to others passed over."""
    write("in/a.wav", "elsewhere/z.wav")
    Path("in/null.wav").symlink_to("/dev/null")
    Path("in/folder").symlink_to("../elsewhere")
    Path("in/b.wav").symlink_to("a.wav")
    assert run("encode", "in", "-o", "out") == 0
    said = stderr()
    assert "other files and links to folders passed over: 2" in said
    assert names("out") == ["a.codes", "b.codes"]
    Path("in/lost.wav").symlink_to("nowhere.wav")
    assert run("encode", "in", "-o", "out", "--force") == 1
    assert "in/lost.wav: No such file" in stderr()


def test_existing_files_are_kept_without_force(run: Run, refused: Refused) -> None:
    write("in.wav")
    assert run("encode", "in.wav", "good.codes") == 0
    for target, *args in (
        ("out.codes", "encode", "in.wav", "out.codes"),
        ("in.codes", "encode", "in.wav", "-o", "."),
        ("out.wav", "decode", "good.codes", "out.wav"),
    ):
        Path(target).write_text("mine")
        refused(run(*args), f"{target} exists; --force overwrites it")
        assert Path(target).read_text() == "mine"
        assert run(*args, "--force") == 0
        assert Path(target).read_bytes() != b"mine"
