"""Downloads and archives: codec.corpus.fetch, and data/libritts/prepare.py --download, against a server on this machine."""

import dataclasses
import hashlib
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from loading import encoded, load_script, tar

from codec.corpus.fetch import fetch, unpack
from codec.corpus.manifest import read_manifest
from codec.errors import CodecError

libritts = load_script("data/libritts/prepare.py")


class Server(ThreadingHTTPServer):
    """Serves ``files``; notes each request as (path, Range header)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.resumes = True  # answers Range requests
        self.breaks_after: int | None = None  # bytes of an answer's body that are sent before the connection ends


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        requested = self.headers["Range"]
        self.server.requests.append((self.path, requested))
        if self.path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[self.path]
        match = re.fullmatch(r"bytes=(\d+)-", requested or "") if self.server.resumes else None
        start = int(match[1]) if match else 0
        if match and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.breaks_after])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=[0.01]).start()  # seconds between looks whether to end
        yield running
        running.shutdown()


CONTENT = bytes(range(256)) * 40
NO_FILES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)


@pytest.fixture
def url(server: Server) -> str:
    server.files["/a.bin"] = CONTENT
    return f"{server.url}/a.bin"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize(("have", "resumes"), [(1, True), (5000, True), (len(CONTENT), True), (5000, False)])
def test_fetch_goes_on_from_a_part(server: Server, url: str, tmp_path: Path, have: int, resumes: bool) -> None:
    """That a lost connection left; it starts over where the server does not resume, and fetches nothing twice."""
    archive, server.breaks_after = tmp_path / "a.bin", have
    if have < len(CONTENT):
        with pytest.raises(CodecError, match=f"the connection ended after {have} of {len(CONTENT)} bytes"):
            fetch(url, archive, sha256(CONTENT))
    else:  # killed between the last byte and the check
        (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert not archive.exists()
    server.requests, server.resumes, server.breaks_after = [], resumes, None
    for _ in range(2):
        fetch(url, archive, sha256(CONTENT))
        assert archive.read_bytes() == CONTENT
    assert server.requests == [("/a.bin", f"bytes={have}-")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_fetch_refuses_what_is_not_as_expected(url: str, tmp_path: Path) -> None:
    """What it fetched goes, and an archive that was there stays."""
    wrong, archive = sha256(b"something else"), tmp_path / "a.bin"
    for address, message in (
        (url, f"{sha256(CONTENT)}.*{wrong}|{wrong}.*{sha256(CONTENT)}"),
        (f"{url}.gz", "HTTP Error 404"),
        ("http://127.0.0.1:1/a.bin", "cannot download http://127.0.0.1:1/a.bin: "),
        ("no-scheme/a.bin", "cannot download no-scheme/a.bin: "),
    ):
        with pytest.raises(CodecError, match=message):
            fetch(address, archive, wrong)
        assert list(tmp_path.iterdir()) == []
    archive.write_bytes(b"mine")
    with pytest.raises(CodecError, match="remove it to fetch it anew"):
        fetch(url, archive, sha256(CONTENT))
    assert archive.read_bytes() == b"mine"


def test_unpack_adds_whole_items_only(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar({"X/split/1.txt": b"1", "X/split/2.txt": b"2", "X/README": b"new"}, "w:gz"))
    base = tmp_path / "base"
    (base / ".unpacking/X/split").mkdir(parents=True)  # what a killed run leaves
    (base / ".unpacking/X/split/half.txt").write_text("")
    (base / "README").write_text("old")
    unpack(tmp_path / "a.tar.gz", "X", base)
    assert sorted(path.relative_to(base).as_posix() for path in base.rglob("*.*")) == ["split/1.txt", "split/2.txt"]
    assert (base / "README").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar({"X/split/1.txt": b"1", "../evil.txt": b"!"}, "w:gz"), "elsewhere"),
        (tar({"X/split/1.txt": b"1", "X/2.txt": b"2" * 5000}, "w:gz")[:-40], "or a damaged one"),
        (tar({"X/split/1.txt": b"1", "X/split/2.txt": b"2"}).replace(b"X/split/2", b"X/splot/2"), "or a damaged one"),
        (b"no archive", "or a damaged one"),
        (tar({"Y/split/1.txt": b"1"}, "w:gz"), "has no folder X"),
        *((tar({"X/split/1.txt": b"1"}, "w:gz", a=kind), "holds a link or a special file, 'a'") for kind in NO_FILES),
    ],
    ids=["outside", "cut", "header", "text", "other", "link", "hard link", "pipe"],  # archives hold their time
)
def test_unpack_refuses_bad_archives(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    (tmp_path / "base").mkdir()
    with pytest.raises(CodecError, match=message):
        unpack(tmp_path / "a.tar.gz", "X", tmp_path / "base")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz", "base"]


@pytest.mark.parametrize(("source", "inside"), [("libritts", False), ("libritts-r", True)])
def test_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, inside: bool) -> None:
    corpus, name = libritts.CORPORA[source], "84_121123_000007_000001"
    speech = {f"{corpus.folder}/dev-clean/84/121123/{name}.wav": encoded(np.zeros(24000), 24000)}
    content = tar(speech | {f"{corpus.folder}/NOTE": b""}, "w:gz")
    remote = f"/{corpus.resource}/{corpus.archives['dev-clean']}"
    server.files[remote] = content
    checked = dataclasses.replace(corpus, checksums={"dev-clean": sha256(content)})
    monkeypatch.setitem(libritts.CORPORA, source, checked)
    base = tmp_path / corpus.folder
    args = ["--root", str(base if inside else tmp_path), "--out", str(tmp_path / "m"), "--corpus", source]
    args += ["--download", "--splits", "dev-clean", "--mirror", server.url]
    assert libritts.main(args) == 0
    (record,) = read_manifest(tmp_path / "m/dev-clean.jsonl")
    assert record.path == str(base / "dev-clean/84/121123" / f"{name}.wav") and record.source == source
    shutil.rmtree(base / "dev-clean")
    assert libritts.main(args) == 0  # unpacked again from the archive, which was kept
    (base / corpus.archives["dev-clean"]).unlink()
    assert libritts.main(args) == 0  # the archive is not needed where the split is
    assert server.requests == [(remote, None)]
