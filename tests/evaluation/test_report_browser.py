"""What only a browser can show of the report's page: headless Chromium opens it from disk."""

from dataclasses import replace
from pathlib import Path

import pytest
from loading import resize
from report_folder import EXAMPLES, METRICS, NASTY, make_report, make_results
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from codec.evaluation.results import Absent, Manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 350 files, more than are shown at first, and two examples of eight players each."""
    return make_report(tmp_path_factory.mktemp("browser") / "a folder #1", 350, make_results(examples=EXAMPLES))


@pytest.fixture
def page(chromium: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    """The report, freshly opened in a wide window."""
    return opened(chromium, report, 1280)


def opened(chromium: webdriver.Chrome, report: Path, width: int) -> webdriver.Chrome:
    resize(chromium, width)
    chromium.get("about:blank")  # so that a fragment of the last test is forgotten
    chromium.get(report.as_uri())
    return chromium


def column(page: webdriver.Chrome, label: str) -> list[str]:
    """What the table of files shows in a column, from top to bottom."""
    script = """
        const [head, ...rows] = document.getElementById("files-table").rows;
        const i = [...head.cells].findIndex((cell) => cell.textContent === arguments[0]);
        return rows.map((row) => row.cells[i].textContent);"""
    return page.execute_script(script, label)


def sorted_by(page: webdriver.Chrome) -> list[tuple[str, str]]:
    heads = page.find_elements(By.CSS_SELECTOR, "#files-table th[aria-sort]")
    return [(cell.text.split(" ")[0], str(cell.get_attribute("aria-sort"))) for cell in heads]


def test_pictures_and_players_load_without_a_word_on_the_console(page: webdriver.Chrome) -> None:
    """And one player plays at a time: starting the second pauses the first."""
    page.execute_script("""
        for (const details of document.querySelectorAll("details")) details.open = true;
        for (const image of document.images) image.loading = "eager";
        for (const player of document.querySelectorAll("audio")) player.preload = "metadata";""")
    loaded = """
        const players = [...document.querySelectorAll("audio")];
        return [...document.images].map((image) => image.naturalWidth).concat(players.map((each) => each.duration));"""
    WebDriverWait(page, 30).until(lambda _: page.execute_script(loaded) == [480] * 16 + [1.5] * 16)
    play = """
        const [index, done] = arguments, players = [...document.querySelectorAll("audio")].slice(0, 2);
        players[index].muted = players[index].loop = true;
        players[index].play().then(() => done(players.map((each) => each.paused)), (error) => done(String(error)));"""
    assert [page.execute_async_script(play, index) for index in (0, 1)] == [[False, True], [True, False]]
    assert page.get_log("browser") == []


def test_sorting_by_click_and_by_keyboard(page: webdriver.Chrome) -> None:
    """Rows without a value come last either way."""
    assert sorted_by(page) == [("#", "ascending")]
    for order in ("ascending", "descending"):
        page.find_element(By.XPATH, "//table[@id='files-table']//th/button[starts-with(., 'PESQ-WB')]").click()
        page.find_element(By.ID, "files-all").click()
        assert sorted_by(page) == [("PESQ-WB", order)]
        *shown, second_last, last = column(page, "PESQ-WB")
        values = [float(text) for text in shown]
        assert second_last == last == "–" and len(values) == 348
        assert values == sorted(values, reverse=order == "descending")
    page.find_element(By.ID, "files-find").send_keys(Keys.TAB, Keys.TAB)  # past the box, which scrolls by keys
    page.switch_to.active_element.send_keys(Keys.TAB)
    for key, order, first in ((Keys.ENTER, "ascending", NASTY), (Keys.SPACE, "descending", "file-0349")):
        page.switch_to.active_element.send_keys(key)
        assert sorted_by(page) == [("File", order)] and column(page, "File")[0] == first


def test_filter_search_and_show_all(page: webdriver.Chrome) -> None:
    """Very many rows come in steps; a link to an example opens it."""
    status = page.find_element(By.ID, "files-status")
    more = page.find_element(By.ID, "files-all")
    assert status.text == "The first 200 of 350 rows." and more.text == "Show all"
    more.click()
    assert len(column(page, "File")) == 350 and status.text == "350 rows." and not more.is_displayed()
    choice = Select(page.find_element(By.ID, "files-system"))
    assert choice.first_selected_option.text == "default, 8 quantizers"
    choice.select_by_visible_text("Codec 2 <1300>")
    assert set(column(page, "System")) == {"Codec 2 <1300>"} and len(column(page, "File")) == 200
    choice.select_by_visible_text("all systems")
    assert status.text == "The first 200 of 2,450 rows." and column(page, "File")[:7] == ["file-0003"] * 7
    assert more.text == "Show 2,000 more"
    more.click()
    assert status.text == "The first 2,200 of 2,450 rows." and more.text == "Show all"
    page.find_element(By.ID, "files-find").send_keys("NoUtter")
    assert status.text == "2 rows." and set(column(page, "File")) == {"file-0003", "file-0004"}
    page.find_element(By.ID, "files-find").clear()
    page.find_element(By.ID, "files-find").send_keys("file-0002")
    page.find_element(By.LINK_TEXT, "file-0002").click()
    WebDriverWait(page, 30).until(lambda _: page.find_element(By.ID, "example-2").get_attribute("open") is not None)


def test_the_script_makes_the_rows_that_the_page_came_with(page: webdriver.Chrome, report: Path) -> None:
    static = """
        const page = new DOMParser().parseFromString(arguments[0], "text/html");
        const rows = (body) => [...body.rows].map((row) => [row.className, ...[...row.cells].map(
            (cell) => [cell.tagName, cell.className, cell.textContent, cell.querySelector("a")?.getAttribute("href")])]);
        return [document, page].map((p) => rows(p.querySelector("#files-table tbody")));"""
    mine, theirs = page.execute_script(static, report.read_text(encoding="utf-8"))
    assert len(mine) == 200 and mine == theirs


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scroll(width: int, chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """Not even with names that have no place to break at."""
    endless = "x" * 300
    first, *others = make_results().systems
    results = make_results(
        systems=(replace(first, name=endless, family=endless), *others),
        command=endless,
        manifest=Manifest(endless, "ab" * 32, 20, 60.0),
        metrics=METRICS | {"pesq": replace(METRICS["pesq"], how=endless)},
        absent=(Absent("metric", endless, endless),),
        examples=(EXAMPLES[0], replace(EXAMPLES[1], id=endless)),
    )
    page = opened(chromium, make_report(tmp_path, 20, results), width)
    page.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.execute_script("return innerWidth") == width, "a phone zooms out where something is too wide"
    over = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert page.execute_script(over) == 0
    for box in page.find_elements(By.CSS_SELECTOR, "svg.plot, audio, img"):
        assert box.rect["x"] >= 0 and box.rect["x"] + box.rect["width"] <= width
