"""The report's page from a synthetic folder: well-formed, escaped, complete; and what it says of bad folders."""

from __future__ import annotations

import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from report_folder import METRICS, NASTY, SOURCE, SPEAKER, SYSTEMS, make_folder, metrics_json

from codec.evaluation.page.html import duration, esc, moment, number, percent
from codec.evaluation.page.plots import _apart, linear_ticks, log_ticks
from codec.evaluation.page.report import write_report
from codec.evaluation.page.results import bitrate_classes
from codec.evaluation.page.spectrograms import height_of, spectrograms
from codec.evaluation.results import read_metrics

VOID = {"meta", "link", "img", "br", "input", "path", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute twice in {tag} {attrs}"
        assert not [name for name in values if name.startswith("on")]
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v is not None]
        self.links += [v for k, v in attrs if k in ("href", "src") and v is not None]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished report."""
    path = make_folder(tmp_path_factory.mktemp("report") / "a folder #1")
    assert write_report(path) == path / "index.html"
    return path


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(folder: Path, source: str, page: Page) -> None:
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    files = {link for link in page.links if not link.startswith(("#", "data:"))}
    assert len([f for f in files if f.endswith(".flac")]) == len([f for f in files if f.endswith(".png")]) == 16
    assert all((folder / re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), f)).is_file() for f in files)
    outside = source.replace("http-equiv", "")
    assert "http" not in outside and "@import" not in outside and "url(" not in outside
    assert {p.name for p in folder.iterdir()} == {"metrics.json", "per_file.csv", "audio", "images", "index.html"}
    assert "$" not in re.sub(r"<script.*?</script>", "", source, flags=re.DOTALL), "a template's field was left"


def test_what_comes_from_data_is_escaped(source: str, page: Page) -> None:
    assert page.tags.count("script") == 2 and "alert(1)" not in re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert NASTY in page.text and SPEAKER in page.text and "Codec 2 <1300>" in page.text and "<needed>" in page.text
    data = re.search(r'<script type="application/json" id="files-data">(.*?)</script>', source, re.DOTALL)
    assert data is not None and any(row[1] == NASTY for row in json.loads(data[1])["rows"])


@pytest.mark.parametrize("key", [key for key, *_ in SYSTEMS])
def test_every_mean_and_interval_stands_rounded_in_the_results(key: str, source: str) -> None:
    results = source[source.index('id="results"') : source.index('id="quality"')]
    system = next(s for s in metrics_json()["systems"] if s["id"] == key)
    row = re.search(rf"<tr[^>]*><th scope=\"row\">{re.escape(esc(system['name']))}<.*?</tr>", results, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td.*?</td>", row[0])
    assert len(cells) == len(METRICS)
    for (name, (_, _, _, digits, _, _)), cell in zip(METRICS.items(), cells, strict=True):
        result = system["results"].get(name)
        text = re.sub("<[^>]+>", " ", cell).replace("\u2212", "-")
        if result is None:
            assert text.strip() == "not measured"
        elif result["mean"] is None:
            assert "n 0" in text and "111 failed" in text and not re.search(r"\d\.\d", text)
        else:
            assert [float(v) for v in re.findall(r"-?\d+\.\d+", text)] == [
                float(f"{result[k]:.{digits}f}") for k in ("mean", "low", "high")
            ]
            assert f"n {result['n']}" in text and (f"{result['failed']} failed" in text) == (result["failed"] > 0)


def test_what_is_absent_or_failed_is_said_with_the_reason(page: Page) -> None:
    assert "UTMOS (metric): absent, package utmos is not installed" in page.text
    assert "EnCodec (system): absent, package transformers is not installed" in page.text
    assert "NoUtterancesError: 1 file" in page.text and "<too short>: 1 file" in page.text
    assert "2 of 111" in page.text and "111 of 111" in page.text
    assert page.text.count("MetricError: 111 filesCodec 2 <1300>") == 1


def test_systems_that_fail_alike_share_a_row(tmp_path: Path) -> None:
    content = metrics_json(examples=False)
    for system in content["systems"]:
        system["results"]["mel"] |= {"failed": 3, "reasons": {"MetricError": 2}}
    page = Page(write_report(make_folder(tmp_path, 2, content)).read_text(encoding="utf-8"))
    assert "Mel distance3 of 114MetricError: 2 filesno reason recorded: 1 fileall 7 systems" in page.text


def test_how_it_was_measured_and_facts(page: Page) -> None:
    for label, unit, _, _, how, package in METRICS.values():
        assert label in page.text and unit in page.text and how in page.text and (package or "") in page.text
    assert "Folders by the <peak> of correlation." in page.text
    for said in ("5,412,345", "0123456789abcdef", "ab" * 32, "report <1>", "23 November 2026, 08:00 UTC", "AMD EPYC"):
        assert said in page.text
    assert "95\u2009% interval by bootstrap over speakers (2,000 resamples, seed 0)" in page.text


def test_codebooks_and_stability(page: Page) -> None:
    for said in ("55,310", "99.3\u2009%", "612", "92.6\u2009%", "0.01\u2009%", "12.3 of 16", "53.0\u2009%", "31.2"):
        assert said in page.text
    assert "input shifted by a quarter of a hop" in page.text and "42.1\u2009%[40.1, 44.0]n 111" in page.text


def test_worst_file_comes_first_and_no_value_is_the_worst(source: str) -> None:
    body = re.search(r'id="files-table">.*?<tbody>(.*?)</tbody>', source, re.DOTALL)
    assert body is not None
    rows = body[1].split("\n")
    assert len(rows) == 40 and sum('class="worst"' in row for row in rows) == 10
    # two files that the others have a value for and this system has not: nothing is worse
    assert all("NoUtterancesError" in row and "file-000" in row for row in rows[:2])
    assert f'<a href="#example-1">{esc(NASTY)}</a>' in rows[2] and ">1.032<" in rows[2]
    values = [float(re.findall(r'class="num">([\d.]+)<', row)[1]) for row in rows[2:]]
    assert values == sorted(values)


@pytest.mark.parametrize("part", ["absent", "model", "health", "stability", "examples"])
@pytest.mark.parametrize("how", ["null", "missing", "empty"])
def test_optional_parts_may_be_missing(part: str, how: str, tmp_path: Path) -> None:
    content: dict[str, Any] = metrics_json(examples=False)
    if how == "null":
        content[part] = None
    elif how == "missing":
        del content[part]
    elif part in ("model", "health"):
        content["health"] = {"stages": [], "latents": None, "notes": []}
    else:
        content[part] = []
    make_folder(tmp_path, 3, metrics_json(examples=False))
    (tmp_path / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    Page(write_report(tmp_path).read_text(encoding="utf-8"))


def test_least_report(tmp_path: Path) -> None:
    """One system without a bitrate, one metric without a value, no file."""
    content = {k: v for k, v in metrics_json(False).items() if k not in ("health", "stability", "model", "absent")}
    content["metrics"] = {"pesq": content["metrics"]["pesq"]}
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    content["systems"] = [content["systems"][-1] | {"results": {"pesq": nothing}}]
    make_folder(tmp_path, 0, content | {"examples": []})
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No system has both a bitrate and a value to plot." in page.text
    assert "nan" not in page.text.lower() and "None" not in page.text


def test_bitrate_classes_and_best_marks(folder: Path, source: str) -> None:
    classes = bitrate_classes(read_metrics(folder).systems)
    assert [(title, [s.id for s in systems]) for title, systems in classes] == [
        ("Up to 1 kbit/s", ["model-1"]),
        ("Above 1, up to 2 kbit/s", ["model-2", "codec2-1.3"]),
        ("Above 4, up to 8 kbit/s", ["model-8", "opus-6"]),
        ("Above 8, up to 16 kbit/s", ["opus-12"]),
        ("No bitrate given", ["other"]),
    ]
    marked = re.findall(r'aria-label="(best[^"]*)">.</span><b>([^<]+)</b>', source)
    # PESQ and mel overlap; STOI has no rival there; SI-SDR is clear. Of 6 kbit/s: all overlap. Bitrates are not judged.
    assert [kind == "best, interval clear of the others" for kind, _ in marked] == [False, True, False, *[False] * 4]


def test_results_by_source(source: str, tmp_path: Path) -> None:
    results = source[source.index('id="results"') : source.index('id="quality"')]
    tables = re.findall(r"<details.*?</details>", results, re.DOTALL)
    assert [re.findall(r"<summary>(.*?) <small>", made)[0] for made in tables] == [
        "PESQ-WB",
        "STOI",
        "SI-SDR",
        "Mel distance",
    ]
    assert f">{esc(SOURCE)}</th>" in tables[0] and ">source not given</th>" in tables[0]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", tables[0], re.DOTALL)
    assert len(rows) == len(SYSTEMS)
    cells = [re.sub("<[^>]+>", " ", cell).split() for cell in re.findall("<td.*?</td>", rows[0])]
    assert cells == [["2.718", "n", "3"], ["2.346", "[2.100,", "2.500]", "n", "106", "·", "2", "failed"]]
    assert rows[1].count("not measured") == 2
    alone = metrics_json(examples=False)
    del alone["systems"][0]["by_source"]
    assert "By source" not in write_report(make_folder(tmp_path, 2, alone)).read_text(encoding="utf-8")


def test_spectrograms_show_a_tone_where_it_is(tmp_path: Path) -> None:
    """Same axes for all: a tone at another sample rate lies at the same height, and silence is dark."""
    for name, rate in (("a.wav", 24000), ("b.wav", 16000)):
        soundfile.write(tmp_path / name, 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate)
    soundfile.write(tmp_path / "silent.wav", np.zeros(12000), 24000)
    images, rate = spectrograms([tmp_path / name for name in ("a.wav", "b.wav", "silent.wav")])
    assert rate == 24000
    pixels = [_pixels(image) for image in images]
    for image in pixels[:2]:
        assert abs((160 - image[:, 240].argmax()) / 160 - height_of(1000, 24000)) < 0.02
    assert pixels[0].max() == 63 and pixels[2].max() == 0


@pytest.mark.parametrize("samples", [0, 1, 100, 24000 * 70])
def test_spectrograms_of_any_length(samples: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(samples), 24000)
    (image,), _ = spectrograms([tmp_path / "a.wav"])
    assert _pixels(image).shape == (160, 480)


def test_numbers() -> None:
    assert (number(-0.0004, 3), number(-1.25, 1), number(2.0, 0)) == ("0.000", "\u22121.2", "2")
    assert (percent(0.5), percent(1.0), percent(0.0)) == ("50.0\u2009%", "100.0\u2009%", "0.0\u2009%")
    assert (percent(0.99999), percent(0.00001)) == ("&gt;\u200999.9\u2009%", "&lt;\u20090.1\u2009%")
    assert (duration(6.24), duration(738.1), duration(9000)) == ("6.2\u00a0s", "12.3\u00a0min", "2.5\u00a0h")
    assert moment("2026-11-23T10:00:00+02:00").endswith(">23 November 2026, 08:00 UTC</time>")
    assert moment("<yesterday>") == "&lt;yesterday&gt;"
    assert esc("a\x00\x1b\ud800") == "a\ufffd\ufffd\ufffd"


def test_ticks() -> None:
    assert log_ticks(0.75, 24) == [1, 2, 5, 10, 20]
    assert len(log_ticks(6, 6)) >= 1 and len(log_ticks(1.2, 3.2)) >= 3
    for low, high in ((1.04, 4.64), (0.6, 0.9), (-4.1, 8.2), (2.0, 2.0), (0.0, 0.0)):
        ticks = linear_ticks(low, high)
        assert 2 <= len(ticks) <= 7 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    moved = _apart([50.0, 10.0, 11.0, 99.0, 98.0], 5.0, 0.0, 100.0)
    assert moved == [50.0, 10.0, 15.0, 100.0, 95.0]


def _pixels(png: bytes) -> Any:
    """Palette indices of an image as ``_png`` writes it, ``[height, width]``."""
    width, height = struct.unpack(">II", png[16:24])
    at = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[at - 4 : at])
    rows = np.frombuffer(zlib.decompress(png[at + 4 : at + 4 + length]), np.uint8).reshape(height, width + 1)
    return rows[:, 1:].astype(int)


def test_a_system_is_plotted_at_the_rate_of_its_files(tmp_path: Path) -> None:
    content = metrics_json(examples=False)
    system = content["systems"][0]
    system["how"] = "encoded & decoded"
    content["metrics"]["kbps_file"] = content["metrics"]["pesq"] | {"label": "file bitrate", "better": "lower"}
    for each in content["systems"]:
        each["results"].pop("kbps_file", None)
    system["results"]["kbps_file"] = {"mean": 7.39, "low": 7.1, "high": 7.6, "n": 111, "failed": 0, "reasons": {}}
    html = write_report(make_folder(tmp_path, 2, content)).read_text(encoding="utf-8")
    assert f"{system['name']}, 7.39 kbit/s:" in html and "encoded &amp; decoded" in html
