"""codec-evaluate and codec-compare end to end, and their parts against known answers."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pystoi
import pytest
import soundfile
from loading import SPEECH, Refused, Said, recipe, recorded

from codec import Codec, container
from codec.corpus.manifest import Record, write_manifest
from codec.errors import CodecError
from codec.evaluation import systems
from codec.evaluation.commands import compare_main, evaluate_main
from codec.evaluation.compare import Report, bootstrap_mean, compare
from codec.evaluation.measure import KNOWN, EvaluationError, read_utterance
from codec.evaluation.metrics import COSTS
from codec.evaluation.results import Estimate, Results, read_rows, write_rows
from codec.evaluation.runner import present_metrics
from codec.evaluation.systems import Codec2Family, Family, FolderFamily, OpusFamily, present_programs

METRICS = [name for name in KNOWN if name != "distillmos"]
WHOLE = ["--num-quantizers", "3", "1", "--metrics", *METRICS, "--examples", "1"]


def command(manifest: Path, model: Path | str, out: Path, *options: object) -> list[str]:
    """The arguments of codec-evaluate, without classical codecs; options may be given again."""
    paths = ["--manifest", str(manifest), "--model", str(model), "--out", str(out)]
    return [*paths, "--baselines", "--workers", "1", "--metrics", "mel", *map(str, options)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of speech, 10 ms of one, digital silence, and a file that is not there."""
    folder = tmp_path_factory.mktemp("corpus")
    records = []
    for name, path in zip("ab", SPEECH.values(), strict=True):
        samples, rate = soundfile.read(path, dtype="float32")
        origin = {"speaker": f"s{name}", "source": f"corpus {name}"}
        records.append(recorded(folder / f"{name}.flac", samples, rate, **origin))
    records.append(recorded(folder / "short.flac", samples[8000:8240]))
    records.append(recorded(folder / "silent.flac", np.zeros(24000)))
    records.append(Record("gone", str(folder / "gone.flac"), 16000, 16000))
    write_manifest(folder / "dev.jsonl", records)
    return folder / "dev.jsonl"


@pytest.fixture(scope="module")
def report(manifest: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the tiny model and of a folder with copies of the originals."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "copies").mkdir()
    for name in ("a", "b", "silent"):
        shutil.copy(manifest.parent / f"{name}.flac", folder / "copies")
    reconstructions = ["--reconstructions", f"copy@7.5={folder / 'copies'}"]
    assert evaluate_main(command(manifest, tiny_model_folder, folder / "r", *WHOLE, *reconstructions)) == 0
    return folder / "r"


def summary_of(report: Path) -> dict[str, Any]:
    return json.loads((report / "metrics.json").read_text(encoding="utf-8"))


def results(report: Path, system: str) -> dict[str, Any]:
    return next(entry["results"] for entry in summary_of(report)["systems"] if entry["id"] == system)


def outcomes(family: Family, x: np.ndarray, rate: int, name: str = "x", path: str = "x.wav") -> list[Any]:
    """What each system of a family makes of ``x [T]``."""
    return list(family.reconstruct(Record(name, path, len(x), rate), x))


class TestReport:
    def test_copies_have_the_best_values(self, report: Path) -> None:
        found = results(report, "folder-copy")
        best = {"pesq": 4.644, "stoi": 1, "estoi": 1, "mel": 0, "lsd": 0, "vuv_f1": 1, "f0_rmse": 0}
        best |= {"ripple": 0, "onset_blur": 0, "level": 0}
        assert {name: found[name]["mean"] for name in best} == pytest.approx(best, abs=1e-3)
        assert not COSTS.keys() & found.keys()  # nobody knows how large the files were
        assert {each.id: each.kbps for each in Results.read(report).systems}["folder-copy"] == 7.5  # but what was said

    def test_failures_are_counted_with_their_reason_and_never_averaged_in(self, report: Path) -> None:
        reasons = results(report, "folder-copy")["pesq"]["reasons"]
        assert reasons["no such file in the folder"] == 1  # short.flac was not copied
        assert any("silence" in reason for reason in reasons)
        assert any(reason.startswith("reference unreadable") for reason in reasons)
        model = results(report, "model-3")
        for name in ("pesq", "mel", "lsd", "si_sdr", "stoi", "vuv_f1"):  # nor do 10 ms or silence say anything
            assert (model[name]["n"], model[name]["failed"]) == (2, 3), name
        assert model["mel"]["reasons"]["shorter than a quarter of a second"] == 1
        rows = {(row.id, row.system): row for row in read_rows(report, Results.read(report))}
        assert len(rows) == 5 * 3
        assert rows["gone", "model-3"].failures == "all: reference unreadable: No such file or directory"
        values = [rows[name, "model-3"].values["pesq"] for name in ("a", "b")]
        assert model["pesq"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)

    def test_bitrates_weigh_files_by_their_seconds(self, report: Path) -> None:
        """The 10 ms clip, whose header alone is 45 kbit/s, counts as what it is: 10 ms."""
        rows = [row for row in read_rows(report, Results.read(report)) if row.system == "model-3"]
        rates = [(row.values["kbps_file"], row.seconds) for row in rows if row.values["kbps_file"]]
        assert len(rates) == 4 and max(rates)[0] > 40
        mean = sum(rate * seconds for rate, seconds in rates) / sum(seconds for _, seconds in rates)
        assert results(report, "model-3")["kbps_file"]["mean"] == pytest.approx(mean, rel=1e-3)

    def test_lines_and_spectra_are_of_the_wide_band_files(self, report: Path) -> None:
        spectra = summary_of(report)["spectra"]
        assert (spectra["step"], spectra["files"]) == (50, 1)
        assert set(spectra["systems"]) == {"model-3", "model-1", "folder-copy"}
        assert len(spectra["reference"]) * 50 == pytest.approx(12000, abs=50)
        assert spectra["systems"]["folder-copy"] == pytest.approx(spectra["reference"], abs=0.1)
        assert spectra["recorded"] == {}  # they all have that file
        found = results(report, "folder-copy")["lines"]
        assert (found["mean"], found["n"], found["low"], found["failed"]) == (0, 1, None, 0)
        assert results(report, "model-1")["lines"]["mean"] > 0  # the tiny model knows nothing of speech

    def test_codes_are_kept_and_every_utterance_counts(self, report: Path) -> None:
        """The numbers of health and stability are in ``test_golden.py``."""
        summary, codes = summary_of(report), sorted((report / "codes").iterdir())
        assert [path.name for path in codes] == [f"{index:06d}.codes" for index in range(4)]
        frames = sum(container.read(path)[1].shape[1] for path in codes)
        assert [stage["frames"] for stage in summary["health"]["stages"]] == 3 * [frames]
        changes = {entry["key"]: entry["changed"] for entry in summary["stability"]}
        assert changes and all(change["n"] + change["failed"] == 5 for change in changes.values())
        assert changes["slice"]["reasons"]["shorter than a quarter of a second"] == 1
        assert summary["interval"]["unit"] == "speakers" and {"pesq", "torch"} <= summary["software"].keys()

    def test_is_read_and_written_without_loss(self, report: Path, tmp_path: Path) -> None:
        found = Results.read(report)
        found.write(tmp_path)
        write_rows(tmp_path, read_rows(report, found))
        for name in ("metrics.json", "per_file.csv"):
            assert (tmp_path / name).read_bytes() == (report / name).read_bytes()
        other = summary_of(report) | {"colour": "blue"}  # of a version that has more, and lacks something
        other["systems"][0]["weight"] = 3
        del other["spectra"]
        (tmp_path / "metrics.json").write_text(json.dumps(other), encoding="utf-8")
        assert Results.read(tmp_path) == replace(found, spectra=None)

    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("metrics.json", '"format": 1', '"format": 2', "format 2 is not 1"),
            ("metrics.json", '"digits": 3', '"digits": "3"', "metrics.pesq.digits must be of type int"),
            ("per_file.csv", "speaker", "name", "has no 'speaker'"),
            ("per_file.csv", "\na,", "\nz\na,", "make the report again with codec-evaluate"),
        ],
        ids=range(4),
    )
    def test_that_is_damaged(
        self, name: str, old: str, new: str, message: str, report: Path, tmp_path: Path, refused: Refused
    ) -> None:
        for each in ("metrics.json", "per_file.csv"):
            shutil.copy(report / each, tmp_path)
        damaged, count = re.subn(old, new, (report / name).read_text(encoding="utf-8"), count=1, flags=re.DOTALL)
        (tmp_path / name).write_text(damaged, encoding="utf-8")
        assert count == 1
        refused(compare_main([str(report), str(tmp_path)]), message)


def test_every_system_is_loaded_once(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is coded twice. Odd files end nothing, and the health rests on no latents of what was refused."""
    calls = {name: Mock(wraps=getattr(Codec, name)) for name in ("from_pretrained", "encode", "decode")}
    for name, mock in calls.items():
        monkeypatch.setattr(Codec, name, lambda *args, mock=mock, **kwargs: mock(*args, **kwargs))
    stereo = 0.1 * np.random.default_rng(0).standard_normal((16000, 2))
    for name, samples in (("stereo", stereo), ("loud", np.full(16000, 50.0))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    records = [Record(f"{n}/x", str(tmp_path / f"{n}.wav"), 16000, 16000) for n in ("stereo", "loud")]
    write_manifest(tmp_path / "m.jsonl", records)
    options = ("--no-stability", "--num-quantizers", 2, 1)
    assert evaluate_main(command(tmp_path / "m.jsonl", tiny_model_folder, tmp_path / "r", *options)) == 0
    assert [mock.call_count for mock in calls.values()] == [1, 1, 2]  # of two files, one refused; with 2 and 1 stages
    found = results(tmp_path / "r", "model-2")["mel"]
    assert (found["n"], found["failed"]) == (1, 1) and "reaches 50" in next(iter(found["reasons"]))
    summary = summary_of(tmp_path / "r")
    assert summary["interval"]["unit"] == "files" and summary["stability"] == []
    assert summary["health"]["latents"]["frames"] == summary["health"]["stages"][0]["frames"] > 0


def test_where_every_utterance_fails_there_is_a_report(tiny_model_folder: Path, tmp_path: Path, stderr: Said) -> None:
    out = tmp_path / "r"
    write_manifest(tmp_path / "m.jsonl", [Record(name, f"{tmp_path}/gone.wav", 16000, 16000) for name in "ab"])
    assert evaluate_main(command(tmp_path / "m.jsonl", tiny_model_folder, out)) == 1
    assert "no metric has a value for any of the 2 utterances; see " in stderr()
    assert (out / "index.html").exists() and {row.id for row in read_rows(out, Results.read(out))} == {"a", "b"}


def test_files_that_cannot_be_measured_are_a_reason(tmp_path: Path) -> None:
    """One of them ended an evaluation of thousands."""
    for length, rate, message in ((968_001, 8000, "longer"), (8, 768_000, "none of FLAC's"), (8, 8000, "divide 16")):
        soundfile.write(tmp_path / "x.wav", np.full(8, 20.0), rate, "FLOAT")
        with pytest.raises(CodecError, match=message):
            read_utterance(Record("x", str(tmp_path / "x.wav"), length, rate))


class TestResuming:
    def test_goes_on_after_a_kill(
        self, manifest: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In the middle of a line; what is kept to listen to are the two that have a value, and the examples."""
        out, options = tmp_path / "r", ("--metrics", "lines", "mel", "--no-stability", "--examples", 1)
        arguments = command(manifest, tiny_model_folder, out, *options)
        assert evaluate_main(arguments) == 0
        whole = (out / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        before = results(out, "model-3")
        (out / "rows.jsonl").write_text("".join(whole[:2]) + whole[2][:50], encoding="utf-8")
        (out / "audio" / "000003").mkdir()  # its audio was being written
        capsys.readouterr()
        assert evaluate_main(arguments) == 0
        assert "2 of 5 utterances were measured before" in capsys.readouterr().out
        again = (out / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        assert again[:2] == whole[:2] and len(again) == 5 and results(out, "model-3") == before
        assert sorted(path.name for path in (out / "audio").iterdir()) == [f"{index:06d}" for index in (0, 1, 2)]
        examples = [("short", "example"), ("a", "worst"), ("b", "worst")]
        assert [(each["id"], each["why"]) for each in summary_of(out)["examples"]] == examples
        assert evaluate_main([*arguments, "--examples", "5"]) == 0  # measures those again whose audio is gone
        assert "3 of 5 utterances were measured before" in capsys.readouterr().out
        assert [each["id"] for each in summary_of(out)["examples"]] == ["short", "silent", "a", "b"]

    def test_does_not_mix_evaluations(self, manifest: Path, tmp_path: Path, refused: Refused) -> None:
        """Nor those of files that have changed."""
        copies = tmp_path / "copies"
        copies.mkdir()
        shutil.copy(manifest.parent / "a.flac", copies)
        arguments = command(manifest, "none", tmp_path / "r", "--reconstructions", f"copy={copies}")
        assert evaluate_main(arguments) == 0
        (tmp_path / "r" / "rows.jsonl").write_text("{}\n")
        refused(evaluate_main(arguments), "rows.jsonl is damaged")
        assert evaluate_main([*arguments, "--force"]) == 0
        (tmp_path / "run.json").write_text('{"name": "of another program"}')
        refused(evaluate_main([*arguments, "--out", str(tmp_path), "--force"]), "not empty and no evaluation")
        shutil.copy(manifest.parent / "b.flac", copies)
        refused(evaluate_main(arguments), "something else")
        assert evaluate_main([*arguments, "--force"]) == 0
        assert results(tmp_path / "r", "folder-copy")["mel"]["n"] == 2

    @pytest.mark.slow
    def test_several_processes_measure_the_same(
        self, report: Path, manifest: Path, tiny_model_folder: Path, tmp_path: Path
    ) -> None:
        options = ("--workers", 2, "--metrics", "pesq", "--num-quantizers", 3, 1, "--no-stability")
        assert evaluate_main(command(manifest, tiny_model_folder, tmp_path, *options)) == 0
        for system in ("model-3", "model-1"):
            assert results(tmp_path, system)["pesq"] == results(report, system)["pesq"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--metrics", "loudness"], "no metric loudness"),
        (["--reconstructions", "x@fast=."], "NAME@KBPS=DIR"),
        (["--reconstructions", "x=nowhere"], "no folder of reconstructions"),
        (["--num-quantizers", "4"], "1 to 3"),
        (["--model", "none"], "nothing to measure"),
        (["--every", "0"], "at least 1"),
        (["--device", "cuda:77"], "use --device cpu"),
        (["--reconstructions", "a b=.", "--reconstructions", "a-b=."], "two systems would both be called folder-a-b"),
    ],
)
def test_wrong_use(
    arguments: list[str], message: str, manifest: Path, tiny_model_folder: Path, tmp_path: Path, refused: Refused
) -> None:
    refused(evaluate_main(command(manifest, tiny_model_folder, tmp_path / "r", *arguments)), message)
    assert not (tmp_path / "r").exists()


def test_what_is_not_here_is_said_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(KNOWN, "missing", replace(KNOWN["mel"], package="nowhere"))
    names, absent = present_metrics(None)
    assert {"mel", "rtf"} <= set(names) and "missing" not in names
    assert "package nowhere is missing: pip install nowhere" in {each.reason for each in absent}
    programs, absent = present_programs(["opus", "codec2"])
    assert programs == () and "opus-tools" in absent[0].reason and "c2enc" in absent[1].reason
    with pytest.raises(EvaluationError, match="--metrics missing: package nowhere is missing: pip install nowhere"):
        present_metrics(["mel", "missing"])


class TestCompare:
    def test_a_report_differs_from_itself_by_nothing(self, report: Path) -> None:
        differences = compare(Report(report), Report(report))
        metrics = {difference.metric for difference in differences}
        assert metrics >= {"pesq", "stoi", "mel", "level"} and not metrics & {"rtf", "lines"}
        for difference in differences:
            assert difference.difference.mean == 0 and not difference.clear and difference.unpaired == 0
            assert difference.share_better == 0.5

    def test_pairs_of_systems(self, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = [str(report), str(report), "--pair", "model-3:folder-copy"]
        assert compare_main([*command, "--metrics", "pesq"]) == 0
        shown = capsys.readouterr().out
        assert "PESQ-WB" in shown and "[no interval]  B better on 100 %  (n 2)" in shown
        assert compare_main([*command, "--json"]) == 0
        better = {each["metric"]: each for each in json.loads(capsys.readouterr().out)}
        gap = better["pesq"]["mean_b"] - better["pesq"]["mean_a"]
        assert better["pesq"]["difference"]["mean"] == pytest.approx(gap) and not better["pesq"]["clear"]
        assert (better["mel"]["share_better"], better["mel"]["difference"]["n"], better["mel"]["unpaired"]) == (1, 2, 0)
        assert compare_main([*command[:3], "opus-6:model-3"]) == 1 and "no system opus-6" in capsys.readouterr().err


class TestStatistics:
    def test_the_share_of_intervals_that_hold_the_truth(self) -> None:
        rng = np.random.default_rng(2)
        units = [str(i) for i in range(60)]
        estimates = [bootstrap_mean(rng.exponential(1.0, 60).tolist(), units) for _ in range(200)]
        held = [each.low <= 1.0 <= each.high for each in estimates]  # type: ignore[operator]
        assert 0.88 <= np.mean(held) <= 0.99

    def test_alike_values_of_a_speaker_widen_it(self) -> None:
        values = [float(i // 20) for i in range(200)]
        alone = bootstrap_mean(values, [str(i) for i in range(200)])
        grouped = bootstrap_mean(values, [str(i // 20) for i in range(200)])
        assert alone.mean == grouped.mean == 4.5
        assert grouped.high - grouped.low > 3 * (alone.high - alone.low)  # type: ignore[operator]

    def test_nothing_and_one(self) -> None:
        assert Estimate(2.5, 2.25, 2.75, 9).text(".2f") == "2.50 ±0.25"
        assert bootstrap_mean([], []).text(".1f") == "-"
        for units in (["x", "x"], ["x", "y"]):  # of two speakers, the lowest and the highest would be the interval
            few = bootstrap_mean([2.0, 4.0], units)
            assert (few.mean, few.low, few.high, few.n) == (3.0, None, None, 2)


class TestAlignment:
    @pytest.mark.parametrize("delay", [-900, -1, 0, 37, 3000])
    def test_a_waveform_is_found_to_the_sample(self, delay: int, speech: tuple[np.ndarray, int]) -> None:
        x, rate = speech
        noisy = x + 0.003 * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
        moved = np.pad(noisy, (delay, 0)) if delay >= 0 else noisy[-delay:]
        assert systems.find_delay(x, moved, rate) == systems.find_delay(x, -moved, rate) == delay
        back = systems.align(x, moved, rate)
        assert len(back) == len(x) and np.allclose(back[3000:-3000], noisy[3000:-3000])

    def test_new_phases_are_found_by_the_envelope(self, speech: tuple[np.ndarray, int]) -> None:
        x, rate = speech
        envelope = np.sqrt(np.convolve(x**2, np.ones(rate // 100) / (rate // 100), "same"))
        # the levels of speech, none of its waveform
        noise = (envelope * np.random.default_rng(0).standard_normal(len(x))).astype(np.float32)
        moved = np.pad(noise, (round(0.04 * rate), 0))
        assert systems.find_delay(x, moved, rate) / rate == pytest.approx(0.04, abs=0.004)
        assert abs(systems.find_delay(x, noise, rate)) / rate <= 0.004

    def test_silence_has_no_delay(self) -> None:
        assert systems.find_delay(np.zeros(8000, np.float32), np.ones(8000, np.float32), 8000) == 0
        assert systems.find_delay(np.zeros(3, np.float32), np.zeros(2, np.float32), 8000) == 0


class TestClassicalCodecs:
    @pytest.fixture(autouse=True)
    def programs(self) -> None:
        _, absent = present_programs(["opus", "codec2"])
        if absent and os.environ.get("CODEC_REQUIRE_TOOLS") != "1":
            pytest.skip("; ".join(each.reason for each in absent))
        assert not absent

    def test_more_bits_are_better(self, speech: tuple[np.ndarray, int]) -> None:
        x, rate = 6 * speech[0] / np.abs(speech[0]).max(), speech[1]  # beyond full scale, which their files do not hold
        family = OpusFamily((6, 24))
        assert family.systems[0].how.startswith("opusenc opus-tools")
        low, high = (np.corrcoef(x, made.waveform)[0, 1] for made in outcomes(family, x, rate))
        assert high > low > 0.4 and high > 0.95  # and so they are aligned

    def test_codec2_comes_back_in_time(self, speech: tuple[np.ndarray, int]) -> None:
        x, rate = speech
        family = Codec2Family()
        for system, made in zip(family.systems, outcomes(family, x, rate), strict=True):
            assert made.waveform.shape == x.shape
            kbps = len(made.coded) * 8 / (len(x) / rate) / 1000
            assert 1 <= kbps / system.kbps < 1.25  # whole bytes per frame
            assert pystoi.stoi(x, made.waveform, rate) > 0.5

    def test_a_program_that_fails_is_a_failure_with_its_words(self, speech: tuple[np.ndarray, int]) -> None:
        (said,) = outcomes(Codec2Family(["7"]), *speech)
        assert "c2enc failed" in said


def test_reconstructions_are_found_by_their_place(tmp_path: Path) -> None:
    """Two speakers' files of one name are never taken for each other."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    for name in ("two/001", "alone"):
        path = tmp_path / "made" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise, 16000)
    family = FolderFamily("made", tmp_path / "made")
    places = {"two/001": "a", "two/001.wav": "a", "x17": "alone", "a/alone.wav": "a/alone", "2": "two/001"}
    for name, path in places.items():
        (made,) = outcomes(family, noise, 16000, name, f"/corpus/{path}.wav")
        assert np.allclose(made.waveform, noise, atol=1e-4)
    assert outcomes(family, noise, 16000, "one/001.wav", "/corpus/one/001.wav") == ["no such file in the folder"]
    assert outcomes(family, noise, 16000, "x17", "/corpus/two/alone.wav") == ["no such file in the folder"]
    family.check([Record("x17", "/corpus/alone.wav", 1, 1), Record("b", "/corpus/alone.wav", 1, 1)])  # of one recording
    with pytest.raises(CodecError, match="flac would stand for both 1 and 2"):
        family.check([Record(str(n), f"/corpus/{n}/alone.wav", 1, 1) for n in (1, 2)])


def test_reports_are_plotted(report: Path, tmp_path: Path, refused: Refused) -> None:
    for reports in ([report], [f"0={report}", f"100={report}"]):
        out = tmp_path / f"{len(reports)}.png"
        assert recipe("plot_reports", *reports, "--out", out) == 0 and out.read_bytes().startswith(b"\x89PNG")
        refused(recipe("plot_reports", *reports, "--out", out), "--force overwrites it\n")
    refused(recipe("plot_reports", tmp_path, "--out", tmp_path / "none.png"), "is no finished report")
    refused(recipe("plot_reports", f"2.5={report}"), "several reports are given as STEP=REPORT")
    refused(recipe("plot_reports", report, "--out", tmp_path / "none.txt"), "not written as '.txt'; take .png")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /dev/full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.flac").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        systems.write_pcm(tmp_path / "x.flac", np.zeros(24000, np.float32), 24000)
