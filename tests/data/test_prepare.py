"""The prepare scripts of data/, each on a small synthetic tree of its corpus's layout."""

import errno
import gzip
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from loading import Refused, Said, encoded, load_script, tar

from codec.corpus.manifest import ManifestError, Record, read_manifest
from codec.corpus.scan import read_record
from codec.training.config import DataConfig
from codec.training.data import SegmentDataset

SCRIPTS = {name: load_script(f"data/{name}/prepare.py") for name in ("libritts", "folder", "shards")}
folder, shards = SCRIPTS["folder"], SCRIPTS["shards"]


def prepare(name: str, *args: object) -> int:
    try:
        return SCRIPTS[name].main([str(arg) for arg in args])
    except SystemExit as exit:
        return exit.code


def write_audio(path: Path, seconds: float = 1.0, sample_rate: int = 24000, **kwargs: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(seconds * sample_rate)) * 0.05), sample_rate, **kwargs)


def ids(manifest: Path) -> list[str]:
    return [record.id for record in read_manifest(manifest)]


# --- LibriTTS and LibriTTS-R -----------------------------------------------------------------------------------------

UTTERANCES = ("19_198_000000_000000", "19_198_000001_000000", "26_495_000000_000000", "26_495_000002_000003")


def write_libritts(base: Path, splits: Sequence[str]) -> None:
    """``base`` is the folder that holds the splits; every utterance has a transcript beside it."""
    for split in splits:
        for number, name in enumerate(UTTERANCES):
            speaker, chapter, *_ = name.split("_")
            path = base / split / speaker / chapter / f"{name}.wav"
            write_audio(path, seconds=0.6 + 0.1 * number)
            path.with_suffix(".normalized.txt").write_text("Hello.")


def test_libritts_has_one_manifest_per_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_libritts(tmp_path / "LibriTTS", ["train-clean-100", "dev-clean", "test-other"])
    out = tmp_path / "manifests"
    assert prepare("libritts", "--root", tmp_path, "--out", out) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert sorted(path.stem for path in out.iterdir()) == ["dev-clean", "test-other", "train-clean-100"]
    assert ids(out / "train-clean-100.jsonl") == list(UTTERANCES)
    first = read_manifest(out / "dev-clean.jsonl")[0]
    path = str(tmp_path / "LibriTTS/dev-clean/19/198/19_198_000000_000000.wav")
    assert first == Record(UTTERANCES[0], path, 14400, 24000, "19", "dev", 0, "en", "libritts", "CC-BY-4.0", "Hello.")
    assert {record.split for record in read_manifest(out / "test-other.jsonl")} == {"test"}
    (row,) = [line.split() for line in said.out.splitlines() if line.startswith("train-clean-100")]
    assert row[1:6] == ["4", "0.00", "2", "0", "0"]  # files, hours, speakers, skipped, excluded
    assert "33236 files, 53.8 h, 247 speakers" in said.out


def test_libritts_takes_what_is_asked_for_and_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """``--limit`` takes files of all speakers, ``--exclude`` takes ids and paths, bad files are named."""
    chapter, lists = tmp_path / "LibriTTS/dev-clean/19/198", [tmp_path / "a.txt", tmp_path / "b.txt"]
    write_libritts(tmp_path / "LibriTTS", ["dev-clean"])
    lists[0].write_text(f"# lost in restoration\n./dev-clean/19/198/{UTTERANCES[0]}.wav\n\n")
    lists[1].write_text(f"{UTTERANCES[3]}\n1_2_3_4\n")
    args = ["--root", tmp_path, "--out", tmp_path / "m"]
    assert prepare("libritts", *args, "--limit", 2) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == [UTTERANCES[0], UTTERANCES[2]]
    assert prepare("libritts", *args, "--exclude", *lists) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == [UTTERANCES[1], UTTERANCES[2]]
    assert "1 of 3 utterances to exclude are not in these splits" in capsys.readouterr().out
    (chapter / "19_198_000003_000000.wav").write_bytes(b"")
    (chapter / "19_198_000004_000000.wav").write_bytes(b"not audio at all")
    write_audio(chapter / "19_198_000005_000000.wav", seconds=0.2)
    write_audio(chapter / "26_495_000009_000000.wav")  # speaker 26 in the folder of speaker 19
    assert prepare("libritts", *args) == 0
    assert ids(tmp_path / "m/dev-clean.jsonl") == list(UTTERANCES)
    skipped = dict(line.split("\t") for line in (tmp_path / "m/dev-clean.skipped.tsv").read_text().splitlines())
    reasons = ["is empty", "is not audio", "too short: 0", "not named SP"]
    assert [reason[:12] for _, reason in sorted(skipped.items())] == reasons
    assert all(path in caplog.text for path in skipped)
    assert capsys.readouterr().out.splitlines()[1].split()[4] == "4"


# --- any folder ------------------------------------------------------------------------------------------------------


def write_folder(root: Path, speakers: Sequence[str], files: int = 2) -> None:
    for speaker in speakers:
        for number in range(files):
            write_audio(root / speaker / "deeper" / f"{number}.wav", sample_rate=16000)


def test_folder_is_split_by_whole_speakers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "in", [f"s{i}" for i in range(6)])
    (tmp_path / "in/s0/broken.wav").write_bytes(b"RIFF")
    arguments = ("--dev-fraction", "0.02", "--test-fraction", "0.3", "--licence", "CC0-1.0", "--language", "de")
    assert prepare("folder", "--root", tmp_path / "in", "--out", tmp_path / "m", "--source", "mine", *arguments) == 0
    manifests = {split: read_manifest(tmp_path / f"m/{split}.jsonl") for split in ("train", "dev", "test")}
    speakers = {split: {record.speaker for record in records} for split, records in manifests.items()}
    assert {split: len(names) for split, names in speakers.items()} == {"train": 3, "dev": 1, "test": 2}
    assert sum(map(len, manifests.values())) == 12
    assert set().union(*speakers.values()) == {f"s{i}" for i in range(6)}
    notes = {(r.source, r.language, r.licence, r.sample_rate) for records in manifests.values() for r in records}
    assert notes == {("mine", "de", "CC0-1.0", 16000)}
    said = capsys.readouterr().out
    assert "split by speaker with seed 0: 3 train, 1 dev, 2 test" in said and "files skipped: 1" in said
    assert "broken.wav" in (tmp_path / "m/skipped.tsv").read_text()


@pytest.mark.parametrize(("items", "dev", "test", "sizes"), [(200, 0.02, 0.01, (194, 4, 2)), (3, 0.5, 0.45, (1, 1, 1))])
def test_assign_splits_sizes(items: int, dev: float, test: float, sizes: tuple[int, int, int]) -> None:
    names = [*map(str, range(items))]
    splits = folder.assign_splits(names, dev, test, seed=0)
    assert tuple([*splits.values()].count(split) for split in ("train", "dev", "test")) == sizes
    assert folder.assign_splits(names[::-1], dev, test, seed=0) == splits  # whatever the order
    assert items < 100 or folder.assign_splits(names, dev, test, seed=1) != splits


def test_folder_without_speakers_splits_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the suffixes."""
    for name in ("é.wav", "x.flac", "x.ogg", "x.mp3", "y.FLAC", ".hidden/z.wav"):
        write_audio(tmp_path / "in" / name)
    write_audio(tmp_path / "in/a/b/y.opus", format="OGG", subtype="OPUS")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.wav")).touch()
    (tmp_path / "in/notes.txt").write_text("no audio")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/test.jsonl").write_text("")
    assert prepare("folder", "--root", tmp_path / "in", "--out", tmp_path / "m", "--speaker-from", "none") == 0
    said = capsys.readouterr()
    assert "split by file with seed 0: 5 train, 1 dev, 0 test" in said.out
    assert "test.jsonl is of an earlier run" in said.err
    records = [record for split in ("train", "dev") for record in read_manifest(tmp_path / f"m/{split}.jsonl")]
    assert sorted(record.id for record in records) == ["a/b/y.opus", "x.flac", "x.mp3", "x.ogg", "y.FLAC", "é.wav"]
    for record in records:
        assert record.speaker == "" and len(read_record(record)[0]) >= record.num_samples
    assert b"caf\xe9.wav\tits name is not UTF-8" in (tmp_path / "m/skipped.tsv").read_bytes()


def test_a_subfolder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: Said
) -> None:
    write_audio(tmp_path / "in/a/x.wav")
    write_audio(tmp_path / "in/b/y.wav")
    scandir = os.scandir

    def refuse(path: str) -> object:  # permissions do not hold root back
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert prepare("folder", "--root", tmp_path / "in", "--out", tmp_path / "m") == 1
    assert stderr() == f"prepare.py: error: {tmp_path / 'in/b'}: Permission denied\n" and not (tmp_path / "m").exists()


# --- tar shards ------------------------------------------------------------------------------------------------------


def speech_files(*keys: str) -> dict[str, bytes]:
    silence = encoded(np.zeros(1600))
    return {name: text for key in keys for name, text in ((f"{key}.wav", silence), (f"{key}.json", b"{}"))}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Two utterances, and between them one whose audio cannot be decoded, and two of mistaken metadata."""
    members, audio = {}, encoded(np.full((16000, 2), 0.25), form="FLAC")
    for key in ("a", "broken", "typed", "listed", "b"):
        meta = {"speaker": f"of {key}", "split": "dev" if key == "b" else "train", "bandwidth_hz": 7000, "text": None}
        wrong: dict[str, object] = {"typed": meta | {"speaker": [1]}, "listed": [1]}
        members[f"{key}.flac"] = b"no audio" if key == "broken" else audio
        members[f"{key}.json"] = json.dumps(wrong.get(key, meta)).encode()
    (tmp_path / "one.tar").write_bytes(tar(members))
    return tmp_path / "one.tar"


def test_shards_are_unpacked_once(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what cannot be used is named."""
    out = tmp_path / "out"
    assert prepare("shards", shard, "--out", out) == 0
    said = capsys.readouterr()
    assert "skipped one.tar:broken:" in said.err and "3 utterances skipped" in said.out
    assert "skipped one.tar:typed: speaker must be of type str" in said.err
    assert "skipped one.tar:listed: no JSON object\n" in said.err
    kept, again = out / "audio/a.wav", out / "audio/b.wav"
    record = Record("a", str(kept), 16000, 16000, "of a", "train", bandwidth_hz=7000)
    assert read_manifest(out / "train.jsonl") == [record]
    samples, _ = soundfile.read(kept, always_2d=True)
    assert samples.shape == (16000, 1) and np.allclose(samples, 0.25, atol=1e-4)
    before = kept.stat().st_mtime_ns
    again.unlink()
    assert prepare("shards", shard, "--out", out) == 0
    assert kept.stat().st_mtime_ns == before and again.exists() and ids(out / "dev.jsonl") == ["b"]
    for other in (-samples, samples[:9000]):
        soundfile.write(kept, other, 16000)
        assert prepare("shards", shard, "--out", out) == 0 and kept.exists()
        said = capsys.readouterr()
        assert "a.wav is of other audio" in said.err and "train.jsonl is of an earlier run" in said.err


def test_shards_can_be_read_where_they_lie(shard: Path, tmp_path: Path) -> None:
    assert prepare("shards", shard, "--out", tmp_path / "placed", "--in-place") == 0
    assert not (tmp_path / "placed" / "audio").exists()
    (record,) = read_manifest(tmp_path / "placed/train.jsonl")
    assert record.path == str(shard) and (record.speaker, record.num_samples) == ("of a", 16000)
    samples, rate = read_record(record)
    assert rate == 16000 and np.allclose(samples, 0.25, atol=1e-4)
    segment = SegmentDataset([record], 24000, DataConfig(segment_seconds=0.5), 0)[3]["waveform"]
    assert segment.shape == (1, 12000) and float(segment.std()) < 1e-3 < float(segment.abs().min())
    shard.write_bytes(shard.read_bytes()[: record.offset + 10])
    with pytest.raises(ManifestError, match="ends before the audio of a"):
        read_record(record)


@pytest.mark.parametrize("mode", [(), ("--in-place",)], ids=str)
def test_a_shard_is_read_to_its_end_or_refused(mode: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    """tarfile takes what it cannot read for the end of the archive."""
    shard, out, whole, other = tmp_path / "s.tar", tmp_path / "out", tar(speech_files(*"abcd")), tar(speech_files("e"))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        begin, end = (archive.getmember(name).offset for name in ("c.wav", "d.json"))
    damaged = {
        "checksum": whole[: begin + 148] + b"999999" + whole[begin + 154 :],
        "zeroed header": whole[:begin] + bytes(512) + whole[begin + 512 :],
        "zeros to the end": whole[:512] + bytes(len(whole) - 512),
        "cut between": whole[:begin],
        "cut in a file": whole[: begin + 700],
        "more at the end": whole + other[:300],
    }
    for name, content in damaged.items():
        shard.write_bytes(content)
        refused(prepare("shards", shard, "--out", out, *mode), f"{shard} is no tar file, or a damaged one (")
        assert not list(out.glob("*.jsonl")), name
    least = whole[: end + 1024] + bytes(1024)  # two blocks of zeros end an archive
    for content, keys in ((whole + other, "abcde"), (least, "abcd"), (least + other, "abcde")):
        shard.write_bytes(content)
        assert prepare("shards", shard, "--out", out, *mode) == 0
        assert ids(out / "train.jsonl") == list(keys)
        assert all(len(read_record(record)[0]) == 1600 for record in read_manifest(out / "train.jsonl"))


def test_keys_of_a_shard_are_those_of_webdataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = speech_files("spk1/1", "spk2/1", "./3", "v.1", "w.1", "w.2")
    files |= {"4.wav": b"", "5.json": b"{}", "6.WAV": files["w.1.wav"], "6.JSON": b"{}", "._3.wav": b"", "README": b""}
    files["spk1/1.json"] = b'{"offset": 9, "num_bytes": 9, "path": "/etc/passwd"}'  # for us to say, not for it
    (tmp_path / "s.tar").write_bytes(tar(files))
    assert prepare("shards", tmp_path / "s.tar", "--out", tmp_path / "out") == 0
    assert ids(tmp_path / "out/train.jsonl") == ["spk1/1", "spk2/1", "3", "v", "6"]
    assert (tmp_path / "out/audio/spk2/1.wav").exists()
    assert len(read_record(read_manifest(tmp_path / "out/train.jsonl")[0])[0]) == 1600
    said = capsys.readouterr()
    reasons = ["w: 2 files of metadata; a key ends at the first dot of a name", "4: no metadata", "5: no audio"]
    assert said.err.splitlines() == [f"skipped s.tar:{reason}" for reason in reasons]
    assert said.out.endswith("3 utterances skipped\n")


def test_speakers_are_held_out_by_name() -> None:
    records = [Record(f"{i}", f"{i}.wav", 16000, 16000, f"s{i % 10}" if i < 50 else "") for i in range(60)]
    train, valid = shards.hold_out(records, 3)
    assert len(train) == 45 and len(valid) == 15
    assert not {record.speaker for record in train} & {record.speaker for record in valid}
    assert shards.hold_out(list(reversed(records)), 3)[1] == valid  # whatever the order
    more = [*records, *(Record(f"x{i}", "x.wav", 16000, 16000, "s1") for i in range(5))]
    assert {record.speaker for record in shards.hold_out(more, 3)[1]} == {record.speaker for record in valid}


# --- mistakes --------------------------------------------------------------------------------------------------------

USAGE = {
    "libritts --root in --download": "--download needs --splits",
    "libritts --root in --splits train-clean-1000": "invalid choice: 'train-clean-1000'",
    "libritts --root in --mirror http://127.0.0.1/": "--mirror goes with --download",
    "folder --root in --dev-fraction 0.6 --test-fraction 0.4": "leave something for train",
    "folder --root in --speaker-from none --split-by speaker": "--split-by speaker needs speakers",
    "shards one.tar --hold-out -1": "--hold-out must not be negative",
}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *USAGE.items(),
        ("libritts --root nowhere", "no such folder: nowhere"),
        ("libritts --root in", "no split of LibriTTS found: looked for train-clean-100, train-clean-360,"),
        ("libritts --root with_r", "with_r holds LibriTTS-R, not LibriTTS: pass --corpus libritts-r"),
        ("libritts --root with_r --corpus libritts-r --splits dev-clean", "no dev-clean in"),
        ("libritts --root with_r --corpus libritts-r --exclude none.txt", "none.txt: No such file"),
        ("folder --root with_r", "no audio in"),
        ("folder --root in --split-by speaker", "too few speakers: 1 cannot be split into 2"),
        ("folder --root in/only/deeper --split-by speaker", "no file lies in the folder of a speaker"),
        ("folder --root in --min-seconds 9", "no usable file in"),
        ("shards half.tar.gz", "half.tar.gz is no tar file, or a damaged one"),
        ("shards json.tar", "no utterance can be used: all 1 were skipped"),
        ("shards one.tar.gz --in-place", "one.tar.gz is compressed, so it cannot be read in place"),
        ("shards up.tar", "up.tar holds '../evil.wav', which would be unpacked elsewhere"),
        ("shards link.tar --in-place", "link.tar holds a link or a special file, 'a.wav'"),
        ("shards valid.tar --hold-out 1", "the shards have a split valid already"),
        ("shards one.tar one.tar", "one.tar has a again, after one.tar; keys must differ"),
        ("shards one.tar --hold-out 1", "--hold-out 1: of train, one side would be empty"),
    ],
)
def test_user_errors(command: str, message: str, shard: Path, monkeypatch: pytest.MonkeyPatch, stderr: Said) -> None:
    monkeypatch.chdir(shard.parent)
    Path("with_r/LibriTTS_R/dev-other").mkdir(parents=True)
    Path("half.tar.gz").write_bytes(gzip.compress(shard.read_bytes())[:100])
    Path("one.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    write_folder(Path("in"), ["only"])
    Path("json.tar").write_bytes(tar({"a.json": b"no JSON"}))
    Path("up.tar").write_bytes(tar({"../evil.wav": b""}))
    Path("link.tar").write_bytes(tar({}, **{"a.wav": tarfile.SYMTYPE}))
    Path("valid.tar").write_bytes(tar(speech_files("a", "b") | {"b.json": b'{"split": "valid"}'}))
    assert prepare(*command.split(), "--out", "out") == (2 if command in USAGE else 1)
    *skipped, error = stderr().splitlines()
    assert message in error and "[Errno" not in error
    assert error.startswith("prepare.py: error: ") or command in USAGE
    assert all(line.startswith("skipped ") for line in skipped)
