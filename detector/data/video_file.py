"""Writes videos, and notices when they are not whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np

from detector.errors import InputError
from detector.files import plain_name
from detector.structures import Image

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv"}


class VideoFile:
    """A video file, opened at the first frame with that frame's size; it gets its name when it is complete.

    Odd sides get one more row or column, which the codecs need.

    Args:
        path: .mp4, .avi or .mkv.
        fps: frames per second.

    Raises:
        InputError: another suffix.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"{path}: a video is saved as .mp4, .avi or .mkv")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._trial = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.suffix.lower()}")
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def write(self, image: Image) -> None:
        """Appends a frame (H, W, 3) uint8 RGB. Raises: InputError when the file cannot be written."""
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            code = "MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"
            size = (image.shape[1], image.shape[0])
            with plain_name(str(self._trial.parent)) as folder:
                name = str(Path(folder) / self._trial.name)
                self._writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*code), self._fps, size)
            if not self._writer.isOpened():
                raise InputError(f"{self._path}: cannot be written; check the folder and the free space")
        self._writer.write(image[..., ::-1])
        self._count += 1

    def close(self) -> None:
        """Completes the file. Raises: InputError: it lacks frames, as on a full disk."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        with plain_name(str(self._trial)) as name:
            capture = cv2.VideoCapture(name)
            readable = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.read()[0] else 0
            capture.release()
        if readable < self._count - 1:  # .mkv states its duration only
            self._trial.unlink(missing_ok=True)
            raise InputError(
                f"{self._path}: {max(readable, 0)} of {self._count} frames were written; is the disk full?"
            )
        self._trial.replace(self._path)
