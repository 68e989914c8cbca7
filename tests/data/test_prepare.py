"""The prepare scripts of data/, each on a small synthetic tree of its corpus's layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from loading import ROOT, load_script

from codec.corpus import scan
from codec.corpus.manifest import ManifestError, Record, hold_out, read_manifest
from codec.corpus.scan import read_record
from codec.training.config import DataConfig
from codec.training.data import SegmentDataset, read_segment

libritts = load_script("data/libritts/prepare.py")
folder = load_script("data/folder/prepare.py")
shards = load_script("data/shards/prepare.py")


def run_script(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run data/NAME/prepare.py as a user does; only once for each, since every run imports torch anew."""
    command = [sys.executable, str(ROOT / "data" / name / "prepare.py"), *map(str, args)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_audio(path: Path, seconds: float = 1.0, sample_rate: int = 24000, **kwargs: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(round(seconds * sample_rate)) * 0.05)
    soundfile.write(path, samples, sample_rate, **kwargs)


UTTERANCES = ("19_198_000000_000000", "19_198_000001_000000", "26_495_000000_000000", "26_495_000002_000003")


def write_libritts(base: Path, splits: Sequence[str], utterances: Sequence[str] = UTTERANCES) -> None:
    """``base`` is the folder that holds the splits; every utterance has its transcripts beside it."""
    for split in splits:
        for number, name in enumerate(utterances):
            speaker, chapter, *_ = name.split("_")
            path = base / split / speaker / chapter / f"{name}.wav"
            write_audio(path, seconds=0.6 + 0.1 * number)
            path.with_suffix(".normalized.txt").write_text("Hello.")
            path.with_suffix(".original.txt").write_text("Hello.")


def ids(manifest: Path) -> list[str]:
    return [record.id for record in read_manifest(manifest)]


# --- LibriTTS and LibriTTS-R -----------------------------------------------------------------------------------------


def test_libritts_script_writes_one_manifest_a_split(tmp_path: Path) -> None:
    write_libritts(tmp_path / "LibriTTS", ["train-clean-100", "dev-clean", "test-other"])
    out = tmp_path / "manifests"
    done = run_script("libritts", "--root", tmp_path, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.stem for path in out.iterdir()) == ["dev-clean", "test-other", "train-clean-100"]
    assert ids(out / "train-clean-100.jsonl") == list(UTTERANCES)
    first = read_manifest(out / "dev-clean.jsonl")[0]
    path = tmp_path / "LibriTTS/dev-clean/19/198/19_198_000000_000000.wav"
    assert first == Record(UTTERANCES[0], str(path), 14400, 24000, "19", "dev", 0, "en", "libritts", "CC-BY-4.0")
    assert {record.split for record in read_manifest(out / "test-other.jsonl")} == {"test"}
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("train-clean-100")]
    assert row[1:6] == ["4", "0.00", "2", "0", "0"]  # files, hours, speakers, skipped, excluded
    assert "33236 files, 53.8 h, 247 speakers" in done.stdout


def test_libritts_r_from_the_corpus_folder_itself(tmp_path: Path) -> None:
    write_libritts(tmp_path / "LibriTTS_R", ["dev-other"])
    args = ["--root", str(tmp_path / "LibriTTS_R"), "--out", str(tmp_path / "m"), "--corpus", "libritts-r"]
    assert libritts.main(args) == 0
    assert {record.source for record in read_manifest(tmp_path / "m/dev-other.jsonl")} == {"libritts-r"}


def test_libritts_published_numbers_add_up() -> None:
    assert sum(split.speakers for split in libritts.SPLITS.values()) == 2456
    assert sum(split.hours for split in libritts.SPLITS.values()) == pytest.approx(585.9)
    for corpus in libritts.CORPORA.values():
        assert corpus.checksums.keys() == corpus.archives.keys() == libritts.SPLITS.keys()
        for algorithm, _, digest in (checksum.partition(":") for checksum in corpus.checksums.values()):
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_libritts_limit_takes_files_of_all_speakers(tmp_path: Path) -> None:
    write_libritts(tmp_path / "LibriTTS", ["dev-clean"])
    assert libritts.main(["--root", str(tmp_path), "--out", str(tmp_path / "m"), "--limit", "2"]) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == [UTTERANCES[0], UTTERANCES[2]]


def test_libritts_bad_files_are_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    chapter = tmp_path / "LibriTTS/dev-clean/19/198"
    write_libritts(tmp_path / "LibriTTS", ["dev-clean"])
    (chapter / "19_198_000003_000000.wav").write_bytes(b"")
    (chapter / "19_198_000004_000000.wav").write_bytes(b"not audio at all")
    write_audio(chapter / "19_198_000005_000000.wav", seconds=0.2)
    write_audio(chapter / "26_495_000009_000000.wav")  # speaker 26 in the folder of speaker 19
    args = ["--root", str(tmp_path), "--out", str(tmp_path / "m")]
    assert libritts.main(args) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == list(UTTERANCES)
    skipped = dict(line.split("\t") for line in (tmp_path / "m/dev-clean.skipped.tsv").read_text().splitlines())
    reasons = {Path(path).stem: reason.partition(":")[0] for path, reason in skipped.items()}
    assert reasons == {
        "19_198_000003_000000": "empty file",
        "19_198_000004_000000": "unreadable",
        "19_198_000005_000000": "too short",
        "26_495_000009_000000": "not named SPEAKER_CHAPTER_PARAGRAPH_UTTERANCE.wav after its folders",
    }
    assert all(path in caplog.text for path in skipped)
    assert capsys.readouterr().out.splitlines()[1].split()[4] == "4"
    for path in skipped:
        Path(path).unlink()
    assert libritts.main(args) == 0
    assert not (tmp_path / "m/dev-clean.skipped.tsv").exists()


def test_libritts_exclude_takes_ids_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_libritts(tmp_path / "LibriTTS", ["dev-clean"])
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    lists[0].write_text(f"# lost in restoration\n./dev-clean/19/198/{UTTERANCES[0]}.wav\n\n")
    lists[1].write_text(f"{UTTERANCES[3]}\n1_2_3_4\n")
    assert libritts.main(["--root", str(tmp_path), "--out", str(tmp_path / "m"), "--exclude", *map(str, lists)]) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == [UTTERANCES[1], UTTERANCES[2]]
    assert "1 of 3 utterances to exclude are not in these splits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "no such folder: nowhere"),
        (["--root", "empty"], "no split of LibriTTS found: looked for train-clean-100, train-clean-360,"),
        (["--root", "LibriTTS_R"], "holds LibriTTS-R, not LibriTTS: pass --corpus libritts-r"),
        (["--root", "with_r"], "holds LibriTTS-R, not LibriTTS: pass --corpus libritts-r"),
        (["--root", "LibriTTS_R", "--corpus", "libritts-r", "--splits", "dev-clean"], "no dev-clean in"),
        (["--root", "LibriTTS_R", "--corpus", "libritts-r", "--exclude", "none.txt"], "none.txt"),
        (["--root", "LibriTTS_R", "--corpus", "libritts-r"], "no usable file in"),
    ],
)
def test_libritts_user_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "LibriTTS_R/dev-other").mkdir(parents=True)
    (tmp_path / "with_r/LibriTTS_R/dev-other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert libritts.main([*arguments, "--out", "m"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("libritts", ["--download"]),
        ("libritts", ["--limit", "0"]),
        ("libritts", ["--splits", "train-clean-1000"]),
        ("libritts", ["--mirror", "http://127.0.0.1/"]),
        ("folder", ["--limit", "-1"]),
        ("folder", ["--dev-fraction", "0.6", "--test-fraction", "0.4"]),
        ("folder", ["--dev-fraction", "nan"]),
        ("folder", ["--speaker-from", "none", "--split-by", "speaker"]),
    ],
)
def test_bad_usage_exits_with_2(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        {"libritts": libritts, "folder": folder}[name].main(["--root", ".", "--out", "m", *arguments])
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


# --- any folder ------------------------------------------------------------------------------------------------------


def write_folder(root: Path, speakers: Sequence[str], files: int = 2) -> None:
    for speaker in speakers:
        for number in range(files):
            write_audio(root / speaker / "deeper" / f"{number}.wav", sample_rate=16000)


def split_of_ids(out: Path) -> dict[str, str]:
    return {record.id: record.split for path in out.glob("*.jsonl") for record in read_manifest(path)}


def test_folder_script_splits_by_whole_speakers(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", [f"s{i}" for i in range(6)])
    (tmp_path / "in/s0/broken.wav").write_bytes(b"RIFF")
    arguments = ("--dev-fraction", "0.02", "--test-fraction", "0.3", "--licence", "CC0-1.0", "--language", "de")
    done = run_script("folder", "--root", tmp_path / "in", "--out", tmp_path / "m", "--source", "mine", *arguments)
    assert done.returncode == 0, done.stderr
    manifests = {split: read_manifest(tmp_path / f"m/{split}.jsonl") for split in ("train", "dev", "test")}
    speakers = {split: {record.speaker for record in found} for split, found in manifests.items()}
    assert {split: len(found) for split, found in speakers.items()} == {"train": 3, "dev": 1, "test": 2}
    assert sum(map(len, manifests.values())) == 12
    assert set().union(*speakers.values()) == {f"s{i}" for i in range(6)}
    notes = {(r.source, r.language, r.licence, r.sample_rate) for found in manifests.values() for r in found}
    assert notes == {("mine", "de", "CC0-1.0", 16000)}
    assert "split by speaker with seed 0: 3 train, 1 dev, 2 test" in done.stdout and "1 files skipped" in done.stdout
    assert "broken.wav" in done.stderr and "broken.wav" in (tmp_path / "m/skipped.tsv").read_text()


def test_folder_split_depends_on_names_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{i}" for i in range(8)]
    write_folder(tmp_path / "a", names, files=1)
    write_folder(tmp_path / "elsewhere", names[::-1], files=1)
    found = {}
    for root, out, seed in [("a", "m1", "5"), ("elsewhere", "m2", "5"), ("a", "m3", "6")]:
        args = ["--root", str(tmp_path / root), "--out", str(tmp_path / out), "--seed", seed, "--dev-fraction", "0.5"]
        assert folder.main(args) == 0
        found[out] = split_of_ids(tmp_path / out)
    assert found["m1"] == found["m2"] != found["m3"]
    assert folder.assign_splits(names, 0.3, 0.3, 1) == folder.assign_splits(names[::-1], 0.3, 0.3, 1)


@pytest.mark.parametrize(
    ("items", "dev", "test", "sizes"),
    [
        (10, 0.02, 0.0, (9, 1, 0)),
        (200, 0.02, 0.01, (194, 4, 2)),
        (2, 0.9, 0.0, (1, 1, 0)),
        (3, 0.5, 0.45, (1, 1, 1)),
        (4, 0.0, 0.0, (4, 0, 0)),
    ],
)
def test_assign_splits_sizes(items: int, dev: float, test: float, sizes: tuple[int, int, int]) -> None:
    splits = list(folder.assign_splits(map(str, range(items)), dev, test, seed=0).values())
    assert tuple(splits.count(split) for split in ("train", "dev", "test")) == sizes


def test_folder_without_speakers_splits_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("wav", "flac", "ogg", "mp3", "FLAC"):
        write_audio(tmp_path / f"in/x.{suffix}")
    write_audio(tmp_path / "in/a/b/y.opus", format="OGG", subtype="OPUS")
    write_audio(tmp_path / "in/.hidden/z.wav")
    (tmp_path / "in/notes.txt").write_text("no audio")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/test.jsonl").write_text("")
    args = ["--root", str(tmp_path / "in"), "--out", str(tmp_path / "m"), "--speaker-from", "none"]
    assert folder.main(args) == 0
    captured = capsys.readouterr()
    assert "split by file with seed 0: 5 train, 1 dev, 0 test" in captured.out
    assert "test.jsonl is of an earlier run" in captured.err
    assert sorted(split_of_ids(tmp_path / "m")) == ["a/b/y.opus", "x.FLAC", "x.flac", "x.mp3", "x.ogg", "x.wav"]
    assert {record.speaker for record in read_manifest(tmp_path / "m/train.jsonl")} == {""}


@pytest.mark.parametrize(
    ("root", "arguments", "message"),
    [
        ("nowhere", [], "no such folder"),
        ("empty", [], "no audio in"),
        ("in", ["--split-by", "speaker"], "too few speakers: 1 cannot be split into 2"),
        ("in", ["--min-seconds", "9"], "no usable file in"),
    ],
)
def test_folder_user_errors_are_one_line(
    root: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "in", ["only"])
    assert folder.main(["--root", str(tmp_path / root), "--out", str(tmp_path / "m"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a name cannot be")
def test_names_that_are_no_text_reach_the_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", ["a", "b"])
    os.rename(
        tmp_path / "in" / "a" / "deeper" / "0.wav", os.fsencode(tmp_path / "in" / "a" / "deeper") + b"/caf\xe9.wav"
    )
    done = run_script("folder", "--root", tmp_path / "in", "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    records = [record for split in ("train", "dev") for record in read_manifest(tmp_path / "m" / f"{split}.jsonl")]
    assert len(records) == 4
    for record in records:
        assert read_segment(record, 0.0, 100, record.sample_rate).shape == (100,)


def test_probe_keeps_the_order_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BATCH", 2)
    paths = [tmp_path / f"{i}.wav" for i in (4, 2, 0, 3, 1)]
    for path in paths[:4]:
        write_audio(path, seconds=0.1 * int(path.stem))
    good, bad = scan.probe(paths, min_seconds=0.15)
    assert [info.path.stem for info in good] == ["4", "2", "3"]
    assert [(each.path.stem, each.reason.partition(":")[0]) for each in bad] == [("0", "no audio"), ("1", "unreadable")]


# --- tar shards ------------------------------------------------------------------------------------------------------


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shard(path: Path) -> None:
    """Two utterances, and between them one whose audio cannot be decoded."""
    audio = io.BytesIO()
    soundfile.write(audio, np.full((16000, 2), 0.25), 16000, format="FLAC")
    with tarfile.open(path, "w") as tar:
        for key, content in [("a", audio.getvalue()), ("broken", b"no audio"), ("b", audio.getvalue())]:
            add_member(tar, f"{key}.flac", content)
            meta = {"speaker": f"of {key}", "split": "dev" if key == "b" else "train", "bandwidth_hz": 7000, "note": 1}
            add_member(tar, f"{key}.json", json.dumps(meta).encode())


def test_shards_script_names_the_corrupt_member_and_keeps_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.tar")
    out = tmp_path / "out"
    done = run_script("shards", tmp_path / "one.tar", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "skipped one.tar:broken:" in done.stderr and "1 utterances skipped" in done.stdout
    assert read_manifest(out / "train.jsonl") == [
        Record("a", str(out / "audio/a.wav"), 16000, 16000, "of a", "train", bandwidth_hz=7000)
    ]
    assert ids(out / "dev.jsonl") == ["b"]
    assert sorted(path.name for path in (out / "audio").iterdir()) == ["a.wav", "b.wav"]
    samples, _ = soundfile.read(out / "audio/a.wav", always_2d=True)
    assert samples.shape == (16000, 1) and np.allclose(samples, 0.25, atol=1e-4)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"speaker": 1}, "speaker must be of type str"),
        ({"split": None}, "split must be of type str"),
        ([1], "its metadata is no JSON object"),
    ],
)
def test_shards_with_mistaken_metadata_are_skipped(
    meta: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        audio = tar.extractfile("a.flac").read()  # type: ignore[union-attr]
    with tarfile.open(tmp_path / "one.tar", "a") as tar:
        add_member(tar, "wrong.flac", audio)
        add_member(tar, "wrong.json", json.dumps(meta).encode())
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / "one.tar"), "--out", str(tmp_path / "out")])
    assert shards.main() == 0
    assert f"skipped one.tar:wrong: {message}" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jsonl")) == ["dev.jsonl", "train.jsonl"]


def test_shards_rerun_keeps_what_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "one.tar")
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / "one.tar"), "--out", str(tmp_path / "out")])
    assert shards.main() == 0
    kept, again = tmp_path / "out/audio/a.wav", tmp_path / "out/audio/b.wav"
    before = kept.stat().st_mtime_ns
    again.unlink()
    assert shards.main() == 0
    assert kept.stat().st_mtime_ns == before and again.exists()
    assert ids(tmp_path / "out/train.jsonl") == ["a"]


def test_shards_can_be_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "one.tar")
    for out, flags in (("unpacked", []), ("placed", ["--in-place"])):
        command = ["prepare.py", str(tmp_path / "one.tar"), "--out", str(tmp_path / out), *flags]
        monkeypatch.setattr(sys, "argv", command)
        assert shards.main() == 0
    assert not (tmp_path / "placed" / "audio").exists()
    (placed,), (unpacked,) = (read_manifest(tmp_path / out / "train.jsonl") for out in ("placed", "unpacked"))
    assert placed.path == str(tmp_path / "one.tar") and (placed.speaker, placed.num_samples) == ("of a", 16000)
    samples, rate = read_record(placed)
    assert rate == 16000 and np.allclose(samples, read_record(unpacked)[0], atol=1e-4)
    config = DataConfig(segment_seconds=0.5)
    segments = [SegmentDataset([record], 24000, config, 0)[3]["waveform"] for record in (placed, unpacked)]
    assert np.allclose(segments[0], segments[1], atol=1e-4)
    (tmp_path / "one.tar").write_bytes((tmp_path / "one.tar").read_bytes()[: placed.offset + 10])
    with pytest.raises(ManifestError, match="ends before the audio of a"):
        read_record(placed)


def test_a_key_that_comes_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name)
    command = ["prepare.py", str(tmp_path / "one.tar"), str(tmp_path / "two.tar"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    assert shards.main() == 1
    assert "error: two.tar has a again, after one.tar; keys must differ" in capsys.readouterr().err


def test_speakers_are_held_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(f"{i}", f"{i}.wav", 16000, 16000, f"s{i % 10}" if i < 50 else "") for i in range(60)]
    train, valid = hold_out(records, 3)
    assert len(train) == 45 and len(valid) == 15
    assert not {record.speaker for record in train} & {record.speaker for record in valid}
    assert hold_out(list(reversed(records)), 3)[1] == valid  # whatever the order
    more = [*records, *(Record(f"x{i}", "x.wav", 16000, 16000, "s1") for i in range(5))]
    assert {record.speaker for record in hold_out(more, 3)[1]} == {record.speaker for record in valid}
    write_shard(tmp_path / "one.tar")
    monkeypatch.setattr(
        sys, "argv", ["prepare.py", str(tmp_path / "one.tar"), "--out", str(tmp_path), "--in-place", "--hold-out", "1"]
    )
    assert shards.main() == 1  # the only speaker of train


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.tar", "nowhere.tar: No such file or directory"),
        ("text.tar", "text.tar is no tar file, or a damaged one"),
        ("half.tar", "half.tar is no tar file, or a damaged one"),
        ("half.tar.gz", "half.tar.gz is no tar file, or a damaged one"),
        ("json.tar", "json.tar: the metadata of an utterance cannot be read"),
    ],
)
def test_shards_that_cannot_be_read_are_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "one.tar")
    whole = (tmp_path / "one.tar").read_bytes()
    (tmp_path / "text.tar").write_text("no tar " * 200)
    (tmp_path / "half.tar").write_bytes(whole[:700])
    (tmp_path / "half.tar.gz").write_bytes(gzip.compress(whole)[:100])
    with tarfile.open(tmp_path / "json.tar", "w") as tar:
        add_member(tar, "a.json", b"no JSON")
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert shards.main() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/{message}") and said.count("\n") == 1 and "[Errno" not in said
