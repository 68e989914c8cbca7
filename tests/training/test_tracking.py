"""What a run records can be read back, by TensorBoard and without it; and its speed."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from loading import full_disk

from codec.errors import CodecError
from codec.training.progress import Clock
from codec.training.tracking import Tracker, read_scalars


def test_tensorboard_gets_curves_audio_pictures_and_text(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(tmp_path, "tensorboard")
    tracker.scalars({"loss/mel": 1.5}, 10)
    tracker.scalars({"loss/mel": 1.0}, 20)
    tracker.speech("0_reference", 0.1 * torch.randn(24000), 24000, 0)
    tracker.text("config", "{}")
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/mel")] == [(10, 1.5), (20, 1.0)]
    assert events.Tags()["audio"] == ["audio/0_reference"] and events.Tags()["images"] == ["mel/0_reference"]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_metrics_continue_where_a_resumed_run_does(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "none")
    for step in (10, 20, 30):
        tracker.scalars({"x": step}, step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "x"')  # killed while writing
    with pytest.raises(CodecError, match="another run trains in"):
        Tracker(tmp_path, "none", first_step=20)
    tracker.close()
    Tracker(tmp_path, "none", first_step=20).scalars({"x": 31}, 30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "x": 10}, {"step": 20, "x": 20}, {"step": 30, "x": 31}]
    assert not (tmp_path / "tensorboard").exists()
    (tmp_path / "metrics.jsonl").write_text('\0{"step": 1}\n')
    with pytest.raises(CodecError, match="is damaged"):
        read_scalars(tmp_path / "metrics.jsonl")


def test_a_full_disk_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does TensorBoard's own thread end with a traceback, of which pytest would warn."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    tracker = Tracker(tmp_path, "tensorboard")
    with full_disk(0):
        for step in range(50):
            tracker.scalars({"x": step}, step)
            if tracker.writer is not None:
                tracker.writer.file_writer.event_writer._async_writer._worker.join(0.05)
        tracker.close()
    assert tracker.writer is None
    said = [message.partition(",")[0] for message in sorted(caplog.messages)]
    assert said == ["nothing more goes to TensorBoard", "points are missing from now on"]
    tracker.scalars({"x": 51}, 51)
    assert read_scalars(tmp_path / "metrics.jsonl") == [{"step": 51, "x": 51}]


def test_speed_counts_the_batches_since_the_last_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a lap is shorter than the usual interval, as after a resume or a validation."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(started=0.0)
    for batches in (3, 1):
        for _ in range(batches):
            with clock.waiting():
                now += 0.5
            now += 1.5
        assert clock.lap(16.0) == {"speed/audio_seconds_per_second": 8.0, "speed/data_wait_share": 0.25}
