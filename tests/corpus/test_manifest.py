"""Manifests can be written and read back; a line that cannot be used is named."""

import json
from pathlib import Path

import pytest

from codec.corpus.manifest import ManifestError, Record, read_manifest, write_manifest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "m.jsonl:2: not a manifest record"),
        ('{"id": "x"}', "m.jsonl:2: not a manifest record"),
        ('{"id": "x", "path": "p", "num_samples": "5", "sample_rate": 1}', "num_samples must be of type int"),
        ('{"id": "x", "path": "p", "num_samples": 0, "sample_rate": 1}', "at least 1"),
        ("[1]", "m.jsonl:2"),
        ('{"id": "x", "path": "p", "num_samples": 9, "sample_rate": 9, "num_bytes": -5}', "must not be negative"),
        ('{"id": "x", "path": "", "num_samples": 9, "sample_rate": 9}', "must not be empty"),
        ('{"id": "a", "path": "p", "num_samples": 9, "sample_rate": 9}', "m.jsonl:2: id 'a' again, after line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    record = Record("a", str(tmp_path / "a.wav"), 24000, 16000, speaker="s")
    write_manifest(tmp_path / "m.jsonl", [record])
    assert read_manifest(tmp_path / "m.jsonl") == [record]
    assert json.loads((tmp_path / "m.jsonl").read_text())["path"] == "a.wav"
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "m.jsonl")
