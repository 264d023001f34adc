"""Where annotated frames go: a video file, picture files, a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2

from detector.data.images import IMAGE_SUFFIXES
from detector.errors import InputError
from detector.structures import Image

WINDOW_TITLE = "detector (q quits)"


class VideoSink:
    """An mp4 file; opened with the first frame, whose size it takes."""

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in {".mp4", ".avi", ".mkv"}:
            raise InputError(f"{path}: a video is saved as .mp4, .avi or .mkv")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, image: Image, name: str) -> None:  # noqa: ARG002 (the sinks are called alike)
        """Appends a frame (H, W, 3) uint8 RGB. Raises: InputError when the file cannot be written."""
        if self._writer is None:
            code = "MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"
            size = (image.shape[1], image.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*code), self._fps, size)
            if not self._writer.isOpened():
                raise InputError(f"{self._path}: cannot be written; does the folder exist and is there space?")
        self._writer.write(image[..., ::-1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


class PictureSink:
    """Picture files: into a folder under their own names, or, for a path that ends like a picture, one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._single = path.suffix.lower() in IMAGE_SUFFIXES
        (path.parent if self._single else path).mkdir(parents=True, exist_ok=True)

    def write(self, image: Image, name: str) -> None:
        """Writes a picture (H, W, 3) uint8 RGB. Raises: InputError when it cannot be written."""
        target = self._path if self._single else self._path / name
        if not cv2.imwrite(str(target), image[..., ::-1]):
            raise InputError(f"{target}: cannot be written")

    def close(self) -> None:
        """Every picture is whole as soon as it is written."""


class WindowSink:
    """A window on the screen. Raises: InputError where there is none."""

    def __init__(self) -> None:
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise InputError("--show: there is no display here; use --save OUT instead")
        cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL)
        self.quit = False

    def write(self, image: Image, name: str) -> None:  # noqa: ARG002 (the sinks are called alike)
        """Shows a frame (H, W, 3) uint8 RGB; sets `quit` when the user pressed q or closed the window."""
        cv2.imshow(WINDOW_TITLE, image[..., ::-1])
        pressed = cv2.waitKey(1) & 0xFF
        closed = cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.quit = pressed in (ord("q"), 27) or closed

    def close(self) -> None:
        cv2.destroyAllWindows()
