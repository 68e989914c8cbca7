"""The page of recipes/web in a real browser: its .codes files and codes are Python's, and a person can use it."""

import dataclasses
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from loading import ASSETS, ROOT, SPEECH, load_script
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from codec import container
from codec.runtime import OnnxCodec
from codec.runtime.export import CHANGED_CODES, TOLERANCE, export_main

pytestmark = pytest.mark.slow
PAGE = ROOT / "recipes" / "web"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page with the default model, served as ``python -m http.server`` does."""
    if load_script("recipes/web/fetch.py").main() != 0:
        pytest.skip("needs the npm registry")
    folder = tmp_path_factory.mktemp("web")
    for path in (*PAGE.glob("*.*"), PAGE / "vendor", ASSETS):
        (folder / path.name).symlink_to(path)
    assert export_main(["default", str(folder / "model")]) == 0
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(phone: Any, address: str) -> Any:
    """The page, its model loaded."""
    phone.get(address)
    says(phone, "Ready.")
    return phone


def says(page: Any, text: str) -> None:
    """Wait until the status does."""
    WebDriverWait(page, 60).until(lambda _: text in page.find_element(By.ID, "status").text, text)


def run(page: Any, body: str, *args: Any) -> Any:
    """What an asynchronous function with the page's modules at hand returns."""
    modules = ("audio", "codec", "container", "errors")
    imports = "".join(f"const {name} = await import('/{name}.js'); " for name in modules)
    imports += "const bytes = async (url) => (await fetch(url)).arrayBuffer(); "
    script = f"const done = arguments[arguments.length - 1]; (async (...args) => {{ {imports}{body} }})(...arguments)"
    result = page.execute_async_script(f"{script}.then((value) => done([value]), (e) => done(String(e)))", *args)
    assert isinstance(result, list), result
    return result[0]


def test_files_are_pythons(page: Any) -> None:
    """The golden files of each version; every byte that is changed or missing is noticed; several blocks."""
    read = "const {header, codes} = container.read(await bytes(args[0])); "
    read += "return [Object.values(header), codes, container.write(header, codes)]"
    damage = """
        const whole = new Uint8Array(await bytes(args[0])), unnoticed = [];
        const codesOf = (data) => JSON.stringify(container.read(data.buffer).codes), right = codesOf(whole);
        const attempt = (data, i) => {
            try {
                if (codesOf(data) !== right) unnoticed.push(i);
            } catch (error) { if (!(error instanceof errors.CodecError)) throw error; }
        };
        whole.forEach((_, i) => { attempt(whole.with(i, whole[i] ^ 1), i); attempt(whole.slice(0, i), i); });
        attempt(new Uint8Array([...whole, 0]), -1);
        return unnoticed"""
    for name, gain in ("golden_v1", 0), ("golden_v2", -1.5), ("golden_v2_stream", -1.5):
        header, codes, again = run(page, read, f"assets/{name}.codes")
        assert header == ["golden-ü", "00112233445566778899aabbccddeeff", 24000, 44100, 3000, 320, 2, 1000, gain]
        assert codes == [[0, 1, 2, 3, 4, 999], [999, 512, 511, 256, 255, 0]]
        assert gain == 0 or bytes(again) == (ASSETS / "golden_v2.codes").read_bytes()
        assert run(page, damage, f"assets/{name}.codes") == []
    stored = np.random.default_rng(0).integers(0, 1024, (3, 1500))
    data = container.dumps(container.Header("x", "0" * 32, 24000, 24000, 1500 * 320, 320, 3, 1024), stored)
    again = "const {header, codes} = container.read(new Uint8Array(args[0]).buffer); "
    again += "return container.read(container.write(header, codes).buffer).codes"
    assert run(page, again, list(data)) == stored.tolist()


def test_codes_and_audio_are_pythons(page: Any) -> None:
    """On a clip of the model's rate, which the browser need not resample."""
    computed = """
        const model = await codec.Codec.load("model/"), samples = await audio.samplesOf(await bytes(args[0]), 24000);
        const codes = await model.encode(samples), decoded = [];
        for (const count of [8, 2]) decoded.push(Array.from(await model.decode(codes, count)));
        return [Array.from(samples), audio.gainOf(samples, 24000), codes, decoded]"""
    samples, gain_db, codes, decoded = run(page, computed, f"assets/{SPEECH[24000].name}")
    waveform, _ = soundfile.read(SPEECH[24000], dtype="float32")
    assert np.abs(waveform - samples).max() < 2**-15, "but for the browser's way to divide 16-bit numbers"
    model = OnnxCodec.from_pretrained()
    assert [gain_db] == pytest.approx(model.gain_of(np.float32(samples), 24000), abs=1e-6)
    assert np.mean(model.encode(np.float32(samples), 24000)[0] != codes) < CHANGED_CODES
    for count, sound in zip((8, 2), decoded, strict=True):
        assert np.abs(model.decode(np.array(codes), count)[0, 0] - sound).max() < TOLERANCE


def test_a_person_uses_it(page: Any, tmp_path: Path) -> None:
    """The example, another bitrate by keyboard while it plays, the download, the microphone, a .codes file, errors."""
    drop = "const dataTransfer = new DataTransfer(); for (const name of args) dataTransfer.items.add(new File(['x'], name)); "
    drop += "dispatchEvent(new DragEvent('drop', {dataTransfer}))"
    played = "return document.getElementById('player').currentTime"
    saved = "const {header} = container.read(await bytes(document.getElementById('save-codes').href)); return header"
    page.find_element(By.ID, "example").click()
    says(page, "decoded at")
    print(page.find_element(By.ID, "status").text)  # how fast it was: pytest -s shows it
    rates = page.find_elements(By.CSS_SELECTOR, "#rates input")
    assert len(rates) == 9 and run(page, saved)["numQuantizers"] == 8
    page.execute_script("const own = document.getElementById('player'); own.loop = own.muted = true; own.play()")
    WebDriverWait(page, 60).until(lambda _: page.execute_script(played) > 0.1)
    rates[-1].send_keys(Keys.ARROW_LEFT)
    WebDriverWait(page, 60).until(lambda _: run(page, saved)["numQuantizers"] == 7)
    now = page.execute_script(played)
    WebDriverWait(page, 60).until(lambda _: page.execute_script(played) != now, "it goes on")
    page.execute_script("arguments[0].click(); document.getElementById('player').pause()", rates[-1])
    WebDriverWait(page, 60).until(lambda _: run(page, saved)["numQuantizers"] == 8, "a pause meanwhile is no failure")
    run(page, drop, "a.wav", "b.wav")
    says(page, "one file at a time")
    assert page.execute_script("return document.documentElement.scrollWidth") == 390

    page.find_element(By.ID, "record").click()
    says(page, "Recording")
    WebDriverWait(page, 60).until(lambda _: page.find_element(By.ID, "record").text == "Stop")
    run(page, drop, "a.wav")
    says(page, "busy")
    page.execute_async_script("setTimeout(arguments[0], 300)")
    page.find_element(By.ID, "record").click()
    says(page, "recording: encoded")

    model = OnnxCodec.from_pretrained()
    codes = np.random.default_rng(0).integers(0, 1024, (2, 75))
    header = model.header(24000 - 100, 24000, 2)
    for name, fingerprint, expected in (
        ("mine", header.fingerprint, "mine: decoded"),
        ("other", "0" * 32, "its codes are those of the model"),
    ):
        container.write(tmp_path / f"{name}.codes", dataclasses.replace(header, fingerprint=fingerprint), codes)
        page.find_element(By.ID, "file").send_keys(str(tmp_path / f"{name}.codes"))
        says(page, expected)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(2400, np.nan, np.float32), 24000, "FLOAT")
    for name, said in ("text.wav", "this browser does not read it as audio"), ("nan.wav", "repair it first"):
        page.find_element(By.ID, "file").send_keys(str(tmp_path / name))
        says(page, said)

    run(page, "codec.Codec.prototype.encode = async () => Array(8).fill([1024])")  # beyond the decoder's tables
    page.find_element(By.ID, "example").click()
    says(page, "decoder.onnx cannot be used (failed to call OrtRun()")
    assert run(page, saved)["numSamples"] == 23900, "none of it replaces the clip before"
    assert not page.find_element(By.ID, "original").is_displayed()
