"""Where each frame's time went, from its capture to its last output."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

STAGES = ("read", "wait", "fit", "network", "decode", "track", "queue", "draw", "encode")
"""read: before the capture is complete. wait, queue: between two threads. The others are work."""
KEPT_FRAMES = 1000
"""Over so many the percentiles are taken."""
PERCENTILES = (50, 95, 99)
SILENT_SECONDS = 5.0


class Stopwatch:
    """Milliseconds of the stages of one frame, each lap from the end of the one before.

    Args:
        begun: time.perf_counter() when the first stage began.
    """

    def __init__(self, begun: float) -> None:
        self.begun = self._last = begun
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The stage ends now."""
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + (now - self._last) * 1000
        self._last = now

    @property
    def total_ms(self) -> float:
        """All laps together."""
        return (self._last - self.begun) * 1000


class Ledger:
    """The stages of a camera's last frames, and counts of all of them.

    Attributes:
        frames: that the detector saw.
        detections: in all of them.
        dropped: frames of a live source that were replaced by newer ones before the detector was free.
        unsaved: frames of a live source that were replaced before they were drawn and written.
    """

    def __init__(self) -> None:
        self.frames = self.detections = self.dropped = self.unsaved = 0
        self._stages: dict[str, deque[float]] = {stage: deque(maxlen=KEPT_FRAMES) for stage in STAGES}
        self._boxes_ms: deque[float] = deque(maxlen=KEPT_FRAMES)
        self._times: deque[float] = deque(maxlen=KEPT_FRAMES)

    def add_boxes(self, latency_ms: float, detections: int) -> None:
        """Notes a frame whose boxes are known. Args: latency_ms: since its capture."""
        self.frames += 1
        self.detections += detections
        self._boxes_ms.append(latency_ms)
        self._times.append(time.perf_counter())

    def add_stages(self, read_ms: float, laps: dict[str, float]) -> None:
        """Notes where the time of a frame went."""
        self._stages["read"].append(read_ms)
        for stage, milliseconds in laps.items():
            self._stages[stage].append(milliseconds)

    @property
    def frames_per_second(self) -> float:
        """Of the last frames; 0 when none came lately."""
        times = list(self._times)[-100:]
        if times and time.perf_counter() - times[-1] > SILENT_SECONDS:
            return 0.0
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def stage_ms(self, stage: str) -> float:
        """The median of a stage; 0 where there was none."""
        return float(np.median(self._stages[stage])) if self._stages[stage] else 0.0

    def figures(self) -> dict[str, Any]:
        """Everything, for JSON: milliseconds as {p50, p95, p99}."""
        stages = {stage: _percentiles(values) for stage, values in self._stages.items() if values}
        counts = {name: getattr(self, name) for name in ("frames", "detections", "dropped", "unsaved")}
        rate = {"frames_per_second": round(self.frames_per_second, 2)}
        return {**counts, **rate, "capture_to_boxes_ms": _percentiles(self._boxes_ms), "stages_ms": stages}

    def summary(self, seconds: float) -> str:
        """One line. Args: seconds: of the whole run."""
        if not self.frames:
            return "no frames"
        latency = _percentiles(self._boxes_ms)
        stages = ", ".join(f"{stage} {np.median(values):.1f}" for stage, values in self._stages.items() if values)
        return (
            f"{self.frames} frames, {self.detections} detections, {self.frames / seconds:.1f} frames/s, capture to "
            f"boxes p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms, {self.dropped} dropped"
            + (f", {self.unsaved} not saved" if self.unsaved else "")
            + f"; ms per frame: {stages}"
        )


def _percentiles(values: deque[float]) -> dict[str, float]:
    found = np.percentile(list(values), PERCENTILES) if values else np.zeros(len(PERCENTILES))
    return {f"p{share}": round(float(value), 3) for share, value in zip(PERCENTILES, found, strict=True)}
