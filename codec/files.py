"""Writing files so that a killed run leaves no half file and never harms an existing one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any exception.

    The temporary name keeps the suffix, since audio writers choose the format by it, and little of the rest, since names
    have a longest length. Errors of the file system name ``path``, not the temporary name.

    Raises:
        OSError: the folder is missing or read-only, the disk is full.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # what the link points to is meant
    temporary = path.with_name(f".{path.stem[:20]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        with suppress(OSError):  # of an unusable folder, for which an error is on its way already
            temporary.unlink()


def write_json(path: str | Path, value: Any, indent: int = 1) -> None:
    """Write ``value`` as JSON, whole or not at all. Errors as :func:`written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
