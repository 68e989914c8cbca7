"""The report's page in real headless Chromium, opened from disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import SPEECH
from report_folder import NASTY, make_folder, metrics_json
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from codec.corpus.manifest import Record, write_manifest
from codec.evaluation.commands import evaluate_main
from codec.evaluation.page.report import write_report

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
WAIT = 30  # seconds, for a busy machine; nothing here takes long
WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 300 files, more than are shown at first, and two examples of eight players each."""
    return write_report(make_folder(tmp_path_factory.mktemp("browser") / "a folder #1", num_files=300))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "needs Chromium: apt-get install chromium chromium-driver (Debian packages)"
        if os.environ.get("CODEC_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield made
    made.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    """The report, freshly opened in a wide window."""
    return opened(chromium, report, 1280)


def opened(chromium: webdriver.Chrome, report: Path, width: int) -> webdriver.Chrome:
    chromium.get_log("browser")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get("about:blank")  # so that a fragment of the last test is forgotten
    chromium.get(report.as_uri())
    return chromium


def head(page: webdriver.Chrome, label: str) -> WebElement:
    """The sorting button of a column."""
    buttons = page.find_elements(By.CSS_SELECTOR, "#files-table th button")
    return next(button for button in buttons if button.text.startswith(label))


def column(page: webdriver.Chrome, label: str) -> list[str]:
    """What the table of files shows in a column, from top to bottom."""
    script = """
        const heads = [...document.querySelectorAll("#files-table thead th")];
        const i = heads.findIndex((head) => head.textContent === arguments[0]);
        return [...document.querySelectorAll("#files-table tbody tr")].map((row) => row.cells[i].textContent);"""
    return page.execute_script(script, label)


def sorted_by(page: webdriver.Chrome) -> list[tuple[str, str]]:
    heads = page.find_elements(By.CSS_SELECTOR, "#files-table th[aria-sort]")
    return [(cell.text.split(" ")[0], str(cell.get_attribute("aria-sort"))) for cell in heads]


def test_opens_without_a_word_on_the_console(page: webdriver.Chrome) -> None:
    loaded = """
        const done = arguments[arguments.length - 1];
        const images = [...document.images];
        document.querySelectorAll("details").forEach((details) => { details.open = true; });
        images.forEach((image) => { image.loading = "eager"; });
        Promise.all(images.map((image) => image.decode())).then(() => done(images.map((i) => i.naturalWidth)), done);"""
    page.set_script_timeout(WAIT)
    assert page.execute_async_script(loaded) == [480] * 16
    assert page.get_log("browser") == []
    assert page.title == "Evaluation of default on dev.jsonl"


def test_an_evaluation_of_its_own_opens_and_plays(
    chromium: webdriver.Chrome, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """The other tests draw a made-up folder; this one is what codec-evaluate makes of real speech."""
    records = []
    for rate, path in SPEECH.items():
        facts = soundfile.info(path)
        records.append(Record(f"clip {rate}", str(path), facts.frames, rate, speaker=f"speaker {rate}"))
    write_manifest(tmp_path / "dev.jsonl", records)
    command = [
        "--manifest",
        str(tmp_path / "dev.jsonl"),
        "--model",
        str(tiny_model_folder),
        "--out",
        str(tmp_path / "r"),
    ]
    assert evaluate_main([*command, "--metrics", "pesq", "mel", "kbps_file", "--workers", "1", "--baselines"]) == 0
    page = opened(chromium, tmp_path / "r" / "index.html", 1280)
    page.set_script_timeout(WAIT)
    load = """
        const done = arguments[arguments.length - 1];
        document.querySelectorAll("details").forEach((details) => { details.open = true; });
        const players = [...document.querySelectorAll("audio")];
        Promise.all(players.map((player) => new Promise((loaded, failed) => {
            player.addEventListener("loadedmetadata", () => loaded(player.duration));
            player.addEventListener("error", () => failed(player.src));
            player.preload = "metadata";
            player.load();
        }))).then(done, done);"""
    durations = page.execute_async_script(load)
    assert durations == pytest.approx(
        [r.duration for r in records for _ in range(3)], abs=0.01
    )  # original, 3, 1 quantizers
    head(page, "PESQ").click()
    assert sorted_by(page) == [("PESQ-WB", "ascending")] and len(column(page, "File")) == 2
    assert page.get_log("browser") == []


def test_the_console_is_heard(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """The test above would see a missing file."""
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><title>broken</title><img src=missing.png>")
    chromium.get(broken.as_uri())
    heard: list[Any] = WebDriverWait(chromium, WAIT).until(lambda driver: driver.get_log("browser"))
    assert "missing.png" in heard[0]["message"]


def test_every_player_loads(page: webdriver.Chrome) -> None:
    players = page.find_elements(By.TAG_NAME, "audio")
    assert len(players) == 16
    page.execute_script(
        "document.querySelectorAll('audio').forEach((a) => { a.preload = 'metadata'; a.load(); })",
    )
    ready = "return [...document.querySelectorAll('audio')].map((a) => a.error ? a.error.message : a.readyState >= 1)"
    WebDriverWait(page, WAIT).until(lambda driver: driver.execute_script(ready) == [True] * 16)
    durations = page.execute_script("return [...document.querySelectorAll('audio')].map((a) => a.duration)")
    assert durations == pytest.approx([1.5] * 16)
    assert page.get_log("browser") == []


def test_one_player_at_a_time(page: webdriver.Chrome) -> None:
    """Starting the second pauses the first; without the script both would play."""
    state = "return [...document.querySelectorAll('audio')].slice(0, 2).map((a) => a.paused)"
    start = """
        const [index, done] = arguments;
        const player = document.querySelectorAll("audio")[index];
        player.muted = player.loop = true;
        player.play().then(() => done(null), (error) => done(String(error)));"""
    page.set_script_timeout(WAIT)
    assert page.execute_async_script(start, 0) is None
    assert page.execute_script(state) == [False, True]
    assert page.execute_async_script(start, 1) is None
    assert page.execute_script(state) == [True, False]


def test_worst_first_then_sorting_by_click(page: webdriver.Chrome) -> None:
    assert sorted_by(page) == [("#", "ascending")]
    assert column(page, "File")[:3] == ["file-0003", "file-0004", NASTY]
    assert column(page, "#")[:11] == [str(k) for k in range(1, 12)]
    assert len(page.find_elements(By.CSS_SELECTOR, "#files-table tr.worst")) == 10
    head(page, "STOI").click()
    assert sorted_by(page) == [("STOI", "ascending")]
    shown = [float(v) for v in column(page, "STOI")]
    assert shown == sorted(shown) and len(shown) == 200
    head(page, "STOI").click()
    assert sorted_by(page) == [("STOI", "descending")]
    shown = [float(v) for v in column(page, "STOI")]
    assert shown == sorted(shown, reverse=True)


def test_sorting_by_keyboard(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "files-find").send_keys(Keys.TAB, Keys.TAB)  # past the box, which scrolls by keys
    focused = page.switch_to.active_element
    assert focused == head(page, "#")
    focused.send_keys(Keys.TAB)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert sorted_by(page) == [("File", "ascending")]
    names = column(page, "File")
    assert names[1:4] == ["file-0000", "file-0001", "file-0002"] and names[0] == NASTY
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert sorted_by(page) == [("File", "descending")]
    assert column(page, "File")[:2] == ["file-0299", "file-0298"]


def test_rows_without_a_value_come_last_either_way(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "files-all").click()
    for _ in range(2):
        head(page, "PESQ-WB").click()
        page.find_element(By.ID, "files-all").click()
        shown = column(page, "PESQ-WB")
        assert shown[-2:] == ["–", "–"] and "–" not in shown[:-2]


def test_filter_search_and_show_all(page: webdriver.Chrome) -> None:
    status = page.find_element(By.ID, "files-status")
    more = page.find_element(By.ID, "files-all")
    assert status.text == "The first 200 of 300 rows." and more.is_displayed()
    more.click()
    assert len(column(page, "File")) == 300 and status.text == "300 rows." and not more.is_displayed()
    choice = Select(page.find_element(By.ID, "files-system"))
    assert choice.first_selected_option.text == "default, 8 quantizers"
    choice.select_by_visible_text("Codec 2 <1300>")
    assert set(column(page, "System")) == {"Codec 2 <1300>"} and len(column(page, "File")) == 200
    choice.select_by_visible_text("all systems")
    assert status.text == "The first 200 of 2,100 rows." and column(page, "File")[:7] == ["file-0003"] * 7
    assert more.text == "Show all"  # 1,900 more: few enough for one step
    page.find_element(By.ID, "files-find").send_keys("NoUtter")
    assert status.text == "2 rows." and set(column(page, "File")) == {"file-0003", "file-0004"}


def test_very_many_rows_come_in_steps(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    page = opened(chromium, write_report(make_folder(tmp_path, 350, metrics_json(examples=False))), 1280)
    Select(page.find_element(By.ID, "files-system")).select_by_visible_text("all systems")
    more = page.find_element(By.ID, "files-all")
    assert more.text == "Show 2,000 more"
    more.click()
    assert page.find_element(By.ID, "files-status").text == "The first 2,200 of 2,450 rows."
    assert more.text == "Show all"
    more.click()
    assert page.find_element(By.ID, "files-status").text == "2,450 rows." and len(column(page, "File")) == 2450


def test_the_script_makes_the_rows_that_the_page_came_with(page: webdriver.Chrome, report: Path) -> None:
    static = """
        const page = new DOMParser().parseFromString(arguments[0], "text/html");
        const rows = (body) => [...body.rows].map((row) => [row.className, ...[...row.cells].map(
            (cell) => [cell.tagName, cell.className, cell.textContent, cell.querySelector("a")?.getAttribute("href")])]);
        const [mine, theirs] = [document, page].map((p) => rows(p.querySelector("#files-table tbody")));
        return [mine, theirs];"""
    mine, theirs = page.execute_script(static, report.read_text(encoding="utf-8"))
    assert len(mine) == 200 and mine == theirs


def test_a_link_to_an_example_opens_it(page: webdriver.Chrome) -> None:
    second = page.find_element(By.ID, "example-2")
    assert second.get_attribute("open") is None
    page.find_element(By.ID, "files-find").send_keys("file-0002")
    page.find_element(By.LINK_TEXT, "file-0002").click()
    WebDriverWait(page, WAIT).until(lambda _: second.get_attribute("open") is not None)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_sideways_scroll(width: int, chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """Not even with names that have no place to break at."""
    content = metrics_json()
    endless = "x" * 300
    content["systems"][0] |= {"name": endless, "family": endless}
    content["command"] = content["manifest"]["name"] = content["metrics"]["pesq"]["how"] = endless
    content["absent"][0] |= {"name": endless, "reason": endless}
    content["stability"][0]["label"] = endless
    content["health"]["notes"] = [endless]
    content["examples"][1]["id"] = endless
    page = opened(chromium, write_report(make_folder(tmp_path, 20, content)), width)
    page.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.execute_script("return innerWidth") == width, "a phone zooms out where something is too wide"
    over = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert page.execute_script(over) == 0
    for box in page.find_elements(By.CSS_SELECTOR, "svg.plot, audio, img"):
        assert box.rect["x"] >= 0 and box.rect["x"] + box.rect["width"] <= width


def test_reads_without_script(chromium: webdriver.Chrome, report: Path) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = opened(chromium, report, 360)
        rows = page.find_elements(By.CSS_SELECTOR, "#files-table tbody tr")
        assert len(rows) == 200 and not page.find_element(By.ID, "files-controls").is_displayed()
        assert not page.find_element(By.ID, "files-all").is_displayed()
        assert page.find_element(By.CSS_SELECTOR, "#files-table thead").text.startswith("# File System")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
