"""Recordings in segments: all the time, or around what was found; a folder that keeps to a size."""

from __future__ import annotations

import re
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from detector.data.video_file import VideoFile
from detector.structures import Image
from detector.video.frame import Result
from detector.video.sink import FileSink

BEFORE_SECONDS = AFTER_SECONDS = 5.0
QUALITY = 90
"""Of the JPEGs that wait for something to be found."""
NAME = re.compile(r"\d+_.*_\d{8}-\d{6}(_\d+)?\.mp4")
"""Only files with such a name are ever removed."""


class Recorder(FileSink):
    """Writes a camera's annotated frames into files of some length, each named by when it began.

    A file can be played up to its last second while it is written, and after a sudden end.

    Args:
        folder: where they go.
        camera: begins their names.
        fps: frames per second, for the duration of the last one.
        segment_seconds: length of a file.
        labels: record only while one of these is seen, and five seconds before and after; None = always.
        max_bytes: of the folder's recordings; the oldest are removed. None = no limit.
    """

    def __init__(
        self,
        folder: Path,
        camera: str,
        fps: float,
        *,
        segment_seconds: float = 60.0,
        labels: frozenset[int] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._camera, self._fps = folder, camera, fps
        self._segment_seconds, self._labels, self._max_bytes = segment_seconds, labels, max_bytes
        self._file: VideoFile | None = None
        self._begun = 0.0
        self._seen = -np.inf
        self._before: deque[tuple[float, bytes]] = deque()  # seconds, JPEG

    def write(self, image: Image, result: Result) -> None:
        """See `Sink`."""
        seconds = result.frame.seconds
        if self._labels is None:
            self._append(image, seconds)
            return
        if np.isin(result.detections.labels, list(self._labels)).any():
            self._seen = seconds
        if seconds - self._seen <= AFTER_SECONDS:
            while self._before:
                earlier, jpeg = self._before.popleft()
                bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
                assert bgr is not None, "it was encoded here"
                self._append(np.asarray(bgr[..., ::-1], np.uint8), earlier)
            self._append(image, seconds)
            return
        self.close()
        content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        self._before.append((seconds, content.tobytes()))
        while seconds - self._before[0][0] > BEFORE_SECONDS:
            self._before.popleft()

    def _append(self, image: Image, seconds: float) -> None:
        if self._file is not None and seconds - self._begun >= self._segment_seconds:
            self.close()
        if self._file is None:
            self._make_room()
            self._file, self._begun = VideoFile(self._free_path(), self._fps, fragmented=True), seconds
        self._file.write(image, seconds - self._begun)

    def _free_path(self) -> Path:
        stem = f"{self._camera}_{time.strftime('%Y%m%d-%H%M%S')}"
        path, number = self._folder / f"{stem}.mp4", 1
        while path.exists():
            number += 1
            path = self._folder / f"{stem}_{number}.mp4"
        return path

    def _make_room(self) -> None:
        """Removes the oldest recordings until the folder is within its limit."""
        if self._max_bytes is None:
            return
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another camera has removed it
                if NAME.fullmatch(path.name):
                    files.append((path.stat(), path))
        files.sort(key=lambda entry: entry[0].st_mtime_ns)
        total = sum(status.st_size for status, _ in files)
        for status, path in files:
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size

    def close(self) -> None:
        """See `Sink`."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
            self._make_room()
