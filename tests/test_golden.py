"""What must not change: codes, decoded speech, fingerprints, training losses, a report's numbers; see golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from loading import load_script

from codec import Codec, container, load
from codec.quantizers import QUANTIZERS

golden = load_script("tests/golden/make.py")
CODES_THAT_MAY_DIFFER = 0.005  # on another processor a latent between two codes may fall to the other one
AUDIO_TOLERANCE = 2e-4  # of full scale


def stored(name: str) -> Any:
    return json.loads((golden.HERE / f"{name}.json").read_text(encoding="utf-8"))


def check(codec: Codec, waveform: torch.Tensor, rate: int, file: Path) -> None:
    header, codes = container.read(file.with_suffix(".codes"))
    assert header.fingerprint == codec.fingerprint[:32] and header.num_samples == waveform.shape[-1]
    made = codec.encode(waveform, rate)[0].numpy()
    assert made.shape == codes.shape
    assert (made != codes).mean() <= CODES_THAT_MAY_DIFFER
    audio, _ = soundfile.read(file.with_suffix(".flac"), dtype="float32")
    decoded = codec.decode(torch.from_numpy(codes)[None])[0, 0].clamp(-1, 1).numpy()
    assert np.abs(decoded - audio).max() <= AUDIO_TOLERANCE


@pytest.mark.parametrize("name", [*QUANTIZERS, *golden.FORMER, *golden.SHIPPED])
def test_models(name: str) -> None:
    codec = Codec.from_pretrained(name if name in golden.SHIPPED else golden.HERE / name)
    assert codec.fingerprint == stored("fingerprints")[name]
    clips = [(path.stem, *load(path)) for path in golden.CLIPS]
    for stem, *clip in clips if name not in QUANTIZERS else [("golden", golden.tiny_speech(), 16000)]:
        check(codec, *clip, golden.HERE / name / stem)


def test_training_losses(tmp_path: Path) -> None:
    """To the bit on the kind of machine that wrote them; elsewhere roundings add up over the steps."""
    expected, points = stored("training"), golden.training_losses(tmp_path)
    if expected["machine"] == golden.machine():
        assert points == expected["points"]
    for point, other in zip(points, expected["points"], strict=True):
        assert point == pytest.approx(other, rel=0.02)


def leaves(value: Any, where: str = "report") -> dict[str, Any]:
    """Every number and text of a report by its place, and every list's length."""
    if not isinstance(value, dict | list):
        return {where: value}
    entries = value.items() if isinstance(value, dict) else enumerate([len(value), *value])
    return {place: leaf for key, entry in entries for place, leaf in leaves(entry, f"{where}.{key}").items()}


def test_report_numbers(tmp_path: Path) -> None:
    """Numbers within a thousandth, all else equal; keys that came later are left alone."""
    found = leaves(golden.report_numbers(tmp_path))
    for place, value in leaves(stored("report")).items():
        close = pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
        assert found[place] == close, place
