"""How fast a video goes from file to file: decode, network, track, draw, encode, in turn and side by side."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.tracking.tracker import Tracker
from detector.video.frame import Result
from detector.video.ledger import STAGES, Stopwatch
from detector.video.pipeline import Camera, annotate, run_video
from detector.video.sink import VideoSink
from detector.video.source import open_source

WORK = [stage for stage in STAGES if stage not in ("wait", "queue")]
DETECTING = ("fit", "network", "decode", "track")
"""These are one thread's work; reading is another's, drawing and encoding a third's."""


def video_table(path: Path, predictor: Predictor, *, score_threshold: float, rounds: int) -> dict[str, Any]:
    """Runs a video in turns one stage after the other, and with the stages side by side.

    Args:
        path: the video.
        predictor: the detector.
        score_threshold: of the tracker.
        rounds: number of turns; medians over them are reported.

    Raises:
        InputError: it cannot be read, or an extra is missing.
    """
    sequential: list[float] = []
    pipelined: list[float] = []
    stages: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            camera, seconds = _in_turn(_camera(path, Path(folder), score_threshold), predictor)
            sequential.append(camera.ledger.frames / seconds)
            stages.append({stage: camera.ledger.stage_ms(stage) for stage in WORK})
            camera = _camera(path, Path(folder), score_threshold)
            seconds = run_video([camera], predictor)
            pipelined.append(camera.ledger.frames / seconds)
    medians = {stage: float(np.median([row[stage] for row in stages])) for stage in WORK}
    threads = {
        "read": medians["read"],
        "detect": sum(medians[stage] for stage in DETECTING),
        "draw and encode": medians["draw"] + medians["encode"],
    }
    slowest = max(threads, key=lambda name: threads[name])
    return {
        "video": str(path),
        "backend": predictor.runtime.name,
        "frames": camera.ledger.frames,
        "rounds": rounds,
        "stages_ms": medians,
        "network_alone_fps": 1000 / medians["network"],
        "slowest_thread": slowest,
        "slowest_thread_fps": 1000 / threads[slowest],
        "sequential_fps": float(np.median(sequential)),
        "pipelined_fps": float(np.median(pipelined)),
        "share_of_slowest": float(np.median(pipelined)) * threads[slowest] / 1000,
    }


def _camera(path: Path, folder: Path, score_threshold: float) -> Camera:
    source = open_source(str(path))
    if source.fps is None:
        raise InputError(f"{path}: expected a video, got images")
    sink = VideoSink(folder / "out.mp4", source.fps or 25.0)
    return Camera(source, [sink], Tracker(score_threshold=score_threshold))


def _in_turn(camera: Camera, predictor: Predictor) -> tuple[Camera, float]:
    """One stage after the other, in one thread; the seconds that it took."""
    begun = time.perf_counter()
    for frame in camera.source:
        watch = Stopwatch(time.perf_counter())
        detections = predictor.predict_batch([frame.image], on_stage=watch.lap)[0]
        result: Result = camera.follow(0, frame, detections, watch)
        annotated = annotate(result, camera, predictor)
        watch.lap("draw")
        for sink in camera.sinks:
            sink.write(annotated, result)
        watch.lap("encode")
        camera.ledger.add_boxes(watch.total_ms, len(result.detections))
        camera.ledger.add_stages(frame.read_ms, watch.laps)
    for sink in camera.sinks:
        sink.close()
    camera.source.close()
    return camera, time.perf_counter() - begun


def video_text(table: dict[str, Any]) -> str:
    """The table for people."""
    stages = ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in table["stages_ms"].items())
    return (
        f"{table['video']}: {table['frames']} frames, {table['backend']}, medians of {table['rounds']} turns\n"
        f"ms per frame, one after the other: {stages}\n"
        f"network alone        {table['network_alone_fps']:7.1f} frames/s\n"
        f"slowest thread alone {table['slowest_thread_fps']:7.1f} frames/s ({table['slowest_thread']})\n"
        f"one after the other  {table['sequential_fps']:7.1f} frames/s\n"
        f"side by side         {table['pipelined_fps']:7.1f} frames/s, "
        f"{table['share_of_slowest']:.0%} of the slowest thread's rate"
    )
