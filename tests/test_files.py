"""A file is written whole or not at all, and errors name the file that was wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from codec.files import write_json, written_whole


def test_success_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with written_whole(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and temporary.name.startswith(".")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    write_json(target, {"ü": [1]}, indent=2)
    assert target.read_text() == '{\n  "\\u00fc": [\n    1\n  ]\n}\n'
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("broken"), OSError(28, "No space left on device")])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(type(failure)) as error, written_whole(target) as temporary:
        temporary.write_text("half")
        raise failure
    if isinstance(failure, OSError):  # one without a file's name gets the target's
        assert isinstance(error.value, OSError) and error.value.filename == str(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_name_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for target, kind in [
        (tmp_path / "missing" / "out.txt", FileNotFoundError),
        (tmp_path / "file" / "out.txt", NotADirectoryError),
        (tmp_path / "folder", IsADirectoryError),
    ]:
        with pytest.raises(kind) as error, written_whole(target) as temporary:
            temporary.write_text("new")
        assert error.value.filename == str(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_errors_of_other_files_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, written_whole(tmp_path / "out.txt"):
        (tmp_path / "other").read_bytes()
    assert str(error.value.filename) == str(tmp_path / "other")


def test_the_longest_names(tmp_path: Path) -> None:
    target = tmp_path / ("語" * 83 + ".codes")  # 255 bytes of UTF-8
    with written_whole(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
