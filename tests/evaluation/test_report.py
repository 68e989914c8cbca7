"""The report's page of a made-up evaluation: well-formed, escaped, complete."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from PIL import Image
from report_folder import EXAMPLES, METRICS, NASTY, NOTHING, SOURCE, SPEAKER, SYSTEMS, make_report, make_results

from codec.evaluation.page.plots import duration, linear_ticks, log_ticks, number, percent, short
from codec.evaluation.page.spectrograms import height_of, spectrograms

VOID = {"meta", "link", "img", "br", "input", "path"}


class Page(HTMLParser):
    """A page whose elements nest, as a tree."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.builder = ElementTree.TreeBuilder()
        self.folder = path.parent
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.tree = self.builder.close()
        self.text = "".join(self.tree.find("body/main").itertext())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"an attribute twice in {tag} {attrs}"
        self.builder.start(tag, values)
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.builder.end(tag).tag == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.builder.data(data)

    def rows(self, section: str) -> list[list[str]]:
        """The text of the cells of all rows in the section with this id."""
        rows = self.tree.iterfind(f".//section[@id='{section}']//tr")
        return [[" ".join(" ".join(cell.itertext()).split()) for cell in row] for row in rows]

    def cells(self, section: str, name: str) -> list[str]:
        """The cells of the first row in a section that is headed by ``name``, without the name."""
        return next(row for row in self.rows(section) if row[0].startswith(name))[1:]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(make_report(tmp_path_factory.mktemp("report") / "a folder #1", 40, make_results(examples=EXAMPLES)))


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(page: Page) -> None:
    attributes = [attribute for element in page.tree.iter() for attribute in element.items()]
    ids = [value for name, value in attributes if name == "id"]
    links = {value for name, value in attributes if name in ("href", "src")}
    assert len(set(ids)) == len(ids) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = {link for link in links if not link.startswith(("#", "data:", "per_file.csv"))}
    assert len([f for f in files if f.endswith(".flac")]) == len([f for f in files if f.endswith(".png")]) == 16
    assert all((page.folder / re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), f)).is_file() for f in files)
    outside = page.source.replace("http-equiv", "")
    assert "http" not in outside and "@import" not in outside and "url(" not in outside


def test_what_comes_from_data_is_escaped(page: Page, tmp_path: Path) -> None:
    data = json.loads(page.tree.find(".//script[@id='files-data']").text)
    assert any(row[1] == NASTY for row in data["rows"]) and NASTY in page.text and SPEAKER in page.text
    systems = tuple(replace(s, name=f"<script>{s.id}", family=NASTY, how=NASTY) for s in make_results().systems)
    other = Page(make_report(tmp_path, 2, make_results(systems=systems, command=NASTY, model=None)))
    assert "&lt;script&gt;opus-6" in other.source and "<script>opus-6" not in other.source
    for each in (page, other):
        assert len(list(each.tree.iter("script"))) == 2
        assert not [name for element in each.tree.iter() for name, _ in element.items() if name.startswith("on")]


CELLS = [
    ("results", "default, 8 quantizers", "2.119 [2.087, 2.150] n 109 · 2 failed|0.703 [0.672, 0.735] n 111|"
     "6.04 [6.01, 6.08] n 111|0.726 [0.695, 0.757] n 111|6.18 [6.15, 6.21] n 111"),
    ("missing", "PESQ-WB", "2 of 111|NoUtterancesError: 1 file <too short>: 1 file|default, 8 quantizers"),
    ("missing", "STOI", "111 of 111|MetricError: 111 files|Codec 2 <1300>"),
    ("missing", "input 6 dB", "1 of 111|too short: 1 file|default, 8 quantizers"),
    ("codebooks", "1", "55,310|99.3 %|612|92.6 %|0.01 %|12.3 of 16|53.0 %"),
    ("stability", "input 6 dB quieter", "|".join(["31.0 % n 110 · 1 failed", *["–"] * 8])),
]  # fmt: skip


def test_every_value_stands_rounded_in_its_table(page: Page) -> None:
    for section, name, cells in CELLS:
        assert page.cells(section, name) == cells.split("|"), (section, name)
    assert page.cells("results", "Codec 2 <1300>")[1] == "– n 0 · 111 failed"
    assert page.cells("results", "folder of decoded files")[4] == "not measured"
    assert page.cells("stability", "input shifted")[:2] == ["42.1 % [40.1, 44.0] n 111", "20.0 %"]


def test_systems_stand_in_the_order_of_the_bitrates_of_their_files(page: Page) -> None:
    order = ["0.775", "1.34", "1.55", "6.18", "6.18", "12.4"]
    assert [row[0].rsplit(" ", 2)[1] for row in page.rows("results")[1:7]] == order
    assert page.rows("results")[7][0] == "folder of decoded files"
    assert "default, 8 quantizers, 6.18 kbit/s: 6.04 [6.01, 6.08]" in page.source, "plotted at the same"


def test_mean_spectra(page: Page) -> None:
    figures = page.tree.findall(".//section[@id='spectra']//figure")
    shown = [" ".join(" ".join(figure.find("figcaption").itertext()).split()) for figure in figures]
    lines = {"default, 8 quantizers": 0, "Opus 6 kbit/s": 3}
    assert shown == [f"{name} recordings decoded, {count} lines" for name, count in lines.items()]
    assert "20 wide-band files" in page.text


def test_results_by_source(page: Page) -> None:
    assert re.findall(r"<summary>(.*?) <small>", page.source) == ["PESQ-WB", "STOI", "SI-SDR", "Mel distance"]
    rows = page.rows("results")[len(SYSTEMS) + 1 :]
    assert rows[0] == ["System", "source not given", SOURCE]
    assert rows[1][1:] == ["not measured"] * 2
    found = next(row[1:] for row in rows if row[0] == "default, 8 quantizers")
    assert found == ["2.718 n 3", "2.346 [2.100, 2.500] n 106 · 2 failed"]


def test_how_it_was_measured_and_facts(page: Page) -> None:
    for metric in METRICS.values():
        assert metric.label in page.text and metric.how in page.text and (metric.package or "") in page.text
    for said in (
        *("5,412,345", "0123456789abcdef", "ab" * 32, "report <1>", "2026-11-23, 08:00 UTC", "AMD EPYC"),
        *("UTMOS (metric): absent, not installed", "EnCodec (system): absent, too slow"),
        "Folders by the <peak> of correlation.",
        "95\u2009% interval by bootstrap over speakers (2,000 resamples, seed 0)",
        "31.2 are effective over 55,310 frames",
    ):
        assert said in page.text


def test_worst_file_comes_first_and_no_value_is_the_worst(page: Page) -> None:
    rows = page.rows("files")[1:]
    assert len(rows) == 40 and page.source.count('<tr class="worst">') == 10
    # two files that the others have a value for and this system has not: nothing is worse
    assert [row[1] for row in rows[:3]] == ["file-0003", "file-0004", NASTY] and rows[2][3] == "1.032"
    assert rows[0][3] == "–" and rows[0][8] == "pesq: NoUtterancesError"
    assert [float(row[3]) for row in rows[2:]] == sorted(float(row[3]) for row in rows[2:])


def test_least_report(tmp_path: Path) -> None:
    """One system without a bitrate, one metric without a value, no file, source, or part that may be missing."""
    system = replace(make_results().systems[-1], results={"pesq": NOTHING})
    optional = dict.fromkeys(["absent", "model", "spectra", "health", "stability", "examples"])
    results = make_results(systems=(system,), metrics={"pesq": METRICS["pesq"]}, **optional)
    page = Page(make_report(tmp_path, 0, results))
    assert "No system has both a bitrate and a value to plot." in page.text
    assert "nan" not in page.text.lower() and "None" not in page.text and "By source" not in page.text


def test_spectrograms_show_a_tone_where_it_is(tmp_path: Path) -> None:
    """And silence is dark."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(24000) / 24000)
    for name, samples in (("a.wav", tone), ("silent.wav", 0 * tone)):
        soundfile.write(tmp_path / name, samples, 24000)
    images, rate = spectrograms([tmp_path / "a.wav", tmp_path / "silent.wav"])
    loud, silent = (np.asarray(Image.open(BytesIO(image))) for image in images)
    assert abs((160 - loud[:, 240].argmax()) / 160 - height_of(1000, 24000)) < 0.02
    assert rate == 24000 and loud.max() == 63 and silent.max() == 0 and loud.shape == (160, 480)


def test_numbers_and_ticks() -> None:
    assert (number(-0.0004, 3), number(-1.25, 1), number(2.0, 0)) == ("0.000", "\u22121.2", "2")
    assert (percent(0.5), percent(1.0), percent(0.0)) == ("50.0\u2009%", "100.0\u2009%", "0.0\u2009%")
    assert (duration(6.24), duration(738.1), duration(9000)) == ("6.2\u00a0s", "12.3\u00a0min", "2.5\u00a0h")

    assert log_ticks(0.75, 24) == [1, 2, 5, 10, 20] and log_ticks(75, 55310) == [100, 1000, 10000]
    assert all(log_ticks(rate, rate) for rate in (6, 2.4, 1.2))
    assert min(len(log_ticks(1.2, 3.2)), len(log_ticks(75, 424))) >= 3
    assert [short(value) for value in (0.5, 200, 1e4, 1e6)] == ["0.5", "200", "10k", "1M"]
    equal = 4.643888473510742  # the PESQ-WB of speech and itself, whose mean is larger by rounding
    for low, high in ((1.04, 4.64), (0.6, 0.9), (-4.1, 8.2), (2.0, 2.0), (0.0, 0.0), (equal, equal + 1e-15)):
        ticks = linear_ticks(low, high)
        assert 2 <= len(set(ticks)) == len(ticks) <= 7 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
