"""Waiting and computing are measured separately, with a fake clock."""

from __future__ import annotations

import pytest
import torch

from detector.data.batch import Batch
from detector.train.throughput import Throughput


def test_steps_that_waited_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # step 1: 1 s, including 1 ms of waiting; step 2: 3 s, including half a second of waiting
    times = iter([0.0, 0.1, 0.101, 1.0, 2.0, 2.1, 2.6, 5.0])
    monkeypatch.setattr("detector.train.throughput.time.perf_counter", lambda: next(times))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), ["a"])
    throughput = Throughput((one for one in [batch, batch]), batch_size=8)
    assert throughput.figures() == {}
    for _ in range(2):
        with throughput.step():
            assert next(throughput) is batch
    figures = throughput.figures()
    assert figures["images_per_second"] == 16 / 4
    assert figures["share_of_steps_that_waited"] == 0.5
    assert figures["share_of_time_waiting"] == pytest.approx(0.501 / 4)
    assert figures["resident_mb"] > 10
