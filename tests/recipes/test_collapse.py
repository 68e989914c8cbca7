"""The collapse study in small: a cell end to end, the plane, and the formula behind the claim."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loading import Refused, load_script, python
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from codec.config import ConfigError, to_dict
from codec.corpus.manifest import Record

plane = load_script("recipes/collapse/plane.py")
report = load_script("recipes/collapse/report.py")
run = load_script("recipes/collapse/run.py")
CONFIGS = sorted((Path(run.__file__).parent).glob("*.yaml"))
TINY = {
    "model": to_dict(load_script("tests/golden/make.py").tiny_config("simvq")),
    "quantizers": {"vq": {"kind": "vq", "codebook_dim": 8}, "simvq": {"kind": "simvq", "codebook_dim": 8},
                   "residual_simvq": {"kind": "residual_simvq", "codebook_dim": 8, "num_quantizers": 2}},
    "cells": [
        {"quantizers": ["vq", "simvq"], "codebook_sizes": [32], "starts": ["default", "matched"], "seeds": [0, 1]},
        {"quantizers": ["residual_simvq"], "codebook_sizes": [32], "starts": ["scratch"]},
        {"quantizers": ["vq"], "codebook_sizes": [32], "starts": ["first_batch", "after"]},
    ],
    "batch_size": 2, "segment_seconds": 0.25, "warmup": 2, "steps": 3, "ramp": 1, "held_out": 2,
    "measure_segments": 3, "measure_seconds": 0.5, "listen_segments": 2, "match_segments": 4,
}  # fmt: skip


@pytest.mark.slow
def test_a_study_runs_resumes_and_reports(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    arguments = ["--manifest", str(corpus / "train.jsonl"), "--config", str(config), "--out", str(out)]
    assert run.main([*arguments, "--only=-seed0"]) == 0
    first = {path.name: path.read_bytes() for path in out.glob("*-seed*.json")}
    assert set(first) == {f"{q}-32-{s}-seed0.json" for q in ("vq", "simvq") for s in ("default", "matched")} | {
        "residual_simvq-32-scratch-seed0.json", "vq-32-first_batch-seed0.json", "vq-32-after-seed0.json",
    }  # fmt: skip
    (out / "vq-32-matched-seed0.json").unlink()
    assert run.main(arguments) == 0
    again = {path.name: path.read_bytes() for path in out.glob("*-seed*.json")}
    assert len(again) == 11 and all(again[name] == first[name] for name in first if "vq-32-matched" not in name)
    a, b = (json.loads(files["vq-32-matched-seed0.json"]) for files in (first, again))
    assert a["measured"] == b["measured"] and a["curve"] == b["curve"], "a cell is a function of its seed"
    result = json.loads(again["simvq-32-default-seed0.json"])
    assert result["steps"] == len(result["curve"]["mel"]) == 3 and result["measured"]["stages"][0]["frames"] == 300
    assert result["measured"]["scored"] + result["measured"]["not_scored"] == TINY["listen_segments"]
    vq = json.loads(again["vq-32-default-seed0.json"])
    assert vq["curve"]["codes_in_step"][0] == result["curve"]["codes_in_step"][0], "both start with the same codes"
    assert vq["curve"]["mel"][0] == result["curve"]["mel"][0]
    for name in ("residual_simvq-32-scratch", "vq-32-first_batch"):
        assert json.loads(again[f"{name}-seed0.json"])["steps"] == 5
    after = json.loads(again["vq-32-after-seed0.json"])
    assert after["steps"] == 0 and after["first_step"] == 5 and after["measured"]["mel"] != vq["measured"]["mel"]
    directions = after["measured"]["directions"]
    assert directions["variance"] == sorted(directions["variance"], reverse=True) and min(directions["heard"]) >= 0
    for error, variance in zip(directions["error"], directions["variance"], strict=True):
        assert error <= 1.001 * variance + 1e-9  # a direction of hardly any variance may be rounded to none

    page, own, filling = tmp_path / "page", tmp_path / "own.jsonl", tmp_path / "filling.jsonl"
    page.mkdir()
    marks = map("<!-- table {} -->\nold\n<!-- end -->\n".format, ("headline", "residual", "runs", "filling", "experts"))
    (page / "README.md").write_text(f"a\n{''.join(marks)}b\n", encoding="utf-8")
    mixture = {"shared": "experts", "usage": [0.5, 0.25, 0.75], "error": [0.1, 0.05, 0.2]}
    (page / "toys.json").write_text(json.dumps({"mixture": [mixture]}), encoding="utf-8")
    assert report.main([str(out), "--into", str(page)]) == 0
    text = (page / "README.md").read_text(encoding="utf-8")
    assert text.startswith("a\n<!-- table headline -->\n| V |") and text.endswith("<!-- end -->\nb\n")
    assert "old" not in text and "| 32 | **SimVQ** | 2 |" in text and " to " in text
    assert "| the experts | 50.0% (25.0% to 75.0%) | 0.100" in text
    kept = (page / "results.jsonl").read_text(encoding="utf-8")
    assert report.main([str(page / "results.jsonl"), str(out), "--into", str(page)]) == 0, "a page grows by more cells"
    assert (page / "README.md").read_text(encoding="utf-8") == text
    assert sorted((page / "results.jsonl").read_text(encoding="utf-8").splitlines()) == sorted(kept.splitlines())
    stack = json.loads(again["residual_simvq-32-scratch-seed0.json"])
    own.write_text(json.dumps(stack | {"study": "own"}), encoding="utf-8")
    filling.write_text(kept.replace('"study": "tiny"', '"study": "filling"'), encoding="utf-8")
    assert report.main([str(out), str(own), str(filling), "--into", str(page)]) == 0
    text = (page / "README.md").read_text(encoding="utf-8")
    assert "| own | residual SimVQ |" in text and "own.yaml: 1 cells" in text and "| 5 | after | plain VQ | 1 |" in text
    own.write_text(json.dumps(stack | {"batch_size": 4, "start": "default"}), encoding="utf-8")
    refused(report.main([str(out), str(own), "--into", str(page)]), "settings or speech are called tiny")

    (out / "vq-32-default-seed1.json").write_bytes(again["vq-32-default-seed1.json"][:-1])
    refused(run.main(arguments), "is damaged")  # as one that was cut
    (out / "vq-32-default-seed1.json").unlink()
    config.write_text(yaml.safe_dump(TINY | {"steps": 4}), encoding="utf-8")
    refused(run.main(arguments), "or of other settings or other speech")  # and is not taken for this study's
    assert {path.name for path in page.iterdir()} == {"README.md", "results.jsonl", "filling.png", "toys.json"}


@pytest.mark.parametrize("bits", [0.5, 6, 60])
def test_water_filling_spends_the_bits_on_what_rises_above_the_level(bits: float) -> None:
    torch.manual_seed(0)
    spectrum = (3 * torch.randn(12).double()).exp().sort(descending=True).values
    error = torch.tensor(report.water_filling(spectrum.tolist(), bits), dtype=torch.float64)
    assert float((spectrum / error).log2().sum() / 2) == pytest.approx(bits)
    torch.testing.assert_close(error, spectrum.clamp(max=float(error.max())))


def test_speakers_are_held_out_whole(corpus: Path) -> None:
    records = run.read_manifest(corpus / "train.jsonl")
    twice = [*records, *(Record("other", r.path, 1, 1, speaker=r.speaker) for r in records)]
    assert [run.is_held_out(r, 2) for r in twice[:6]] == [run.is_held_out(r, 2) for r in twice[6:]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_studies_can_be_read_and_every_quantizer_built(path: Path) -> None:
    config = run.load_study(path)  # builds them
    assert len(run.cells_of(config)) >= 2 and config.quantizers.keys() <= report.NAMES.keys()


@pytest.mark.slow
def test_the_plane_shows_what_it_says(tmp_path: Path) -> None:
    small = ("--steps", "80", "--remedy-steps", "3", "--seeds", "0", "--frames", "2")
    assert plane.main(["--out", str(tmp_path), *small]) == 0
    numbers = json.loads((tmp_path / "plane.json").read_text(encoding="utf-8"))
    step = numbers["one_step"]
    assert step["formula_largest_deviation"] < 1e-5 * step["largest_move"], "the formula is what a step does"
    assert step["simvq_moved"] == 1.0 and step["vq_moved"] == pytest.approx(1 / 60)
    assert numbers["plane"]["cloud simvq"]["moved"] == 1.0 and numbers["plane"]["cloud vq"]["moved"] < 0.5
    assert numbers["plane"]["cloud simvq"]["usage"] > 1.5 * numbers["plane"]["cloud vq"]["usage"]
    assert len(numbers["remedies"]["rows"]) == 16
    assert {path.name for path in tmp_path.iterdir()} == {"plane.gif", "step.png", "remedies.png", "plane.json"}
    assert (tmp_path / "plane.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.slow
def test_the_page_shows_what_its_text_says(phone: Any) -> None:
    phone.get(Path(run.__file__).with_name("plane.html").as_uri())

    def share(quantizer: str) -> str:
        return phone.find_element(By.ID, f"{quantizer}-share").text

    assert share("vq") == share("simvq") == "100 %", "both start with all codes in use"
    phone.find_element(By.ID, "step").send_keys(Keys.END)
    assert phone.find_element(By.ID, "now").text == "2,000 of 2,000"
    for shape in ("islands", "drift"):
        Select(phone.find_element(By.ID, "shape")).select_by_value(shape)
        for quantizer in ("vq", "simvq"):
            said = phone.find_element(By.CSS_SELECTOR, f"[data-said={shape}-{quantizer}]").text
            assert share(quantizer) == said, (shape, quantizer)
    for codes in ("64", "512"):
        Select(phone.find_element(By.ID, "codes")).select_by_value(codes)
        assert phone.find_element(By.ID, "vq-used").text.endswith(f" of {codes} codes in use")
        assert int(share("vq")[:-2]) < 35 and int(share("simvq")[:-2]) > 80
    phone.find_element(By.ID, "play").click()  # from the end: over again
    assert phone.find_element(By.ID, "now").text != "2,000 of 2,000"
    assert phone.execute_script("return document.documentElement.scrollWidth") == 390, "nothing scrolls sideways"
    assert "://" not in phone.page_source, "the page asks for nothing from elsewhere"


def test_mistakes_in_a_study_are_named(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    config, file, sizes = tmp_path / "study.yaml", tmp_path / "file", {"codebook_sizes": [32]}
    for wrong, message in (
        ({"cells": [sizes | {"quantizers": ["vqq"]}]}, "cell vqq-32-default-seed0: vqq is not in quantizers"),
        ({"weights": {"mell": 1.0}}, "unknown term mell"),
        ({"cells": [{"quantizers": ["vq"], "codebook_sizes": [0]}]}, "sizes must be from 2 to 4.29497e.09, not 0"),
        ({"cells": []}, "cells: there are none"),
        ({"quantizers": TINY["quantizers"] | {"simvq": {"kind": "vqq"}}}, "cell simvq-32-default-seed0: .* not 'vqq'"),
    ):
        config.write_text(yaml.safe_dump(TINY | wrong), encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            run.load_study(config)
    config.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    file.write_text("no result\n", encoding="utf-8")
    good = ["--manifest", str(corpus / "train.jsonl"), "--config", str(config), "--out", str(tmp_path)]
    for main, arguments, message in (
        (run.main, [*good, "--only", "nothing"], "no cell of"),
        (report.main, [str(tmp_path)], "no result files"),
        (report.main, [str(file)], "is no result"),
    ):
        refused(main(arguments), message)


@pytest.mark.slow
def test_digits_says_how_many_codes_are_used() -> None:
    script = Path(run.__file__).with_name("digits.py").read_text(encoding="utf-8")
    lines = python(script, "--codes", 32, "--steps", 30, "--warmup", 2).stdout.splitlines()
    assert lines[3].startswith("held out: error 0.") and "of 32 codes used in 4,752 frames" in lines[4]
