"""Writing files so that a killed run leaves no half file and does not harm an existing one; reading small files."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from codec.errors import CodecError


@contextmanager
def atomic_write(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any exception.

    The temporary name keeps the suffix, since audio writers choose the format by it. Errors of the file system name
    ``path``. A file that is replaced passes its permissions to the new one. If ``replace`` is False no file is replaced, not
    even one that appears in the meantime.

    Raises:
        OSError: the folder is missing or read-only, the disk is full; ``path`` is a folder, pipe, device or link to itself.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)  # write to what the link points to
    mode = None
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise FileExistsError(errno.EEXIST, "is a folder, a pipe or a device, which is not replaced", str(path))
    temporary = path.with_name(f".{path.stem[:20]}.{os.urandom(4).hex()}.tmp{path.suffix}")
    try:
        temporary.touch(0o666 if mode is None else 0o600, exist_ok=False)
        mode = mode or temporary.stat().st_mode
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, stat.S_IMODE(mode))  # safetensors replaces it by a file that others cannot read
        if not replace:
            path.touch(exist_ok=False)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        with suppress(OSError):  # of an unusable folder; that error was raised already
            temporary.unlink()


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; a CodecError, which does not name the file, if it is no such file."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # of syntax, encoding, endless digits, endless nesting
        raise CodecError(f"not JSON ({error})") from None


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Errors as :func:`atomic_write`.

    File names that are not UTF-8 become escapes, which JSON reads back.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Raise a CodecError if ``folder`` is a file, or already has one of these names."""
    if folder.exists() and not folder.is_dir():
        raise CodecError(f"{folder} is a file; give a folder")
    for path in (folder / name for name in names):
        if path.exists():
            raise CodecError(f"{path} exists; --force overwrites it")


def save_picture(figure: Any, path: Path, force: bool = True) -> None:
    """Write a figure of matplotlib, whose suffix tells the format, and print where; a file that exists needs ``force``."""
    refuse_existing(path.parent, [] if force else [path.name])
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise CodecError(f"{path}: pictures are not written as {path.suffix!r}; take .png, .pdf or .svg")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=80)
    print(path)


def write_json(path: str | Path, value: Any, indent: int = 1) -> None:
    """Write ``value`` as JSON, whole or not at all. Errors as :func:`atomic_write`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
