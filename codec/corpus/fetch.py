"""Fetching the archives of corpora: resumed and verified downloads, unpacked as a whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path

from tqdm import tqdm

from codec.corpus.shards import walk
from codec.errors import CodecError

CHUNK = 1 << 20  # bytes read at once


def fetch(url: str, archive: Path, checksum: str) -> None:
    """Make sure that ``archive`` has this checksum ("algorithm:hex digest"), downloading it from ``url`` if it is missing.

    A download is in ``archive.part`` until it is complete and verified; the next call continues an incomplete one. One
    with a wrong checksum is removed.

    Raises:
        CodecError: no address, no connection, an answer that is no file, a wrong checksum.
    """
    algorithm = checksum.partition(":")[0]
    if archive.exists():
        if (actual := _checksum_of(archive, algorithm)) != checksum:
            raise CodecError(f"{archive} has the checksum {actual}, expected {checksum}; remove it to fetch it anew")
        return
    part = archive.with_name(archive.name + ".part")
    try:
        _fetch_rest(url, part)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CodecError(f"cannot download {url}: {error}; the same command goes on from what has come") from None
    if (actual := _checksum_of(part, algorithm)) != checksum:
        part.unlink()
        raise CodecError(f"{url} came with the checksum {actual}, expected {checksum}; the download was removed")
    part.rename(archive)


def _checksum_of(path: Path, algorithm: str) -> str:
    digest, size = hashlib.new(algorithm, usedforsecurity=False), path.stat().st_size
    with (
        open(path, "rb") as file,
        tqdm.wrapattr(file, "read", size, desc=f"checking {path.name}", disable=None) as data,
    ):
        while chunk := data.read(CHUNK):
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"


def _fetch_rest(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks of ``url``; start again if the server does not resume."""
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return  # nothing is missing: an earlier run was killed between the last byte and the check
        raise
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm.wrapattr(response, "read", total, desc=part.stem, initial=have, disable=None)
        with open(part, "ab" if have else "wb") as file, bar as body:
            shutil.copyfileobj(body, file, CHUNK)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def unpack(archive: Path, inside: str, base: Path) -> None:
    """Move what the tar archive holds in its folder ``inside`` to ``base``, without touching what is there already.

    All is unpacked to a hidden folder first, so that everything in ``base`` is complete even after a kill. Hidden files are
    left out; links are refused, as they have deceived tarfile's own filter.

    Raises:
        CodecError: a damaged or malicious archive, or one without the folder ``inside``.
    """
    if not hasattr(tarfile, "data_filter"):
        raise CodecError("unpacking safely needs Python 3.10.12, 3.11.4, 3.12 or later")
    staging = base / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    try:
        files = walk(archive, False, lambda tar, member: tar.extract(member, staging, filter="data"))
        deque(tqdm(files, desc=f"unpacking {archive.name}", unit=" files", disable=None), 0)
        if not (staging / inside).is_dir():
            raise CodecError(f"{archive} has no folder {inside}")
        for item in sorted((staging / inside).iterdir()):
            if not (base / item.name).exists():
                item.rename(base / item.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
