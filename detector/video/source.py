"""Frames from cameras, video files, streams, images, folders and globs.

A live source (camera or stream) yields the newest frame. Frames that arrive while the detector is busy are dropped and
counted, so the output never lags behind. A file yields every frame.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detector.data.images import read_image
from detector.errors import InputError
from detector.files import SHOWN_SUFFIXES, expand, is_image_name, list_images, plain_name
from detector.structures import Image

_PATIENCE_SECONDS = 10.0
_UNREADABLE_IN_A_ROW = 100
"""So many frames may be unreadable one after the other before a video counts as ended."""


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        name: file name, or the number of the frame.
        index: counted from 0, dropped frames included.
        captured: time.perf_counter() when it arrived.
    """

    image: Image
    name: str
    index: int
    captured: float


class Source:
    """An iterable of frames; close it when done.

    Attributes:
        fps: frames per second of a video, None for images.
        live: whether frames that are not fetched in time are dropped.
        total: number of frames, None if unknown.
        dropped: number of frames dropped so far.
        problems: what could not be read, for the user.
        paths: the files that are read, which must not be overwritten.
    """

    fps: float | None = None
    live: bool = False
    total: int | None = None
    dropped: int = 0
    paths: tuple[Path, ...] = ()

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Frees the device; nothing to free by default."""


class ImageSource(Source):
    """Image files, one after the other. Those that cannot be read are left out and are `problems`."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.total = len(paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path)
            except InputError as error:
                self.problems.append(str(error))
                continue
            yield Frame(image, path.name, index, time.perf_counter())
        if len(self.problems) == len(self.paths):
            raise InputError(self.problems[0])


class VideoSource(Source):
    """Every frame of a video file. Frames that cannot be decoded are left out and counted in `problems`."""

    def __init__(self, capture: cv2.VideoCapture, name: str) -> None:
        super().__init__()
        self._capture = capture
        self._name = name
        self.paths = (Path(name),) if "://" not in name else ()
        self.fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = count if count > 0 else None
        self._times: list[float] = []  # ms

    def __iter__(self) -> Iterator[Frame]:
        index, failures = 0, 0
        while not failures or failures <= min((self.total or 0) - index, _UNREADABLE_IN_A_ROW):
            read, frame = self._capture.read()
            if not read:
                failures += 1
                continue
            failures = 0
            self._times.append(self._capture.get(cv2.CAP_PROP_POS_MSEC))
            yield Frame(_to_rgb(frame), f"{index:06d}", index, time.perf_counter())
            index += 1
        if index == 0:
            raise InputError(f"{self._name}: has no readable frame")
        self._check(index)

    def _check(self, num_frames: int) -> None:
        """Compares what the file says about itself with its frames."""
        if self.total is not None and num_frames < self.total:
            self.problems.append(f"{self._name}: {num_frames} of its {self.total} frames could be read")
        interval = float(np.median(np.diff(self._times))) if num_frames > 1 else 0.0  # ms
        rate = 1000 / interval if interval > 0 else self.fps
        if rate and self.fps and not 0.9 < rate / self.fps < 1.1:
            self.problems.append(
                f"{self._name}: says {self.fps:.4g} frames per second, its frames' times say {rate:.4g}; a saved video "
                "has the first"
            )

    def close(self) -> None:
        self._capture.release()


class LiveSource(Source):
    """The newest frame of a camera or stream, fetched by a thread."""

    live = True

    def __init__(self, capture: cv2.VideoCapture, name: str) -> None:
        super().__init__()
        self._capture = capture
        self._name = name
        self.fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        self._newest: Frame | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        index = 0
        while not self._ended:
            read, frame = self._capture.read()
            with self._changed:
                if not read:
                    self._ended = True
                else:
                    self.dropped += self._newest is not None
                    self._newest = Frame(_to_rgb(frame), f"{index:06d}", index, time.perf_counter())
                    index += 1
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        """Ends when the stream does. Raises: InputError when no frame arrives at all, or none for ten seconds."""
        seen = False
        while True:
            with self._changed:
                arrived = self._changed.wait_for(lambda: self._newest is not None or self._ended, _PATIENCE_SECONDS)
                if not arrived:
                    raise InputError(f"{self._name}: no frame for {_PATIENCE_SECONDS:g} s; is it still connected?")
                frame, self._newest = self._newest, None
            if frame is None:
                if not seen:
                    raise InputError(f"{self._name}: opened, but no frame arrived")
                self.problems.append(f"{self._name}: the stream ended")
                return
            seen = True
            yield frame

    def close(self) -> None:
        self._ended = True
        self._thread.join(timeout=2)
        if not self._thread.is_alive():  # the thread may hang in the driver; a release would then crash
            self._capture.release()


def open_source(text: str) -> Source:
    """Opens the source that a user named.

    Args:
        text: cam0, cam1, ...; a stream URL; a video or image file; a folder of images; a glob.

    Raises:
        InputError: there is no such source, or it cannot be opened.
    """
    camera = re.fullmatch(r"cam(\d+)", text)
    if camera:
        with _quiet_opencv():
            capture = cv2.VideoCapture(int(camera[1]))
        if not capture.isOpened():
            raise InputError(f"{text}: no such camera, or another program uses it; ls /dev/video* lists them")
        return LiveSource(capture, text)
    if "://" in text:
        with _quiet_opencv():
            capture = cv2.VideoCapture(text)
        if not capture.isOpened():
            raise InputError(f"{without_password(text)}: the stream cannot be opened; check address, port and password")
        is_file = capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        return (VideoSource if is_file else LiveSource)(capture, without_password(text))
    path = Path(text)
    matching = expand(text)
    if path.is_dir() or matching is not None:
        images = list_images(path) if matching is None else matching
        if not images:
            raise InputError(f"{text}: no images found; expected {SHOWN_SUFFIXES}")
        return ImageSource(images)
    if not path.is_file():
        raise InputError(f"{text}: no such file; expected cam0, a video, an image, a folder, a glob or a stream URL")
    if is_image_name(path) and path.suffix.lower() != ".gif":
        return ImageSource([path])
    with _quiet_opencv(), plain_name(text) as name:
        capture = cv2.VideoCapture(name)
    if not capture.isOpened():
        raise InputError(f"{text}: is not a video that OpenCV can read")
    return VideoSource(capture, text)


def without_password(address: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"(?<=//)[^/@]*@", "", address)


def _to_rgb(frame_bgr: np.ndarray) -> Image:
    return np.asarray(cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB), np.uint8)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silences OpenCV's warnings about every backend that it tries; our own one-line error replaces them."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
