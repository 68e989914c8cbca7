"""codec-demo: what its page shows is what the codec gives, and what cannot be done is said in one line."""

import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import soundfile
import torch
from loading import SPEECH

from codec import Codec
from codec.integrations.gradio import HEIGHT, WIDTH, build, demo_main, hear, spectrogram

RATE = 24000


def test_only_the_address_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gradio = MagicMock()
    page = gradio.Blocks.return_value.__enter__.return_value
    page.launch.return_value = (None, "http://127.0.0.1:7860/", None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr("codec.integrations.gradio.shipped_models", list)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert demo_main([]) == 0 and page.block_thread.called
    assert os.environ["GRADIO_TEMP_DIR"] and not Path(os.environ["GRADIO_TEMP_DIR"]).exists()
    assert capsys.readouterr().out == "Running on http://127.0.0.1:7860/\n"


def test_every_bitrate_is_heard_and_seen(tiny_model: Codec) -> None:
    original, codes_picture, *cells = hear([tiny_model], str(SPEECH[RATE]))
    samples, _ = soundfile.read(SPEECH[RATE], dtype="float32")
    gain_db = tiny_model.gain_of(samples, RATE)
    codes = tiny_model.encode(torch.from_numpy(samples), RATE, gain_db=gain_db)
    assert original.shape == (HEIGHT, WIDTH, 3) and original.max() > 200
    assert spectrogram(np.zeros(10, np.float32), RATE).max() < 10, "silence is dark"
    assert codes_picture.shape == (32 * 3, 4 * codes.shape[-1], 3)
    for count, (rate, sound), picture in zip((1, 2, 3), cells[::2], cells[1::2], strict=True):
        assert rate == tiny_model.sample_rate and len(sound) == -(-len(samples) * rate // RATE)
        expected = tiny_model.decode(codes, count, gain_db=gain_db)[0, 0, : len(sound)] * 32768
        np.testing.assert_allclose(sound, expected.clamp(-32768, 32767), atol=0.5)
        assert picture.shape[0] == HEIGHT


def test_the_page_has_a_place_for_each(tiny_model: Codec, tmp_path: Path) -> None:
    """gradio itself need not be there: a stand-in tells what is asked of it."""
    gradio = MagicMock(Error=lambda text, print_exception: RuntimeError(text))
    build(gradio, [tiny_model])
    answer, _, places = gradio.Audio.return_value.change.call_args.args
    assert len(places) == len(answer(str(SPEECH[RATE]))) == len(answer(None))
    assert "png" in [call.kwargs.get("format") for call in gradio.Image.call_args_list]  # WebP ends at 16,383 pixels
    soundfile.write(tmp_path / "long.wav", np.zeros(61 * 8000), 8000)
    (tmp_path / "text.wav").write_text("no sound")
    for name, reason in ("long.wav", "longer than 60 s"), ("text.wav", "text.wav"):
        with pytest.raises(RuntimeError, match=reason):
            answer(str(tmp_path / name))
