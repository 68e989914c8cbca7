"""What several tests share: a tiny model with random weights, and two short clips of speech."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hypothesis import settings
from loading import SPEECH, Refused, Said, Speech, load_script, resize

from codec import Codec, CodecConfig

CHROMIUM = ["headless", "no-sandbox", "disable-background-networking", "autoplay-policy=no-user-gesture-required"]
CHROMIUM += ["disable-dev-shm-usage"]  # containers have little of it
CHROMIUM += ["use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # of sessions that tests open themselves
torch.set_num_threads(1)  # the tests' networks are tiny: threads would only wait for each other on a busy machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", type=int, default=1, metavar="N", help="N times as many examples of whatever is random")


def pytest_configure(config: pytest.Config) -> None:
    """``--long``, for the tests of hypothesis: ``pytest -m hypothesis --long 100``."""
    settings.register_profile("codec", max_examples=100 * config.getoption("long"), deadline=None)
    settings.load_profile("codec")


@pytest.fixture(scope="session")
def tiny_config() -> CodecConfig:
    """16 kHz, 200 frames/s, three quantizers of 32 codes: 3 kbit/s. A window is 2.6 s, a block of a file 1.3 s."""
    return load_script("tests/golden/make.py").tiny_config("residual_simvq")


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_config: CodecConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of ``tiny_config`` with random weights and codes that match their latents, called "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Codec(tiny_config)
        model.quantizer.initialize(model.encoder(0.1 * torch.randn(1, 1, 16000)))
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_model_folder: Path) -> Codec:
    """That model, loaded."""
    return Codec.from_pretrained(tiny_model_folder)


@pytest.fixture(params=SPEECH.values(), ids=lambda path: path.stem)
def speech(request: pytest.FixtureRequest) -> Speech:
    """Samples ``[T]`` of a real clip and their rate in Hz: 2.7 s at 24 kHz, then 3.0 s at 16 kHz."""
    return soundfile.read(request.param, dtype="float32")


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Said:
    """``stderr()`` is what was said there since it was asked last."""
    return lambda: capsys.readouterr().err


@pytest.fixture
def one_line(stderr: Said) -> Said:
    """``one_line()`` is what was said on stderr, which must be one line and no traceback."""

    def read() -> str:
        said = stderr()
        assert said.count("\n") == 1 and "Traceback" not in said, said
        return said

    return read


@pytest.fixture
def refused(stderr: Said) -> Refused:
    """``refused(main(...), "text")``: the exit code was 1, and the last line of stderr, the only error, holds the text."""

    def check(code: int, text: str) -> None:
        *before, error = said = stderr().splitlines(keepends=True)
        assert code == 1 and "error: " in error and text in error and len(error) < 600, said
        assert not [line for line in before if "error: " in line or "Traceback" in line], said

    return check


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser, with selenium's ``webdriver`` to drive it; its microphone gives beeps."""
    from selenium import webdriver

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "needs Chromium: apt-get install chromium chromium-driver (Debian packages)"
        if os.environ.get("CODEC_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*CHROMIUM, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    chrome.set_script_timeout(60)  # seconds, for a busy machine; nothing takes long
    yield chrome
    chrome.quit()


@pytest.fixture
def phone(chromium: Any) -> Iterator[Any]:
    """The browser as a phone, 390 pixels wide; nothing that a test does may leave a word on the console."""
    resize(chromium, 390)
    yield chromium
    assert chromium.get_log("browser") == []
