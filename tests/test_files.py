"""A file is written whole or not at all, and errors name the file that was wanted."""

import os
import stat
from pathlib import Path

import pytest

from codec.errors import one_line
from codec.files import atomic_write, read_json, write_json

FAILURES = [KeyboardInterrupt(), ValueError("broken"), OSError(28, "No space left"), FileNotFoundError(2, "No", "it")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    """An error without a file's name gets the target's; one of another file keeps that one's."""
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(type(failure)) as error, atomic_write(target) as temporary:
        temporary.write_text("half")
        raise failure
    if isinstance(error.value, OSError):
        assert error.value.filename == ("it" if isinstance(failure, FileNotFoundError) else str(target))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


# ---- what stands in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("leads_to", [None, "pipe", "/dev/null", "out.txt", "circle", "."])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, leads_to: str | None, replace: bool) -> None:
    """A pipe, and links to it, to a device, to themselves, and to a folder."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("out.txt")
    target = tmp_path / ("out.txt" if leads_to else "pipe")
    if leads_to:
        target.symlink_to(leads_to)
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    with pytest.raises(OSError) as error, atomic_write(target, replace):
        pytest.fail("the work was begun")
    assert one_line(error.value).startswith("/")  # it names the file
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("path", ["", ".", "/", ".."])
def test_what_is_no_name_of_a_file_is_refused(path: str) -> None:
    with pytest.raises(FileExistsError), atomic_write(path):
        pytest.fail("the work was begun")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_success_replaces_and_keeps_the_permissions(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "private.txt"
    target.write_text("old")
    target.chmod(mode)
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and temporary.name.startswith(".")
        assert not stat.S_IMODE(temporary.stat().st_mode) & ~0o600  # nobody else reads it meanwhile
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and stat.S_IMODE(target.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [target]
    link = tmp_path / "link.txt"
    link.symlink_to("private.txt")
    write_json(link, 1)
    assert link.is_symlink() and target.read_text() == "1\n" and stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("replace", [True, False])
def test_a_new_file_has_the_usual_permissions(tmp_path: Path, umask: int, replace: bool) -> None:
    """And the longest of names; also where another library puts a file of its own in the temporary one's place."""
    before, target = os.umask(umask), tmp_path / ("語" * 83 + ".codes")  # 255 bytes of UTF-8
    try:
        with atomic_write(target, replace) as temporary:
            temporary.write_text("new")
            temporary.chmod(0o600)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("early", [True, False])
def test_a_file_that_comes_meanwhile(tmp_path: Path, early: bool) -> None:
    target = tmp_path / "out.txt"
    if early:
        target.write_text("theirs")
    with pytest.raises(FileExistsError) as error, atomic_write(target, replace=False) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert one_line(error.value) == f"{target}: File exists" and target.read_text() == "theirs"
    target.unlink()
    with atomic_write(target, replace=False) as temporary:
        temporary.write_text("ours")
    assert target.read_text() == "ours" and list(tmp_path.iterdir()) == [target]


def test_json_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"ü": [None]}, indent=2)
    assert read_json(path) == {"ü": [None]}
    assert path.read_text(encoding="utf-8") == '{\n  "ü": [\n    null\n  ]\n}\n'
