"""How fast a run goes."""

from __future__ import annotations

import time

import pytest

from codec.training.progress import Clock


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
        speed = clock.lap(16.0)
        assert speed == {"speed/audio_seconds_per_second": 8.0, "speed/data_wait_share": 0.25}
