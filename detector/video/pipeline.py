"""Frame in, boxes out: runs a predictor on a source and passes the results to sinks, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from detector.video.belt import Consumer, Feeder
from detector.video.sink import FolderSink, ImageSink, VideoSink, WindowSink
from detector.video.source import Frame, Source

STAGES = ("read", "detect", "draw", "write")
FILE_QUEUE = 4
"""Frames of a file that wait between two threads."""
Sink = VideoSink | FolderSink | ImageSink | WindowSink


@dataclass
class VideoReport:
    """What a run measured.

    Attributes:
        frames: number of frames that the detector saw.
        dropped: number of frames that a live source dropped because the detector was busy.
        unsaved: of a live source, frames that were not saved because writing was busy; the one before stands for them.
        detections: number in all frames.
        latency_ms: time from capture to boxes, for each frame; of a file, whose frames wait, without the waiting.
        stages: milliseconds of each frame: read; detect; draw and write. These three run side by side.
        seconds: duration of the whole run.
    """

    frames: int = 0
    dropped: int = 0
    unsaved: int = 0
    detections: int = 0
    latency_ms: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})
    seconds: float = 0.0

    def summary(self) -> str:
        """A one-line summary."""
        if not self.frames:
            return "no frames"
        middle, late = np.percentile(self.latency_ms, [50, 95])
        return (
            f"{self.frames} frames, {self.detections} detections, {self.frames / self.seconds:.1f} frames/s, "
            f"capture to boxes p50 {middle:.1f} ms, p95 {late:.1f} ms, {self.dropped} dropped"
            + (f", {self.unsaved} not saved" if self.unsaved else "")
            + "; ms per frame: "
            + ", ".join(f"{name} {np.median(times):.1f}" for name, times in self.stages.items() if times)
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

    Reading, detecting, and drawing with writing are three threads. Of a file they use every frame; of a live source
    each takes the newest one. A window is drawn by the thread that calls this, as window systems demand.

    Raises:
        InputError: a frame cannot be read or written.
    """
    report, started = VideoReport(), time.perf_counter()
    windows = [sink for sink in sinks if isinstance(sink, WindowSink)]
    files = [sink for sink in sinks if not isinstance(sink, WindowSink)]
    with ExitStack() as stack:
        for window in windows:
            stack.callback(window.close)
        frames, close_source = _read_ahead(source, report)
        stack.callback(close_source)
        output = _Output(files, predictor, report)
        consumer = Consumer(output.use, waiting=1 if source.live else FILE_QUEUE, newest=source.live)
        stack.callback(lambda: consumer.close() and [sink.close() for sink in files])
        for frame in frames:
            begun = time.perf_counter()
            detections = predictor.predict(frame.image)
            ended = time.perf_counter()
            report.stages["detect"].append((ended - begun) * 1000)
            report.latency_ms.append((ended - (frame.captured if source.live else begun)) * 1000)
            report.frames += 1
            report.detections += len(detections)
            if on_frame is not None:
                on_frame(frame, detections)
            if files:
                consumer.belt.put((frame, detections))
            if _shown(windows, frame, detections, predictor, report):
                break
        consumer.finish()
        report.dropped, report.unsaved = source.dropped, consumer.belt.dropped
    report.seconds = time.perf_counter() - started
    return report


def _read_ahead(source: Source, report: VideoReport) -> tuple[Iterable[Frame], Callable[[], None]]:
    """A source's frames, read by a thread, and what closes it when that thread has left it."""
    frames = _timed(source, report)
    if source.live:  # it has a thread already
        return frames, source.close
    feeder = Feeder(frames, ahead=FILE_QUEUE)

    def close() -> None:
        if feeder.close():
            source.close()

    return feeder.belt, close


def _timed(source: Source, report: VideoReport) -> Iterator[Frame]:
    """The frames of a source; how long each took to read is noted."""
    begun = time.perf_counter()
    for frame in source:
        report.stages["read"].append((time.perf_counter() - begun) * 1000)
        yield frame
        begun = time.perf_counter()


class _Output:
    """Draws and writes frames, in their order."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        predictor: Predictor,
        report: VideoReport,
    ) -> None:
        self._sinks, self._predictor, self._report = sinks, predictor, report
        self._last_index = -1

    def use(self, item: tuple[Frame, Detections]) -> None:
        """Draws once and passes the image to all sinks. Raises: InputError: it cannot be written."""
        frame, detections = item
        begun = time.perf_counter()
        annotated = draw(frame.image, detections, self._predictor.class_names)
        drawn = time.perf_counter()
        for sink in self._sinks:
            copies = frame.index - self._last_index if isinstance(sink, VideoSink) else 1
            for _ in range(copies):  # a recording keeps the camera's frame rate, also where frames were dropped
                sink.write(annotated, frame.name)
        self._last_index = frame.index
        self._report.stages["draw"].append((drawn - begun) * 1000)
        self._report.stages["write"].append((time.perf_counter() - drawn) * 1000)


def _shown(
    windows: Sequence[WindowSink], frame: Frame, detections: Detections, predictor: Predictor, report: VideoReport
) -> bool:
    """Shows a frame in the windows; whether the user has closed one."""
    for window in windows:
        rate = 1000 / float(np.mean(report.latency_ms[-30:]))
        window.write(_with_rate(draw(frame.image, detections, predictor.class_names), rate), frame.name)
    return any(window.quit for window in windows)


def _with_rate(image: Image, frames_per_second: float) -> Image:
    canvas = image.copy()
    text = f"{frames_per_second:.0f} fps"
    for color, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(canvas, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, color, thickness, cv2.LINE_AA)
    return canvas
