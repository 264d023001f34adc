"""Frames in, boxes out: reading, detecting, and drawing with writing run side by side, for one camera or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data.video_file import VIDEO_SUFFIXES
from detector.errors import InputError
from detector.files import is_image_name
from detector.inference.predictor import Predictor
from detector.render import draw
from detector.structures import Detections, Image
from detector.tracking.counting import Place
from detector.tracking.tracker import Tracker
from detector.video.belt import Consumer
from detector.video.drawing import Trails, blur, draw_places, draw_trails, write_outlined
from detector.video.frame import Frame, Result, Source
from detector.video.intake import WAITING_FRAMES, Intake
from detector.video.ledger import Ledger, Stopwatch
from detector.video.sink import FolderSink, ImageSink, Sink, VideoSink, WindowSink


@dataclass
class Camera:
    """A source and what happens with its frames.

    Attributes:
        source: where they come from.
        sinks: where the annotated ones go.
        tracker: gives identities; None = none.
        places: lines and zones that count.
        blur: the labels whose boxes are made unrecognisable before any output.
        ledger: what was measured.
        trails: where tracked objects were.
    """

    source: Source
    sinks: Sequence[Sink] = ()
    tracker: Tracker | None = None
    places: Sequence[Place] = ()
    blur: frozenset[int] = frozenset()
    ledger: Ledger = field(default_factory=Ledger)
    trails: Trails = field(default_factory=Trails)

    def follow(self, number: int, frame: Frame, detections: Detections, watch: Stopwatch) -> Result:
        """The result for a frame: with identities, events and trails, if they are wanted."""
        blurred = detections.boxes_xyxy[np.isin(detections.labels, list(self.blur))]
        if self.tracker is None:
            return Result(number, frame, detections, [], [], [], blurred, watch)
        detections = self.tracker.update(detections, frame.seconds)
        events = [event for place in self.places for event in place.update(detections, frame.seconds)]
        trails = self.trails.update(detections, frame.seconds)
        captions = [place.caption() for place in self.places]
        watch.lap("track")
        return Result(number, frame, detections, events, trails, captions, blurred, watch)


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
        return VideoSink(path, source.fps, audio_of=None if source.live or not source.paths else source.paths[0])
    return FolderSink(path) if into_folder else ImageSink(path)


def run_video(
    cameras: Sequence[Camera],
    predictor: Predictor,
    *,
    window: WindowSink | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> float:
    """Runs until all sources end or the user closes the window; sources and sinks are always closed.

    Each source is read by a thread and each camera's output is drawn and written by another. Of a file they use every
    frame; of a live source each takes the newest one. The window is drawn by the thread that calls this, as window
    systems demand.

    Returns:
        The duration in seconds; what was measured is in each camera's ledger.

    Raises:
        InputError: a frame cannot be read or written.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        if window is not None:
            stack.callback(window.close)
        intake = Intake([camera.source for camera in cameras])
        stack.callback(intake.close)
        outputs = [_Output(camera, predictor) for camera in cameras]
        for output in outputs:
            stack.callback(output.close)
        for number, frame in intake:
            camera, watch = cameras[number], Stopwatch(frame.captured)
            watch.lap("wait")
            detections = predictor.predict_batch([frame.image], on_stage=watch.lap)[0]
            result = camera.follow(number, frame, detections, watch)
            waited_ms = 0.0 if camera.source.live else watch.laps["wait"]  # frames of a file wait as they must
            camera.ledger.add_boxes(watch.total_ms - waited_ms, len(result.detections))
            camera.ledger.dropped = intake.dropped[number]
            if on_result is not None:
                on_result(result)
            outputs[number].put(result)
            if window is not None:
                window.show(number, _with_rate(annotate(result, camera, predictor), camera.ledger))
                if window.quit:
                    break
        for output in outputs:
            output.finish()
    return time.perf_counter() - started


class _Output:
    """Draws and writes a camera's frames in their order, in a thread of its own."""

    def __init__(self, camera: Camera, predictor: Predictor) -> None:
        self._camera, self._predictor = camera, predictor
        live = camera.source.live
        self._consumer = Consumer(self._use, waiting=1 if live else WAITING_FRAMES, newest=live)

    def put(self, result: Result) -> None:
        """Takes a frame. Raises: InputError: one before it could not be written."""
        self._consumer.belt.put(result)
        self._camera.ledger.unsaved = self._consumer.belt.dropped

    def _use(self, result: Result) -> None:
        """Draws once and passes the image to all sinks. Raises: InputError: it cannot be written."""
        camera, watch = self._camera, result.watch
        watch.lap("queue")
        wanted = [sink for sink in camera.sinks if sink.wants(result)]
        if wanted:
            annotated = annotate(result, camera, self._predictor)
            watch.lap("draw")
            for sink in wanted:
                sink.write(annotated, result)
            watch.lap("encode")
        camera.ledger.add_stages(result.frame.read_ms, watch.laps)

    def finish(self) -> None:
        """Waits until every frame was written. Raises: InputError: one could not be written."""
        self._consumer.finish()

    def close(self) -> None:
        """Closes the files, unless the thread hangs in one."""
        if not self._consumer.close():
            self._camera.source.problems.append(f"{self._camera.source.name}: writing hung; its output is not complete")
            return
        with ExitStack() as stack:
            for sink in self._camera.sinks:
                stack.callback(sink.close)


def annotate(result: Result, camera: Camera, predictor: Predictor) -> Image:
    """The frame with blurred objects, boxes, lines and counts. Nothing else may show a frame to anyone."""
    image = blur(result.frame.image, result.blurred_xyxy) if camera.blur else result.frame.image
    image = draw_trails(draw(image, result.detections, predictor.class_names), result.trails)
    return draw_places(image, camera.places, result.captions)


def _with_rate(image: Image, ledger: Ledger) -> Image:
    write_outlined(image, f"{ledger.frames_per_second:.0f} fps", (8, 24), 0.7, (255, 255, 255))
    return image
