"""Frame in, boxes out: runs a predictor on a source and passes the results to sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from detector.data.video_file import VIDEO_SUFFIXES
from detector.errors import InputError
from detector.files import is_image_name
from detector.inference.predictor import Predictor
from detector.render import draw
from detector.structures import Detections, Image
from detector.video.sink import FolderSink, ImageSink, VideoSink, WindowSink
from detector.video.source import Frame, Source

Sink = VideoSink | FolderSink | ImageSink | WindowSink


@dataclass
class VideoReport:
    """What a run measured.

    Attributes:
        frames: number of frames shown or saved.
        dropped: number of frames that a live source dropped because the detector was busy.
        detections: number in all frames.
        latency_ms: time from capture to boxes, for each frame.
        seconds: duration of the whole run.
    """

    frames: int = 0
    dropped: int = 0
    detections: int = 0
    latency_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        """A one-line summary."""
        if not self.frames:
            return "no frames"
        middle, late = np.percentile(self.latency_ms, [50, 95])
        return (
            f"{self.frames} frames, {self.detections} detections, {self.frames / self.seconds:.1f} frames/s, "
            f"capture to boxes p50 {middle:.1f} ms, p95 {late:.1f} ms, {self.dropped} dropped"
        )


def open_file_sink(source: Source, path: Path) -> Sink:
    """Where a source's frames are saved: a video for a video, a folder or one image file for images.

    Raises:
        InputError: the path has the wrong suffix, or would overwrite a file that is being read.
    """
    images = source.fps is None
    if images and path.suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(f"{path}: images are saved to a folder, or to a .jpg as a grid; name one of these")
    into_folder = images and not is_image_name(path)
    for read in source.paths:
        if (path / read.name if into_folder else path).resolve() == read.resolve():
            raise InputError(f"{path}: would overwrite {read}, which is being read; choose another path")
    if source.fps is not None:
        return VideoSink(path, source.fps)
    return FolderSink(path) if into_folder else ImageSink(path)


def run_video(
    source: Source,
    predictor: Predictor,
    sinks: Sequence[Sink],
    *,
    on_frame: Callable[[Frame, Detections], None] | None = None,
) -> VideoReport:
    """Runs until the source ends or the user closes the window; source and sinks are always closed.

    Raises:
        InputError: a frame cannot be read or written.
    """
    report, started, last_index = VideoReport(), time.perf_counter(), -1
    with ExitStack() as stack:
        for item in (*sinks, source):
            stack.callback(item.close)
        for frame in source:
            detections = predictor.predict(frame.image)
            report.latency_ms.append((time.perf_counter() - frame.captured) * 1000)
            report.frames += 1
            report.detections += len(detections)
            if on_frame is not None:
                on_frame(frame, detections)
            if sinks:
                _show(frame, detections, predictor, sinks, report, frame.index - last_index)
            last_index = frame.index
            if any(isinstance(sink, WindowSink) and sink.quit for sink in sinks):
                break
        report.dropped = source.dropped
    report.seconds = time.perf_counter() - started
    return report


def _show(
    frame: Frame,
    detections: Detections,
    predictor: Predictor,
    sinks: Sequence[Sink],
    report: VideoReport,
    num_copies: int,
) -> None:
    """Draws once and passes the image to all sinks; a video gets it `num_copies` times, for dropped frames."""
    annotated = draw(frame.image, detections, predictor.class_names)
    for sink in sinks:
        if isinstance(sink, WindowSink):
            rate = 1000 / float(np.mean(report.latency_ms[-30:]))
            sink.write(_with_rate(annotated, rate), frame.name)
        elif isinstance(sink, VideoSink):
            for _ in range(num_copies):  # a recording keeps the camera's frame rate
                sink.write(annotated, frame.name)
        else:
            sink.write(annotated, frame.name)


def _with_rate(image: Image, frames_per_second: float) -> Image:
    canvas = image.copy()
    text = f"{frames_per_second:.0f} fps"
    for color, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(canvas, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, color, thickness, cv2.LINE_AA)
    return canvas
