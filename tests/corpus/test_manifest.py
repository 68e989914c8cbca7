"""Manifests can be written and read back; a line that cannot be used is named."""

import json
from pathlib import Path

import pytest

from codec.corpus.manifest import ManifestError, Record, parse_record, read_manifest, write_manifest

GOOD = '{"id": "x", "path": "p", "num_samples": 9, "sample_rate": 9}'
PATHS = ("../../elsewhere/evil", "/tmp/evil", "x" * 51, "a\\u0000")  # in place of the name of a split


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "m.jsonl:2: not a manifest record"),
        ('{"id": "x"}', "m.jsonl:2: not a manifest record"),
        ('{"id": "x", "path": "p", "num_samples": 0, "sample_rate": 1}', "at least 1"),
        ('{"id": "x", "path": "p", "num_samples": 9, "sample_rate": 9, "num_bytes": -5}', "no number negative"),
        ('{"id": "a", "path": "p", "num_samples": 9, "sample_rate": 9}', "m.jsonl:2: id 'a' again, after line 1"),
        *((GOOD[:-1] + f', "split": "{split}"}}', "split must be a plain name") for split in PATHS),
    ],
    ids=range(9),
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    record = Record("a", str(tmp_path / "a.wav"), 24000, 16000, speaker="s")
    write_manifest(tmp_path / "m.jsonl", [record])
    text = (tmp_path / "m.jsonl").read_text()
    for other in ("\ufeff" + text, text.replace("\n", "\r\n\r\n"), text):  # as editors on Windows leave it
        (tmp_path / "m.jsonl").write_text(other, encoding="utf-8", newline="")
        assert read_manifest(tmp_path / "m.jsonl") == [record]
    assert json.loads((tmp_path / "m.jsonl").read_text())["path"] == "a.wav"
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="can't decode byte 0xff"):
        parse_record(b"\xff{}")
