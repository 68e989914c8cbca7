"""Tokenizing a corpus: what comes out, also of a run that was killed, and of every kind of input."""

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from loading import Refused, load_script, tar, wait_for
from training_runs import RECIPES, finish, start

from codec import Codec
from codec.audio import AudioError
from codec.corpus.manifest import read_manifest, write_manifest
from codec.corpus.scan import PrepareError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray takes seconds to import, and has warnings
SHARDS = ["codes-00000.parquet", "codes-00001.parquet", "codes-00002.parquet"]


@pytest.fixture(scope="module")
def tokenize() -> Any:
    """The script under test."""
    for package in ("ray", "pyarrow"):
        pytest.importorskip(package, reason="needs the extra ray")
    return load_script("recipes/tokenize/run.py")


def arguments(model: Path, out: Path, *inputs: Path) -> list[str]:
    """One worker, two utterances a shard."""
    return [*map(str, inputs), "--out", str(out), "--model", str(model), "--shard-size", "2", "--workers", "1"]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_kill_and_go_on(tokenize: Any, corpus: Path, tiny_model_folder: Path, tmp_path: Path, refused: Refused) -> None:
    """To the same bytes, wherever the kill comes."""
    records, bad = read_manifest(corpus / "train.jsonl"), tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    records[1] = replace(records[1], path=str(bad))
    manifest, broken, whole = tmp_path / "all.jsonl", tmp_path / "broken", tmp_path / "whole"
    write_manifest(manifest, records)
    command = [sys.executable, str(RECIPES / "tokenize" / "run.py")]

    with start([*command, *arguments(tiny_model_folder, broken, manifest)]) as run:
        wait_for((broken / SHARDS[0]).exists, run)
        run.kill()
    first = (broken / SHARDS[0]).stat()
    (broken / SHARDS[1]).unlink(missing_ok=True)
    (broken / ".codes-00001.0.tmp.parquet").write_bytes(b"half")  # what a kill while a shard is written leaves

    for out in (broken, whole):
        output, _ = finish(start([*command, *arguments(tiny_model_folder, out, manifest)]))
        assert "5 utterances, 0.00 h, 1 skipped" in output
    assert contents(broken) == contents(whole) and sorted(contents(whole)) == [*SHARDS, "skipped.tsv"]
    assert (broken / SHARDS[0]).stat().st_mtime_ns == first.st_mtime_ns, "a finished shard stays as it is"
    assert (whole / "skipped.tsv").read_text(encoding="utf-8").startswith(f"{bad}\tis not audio")

    codec = Codec.from_pretrained(tiny_model_folder)
    facts = tokenize.facts_of(whole / SHARDS[0])
    assert (facts["model"], facts["fingerprint"], facts["seconds"]) == ("tiny", codec.fingerprint, 1.0)
    read_table = pytest.importorskip("pyarrow.parquet").read_table
    rows = [row for name in SHARDS for row in read_table(whole / name).to_pylist()]
    assert [row["id"] for row in rows] == ["0", "2", "3", "4", "5"]
    for row in rows:
        samples, rate = soundfile.read(corpus / f"{row['id']}.wav", dtype="float32")
        assert [row["gain_db"]] == codec.gain_of(samples, rate)
        assert np.array_equal(row["codes"], codec.encode(samples, rate, gain_db=row["gain_db"])[0])
        assert (row["speaker"], row["duration"]) == (f"speaker {row['id']}", 1.0)
        assert (row["num_samples"], row["num_quantizers"]) == (16000, 3), "at the model's rate"

    again = arguments(tiny_model_folder, whole, manifest)
    refused(tokenize.main([*again, "--num-quantizers", "2"]), "take another --out")
    write_manifest(manifest, [replace(record, path=str(corpus / "0.wav")) for record in records])
    refused(tokenize.main(again), "take another --out")  # other files of the same ids
    assert sorted(contents(whole)) == [*SHARDS, "skipped.tsv"]
    write_manifest(manifest, records)
    (whole / SHARDS[1]).write_bytes(contents(whole)[SHARDS[1]][:100])
    refused(tokenize.main(again), "or a damaged one; remove it")


def test_batches_equal_single_items(tokenize: Any, corpus: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """As on a GPU, but for rounding: utterances of unequal lengths, of which one cannot be read."""
    assert list(tokenize.batches([50, 11, 10, 49, 200], 100)) == [[2, 1], [3, 0], [4]]
    records = read_manifest(corpus / "train.jsonl")
    for number, seconds in enumerate([0.3, 1, 0.29, 0.5]):
        samples, rate = soundfile.read(records[number].path)
        soundfile.write(tmp_path / f"{number}.wav", samples[: int(seconds * rate)] / (number != 1), rate, "DOUBLE")
    records = [replace(record, path=str(tmp_path / f"{i}.wav")) for i, record in enumerate(records[:4])]
    codec = Codec.from_pretrained(tiny_model_folder)
    facts = {"fingerprint": codec.fingerprint, "num_quantizers": 2}
    worker = tokenize.Tokenizer(str(tiny_model_folder), "cpu", tmp_path, facts)
    results = []
    for worker.at_once in (0, 1):
        skipped: list[Any] = []
        results.append(list(worker.rows(records, skipped)))
        assert [place for place, _ in skipped] == [str(tmp_path / "1.wav")]
    refining = tokenize.Tokenizer(str(tiny_model_folder), "cpu", tmp_path, facts | {"refine_steps": 2})
    row, (samples, rate) = next(refining.rows(records, [])), soundfile.read(records[0].path, dtype="float32")
    expected = codec.encode(samples, rate, 2, gain_db=row["gain_db"], refine_steps=2)[0]
    assert np.array_equal(row["codes"], expected) and not np.array_equal(row["codes"], results[0][0]["codes"])
    worker.out = tmp_path / "gone"
    error = worker({"name": "x.parquet", "records": pickle.dumps([])})["error"]
    assert error == f"{tmp_path / 'gone/x.parquet'}: No such file or directory"
    for alone, together in zip(*results, strict=True):
        assert np.array_equal(alone.pop("codes"), together.pop("codes")) and alone == together


def test_folders_and_tar_shards_hold_what_a_manifest_lists(tokenize: Any, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "anna" / "2021").mkdir(parents=True)
    shutil.copy(corpus / "0.wav", tmp_path / "anna" / "2021" / "a.wav")
    shutil.copy(corpus / "1.wav", tmp_path / "b.wav")
    folder = tokenize.find_records([tmp_path])
    assert [(r.id, r.speaker) for r in folder] == [("anna/2021/a.wav", "anna"), ("b.wav", "")]
    assert [r.path for r in folder] == [f"{tmp_path}/{r.id}" for r in folder]
    shard = tmp_path / "shard.tar"
    shard.write_bytes(tar({"x/0.wav": (corpus / "0.wav").read_bytes(), "x/0.json": b'{"speaker": 7, "text": null}'}))
    (record,) = tokenize.find_records([shard])
    assert (record.id, record.speaker) == ("x/0", "7")
    assert np.array_equal(tokenize.read_record(record)[0], soundfile.read(corpus / "0.wav", dtype="float32")[0])
    empty = tmp_path / "empty.tar"
    empty.write_bytes(tar({"1.wav": b"", "2.wav": (corpus / "0.wav").read_bytes()}))
    with pytest.raises(AudioError, match="is not audio"):
        tokenize.read_record(tokenize.find_records([empty])[0])
    with pytest.raises(PrepareError, match="'x/0' stands 2 times"):
        tokenize.find_records([shard, shard])
