"""Tar shards of speech in the layout of WebDataset: KEY.flac (opus, wav, ...) beside KEY.json, in any folders."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from codec.corpus.scan import PrepareError
from codec.errors import CodecError, one_line

Taken = TypeVar("Taken")
BLOCK = 512  # bytes; two blocks of zeros end a tar file, and most programs fill up its last record of 20 blocks
MOST_ZEROS = 22 * BLOCK


def key_of(name: str) -> str:
    """The key of a file in a shard: its folder and its name up to the first dot."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def walk(shard: Path, in_place: bool, take: Callable[[tarfile.TarFile, tarfile.TarInfo], Taken]) -> Iterator[Taken]:
    """The result of ``take`` for every visible file of a tar archive, and of others appended to it (``cat a.tar b.tar``).

    ``tarfile`` silently takes a damaged header for the end of the archive; here the end must have its mark.

    Raises:
        PrepareError: damaged or cut short; compressed, but to be read in place; a member that is a link, or that leads
            outside.
        OSError: cannot be opened.
    """
    try:
        with tarfile.open(shard) as archive:
            file = archive.fileobj
            assert file is not None
            if in_place and not isinstance(file, io.BufferedReader):
                raise PrepareError(f"{shard} is compressed, so it cannot be read in place; decompress it first")
            while True:
                for member in archive:
                    if not member.isdir() and _is_visible(shard, member):
                        yield take(archive, member)
                end = archive.offset
                file.seek(end)
                while (block := file.read(BLOCK)) and not any(block):
                    end += len(block)
                if not 2 * BLOCK <= end - archive.offset <= MOST_ZEROS:
                    raise tarfile.ReadError(f"no file and no end at byte {archive.offset}")
                if not block:
                    return
                file.seek(end)
                archive = tarfile.TarFile(fileobj=file)
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError, OSError) as error:
        # ValueError: a wrong number in a header
        if isinstance(error, CodecError) or getattr(error, "errno", None):
            raise
        reason = one_line(error).partition(":")[0]  # what follows are the reasons of all kinds of compression
        raise PrepareError(f"{shard} is no tar file, or a damaged one ({reason}); fetch it again") from None


def _is_visible(shard: Path, member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name)
    if not member.isreg() or member.issparse():
        raise PrepareError(f"{shard} holds a link or a special file, {member.name!r}; pack it with plain files only")
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        raise PrepareError(f"{shard} holds {member.name!r}, which would be unpacked elsewhere")
    return not name.name.startswith(".")
