"""Where annotated frames go: a video file, image files, a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2

from detector.errors import InputError
from detector.render import tile
from detector.structures import Image

WINDOW_TITLE = "detector (q quits)"
MAX_GRID = 16
VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv"}


class VideoSink:
    """A video file; opened at the first frame, with that frame's size."""

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"{path}: a video is saved as .mp4, .avi or .mkv")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, image: Image, name: str) -> None:  # noqa: ARG002 (all sinks have the same signature)
        """Appends a frame (H, W, 3) uint8 RGB. Raises: InputError when the file cannot be written."""
        if self._writer is None:
            code = "MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"
            size = (image.shape[1], image.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*code), self._fps, size)
            if not self._writer.isOpened():
                raise InputError(f"{self._path}: cannot be written; check the folder and the free space")
        self._writer.write(image[..., ::-1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


class FolderSink:
    """Image files in a folder, under their own names; a repeated name gets a number."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._written: set[str] = set()

    def write(self, image: Image, name: str) -> None:
        """Writes an image (H, W, 3) uint8 RGB. Raises: InputError when it cannot be written."""
        target, number = Path(name), 1
        while target.name in self._written:
            number += 1
            target = Path(f"{Path(name).stem}_{number}{Path(name).suffix}")
        self._written.add(target.name)
        _write_image(self._path / target, image)

    def close(self) -> None:
        """Nothing to do: every image is already complete."""


class ImageSink:
    """One image file: a single frame unchanged, or a grid of the first `MAX_GRID` frames."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._images: list[Image] = []

    def write(self, image: Image, name: str) -> None:  # noqa: ARG002 (all sinks have the same signature)
        """Adds an image (H, W, 3) uint8 RGB; images beyond `MAX_GRID` are left out."""
        if len(self._images) < MAX_GRID:
            self._images.append(image)

    def close(self) -> None:
        """Writes the file. Raises: InputError when it cannot be written."""
        if len(self._images) == 1:
            _write_image(self._path, self._images[0])
        elif self._images:
            _write_image(self._path, tile(self._images, columns=4, cell_hw=(240, 320)))
        self._images = []


def _write_image(path: Path, image: Image) -> None:
    try:
        written = cv2.imwrite(str(path), image[..., ::-1])
    except cv2.error:
        written = False
    if not written:
        raise InputError(f"{path}: cannot be written; expected a name that ends in .jpg or .png, and free disk space")


class WindowSink:
    """A window on the screen. Raises: InputError if there is no screen.

    Args:
        wait_ms: minimum time that each frame is shown; 0 = until a key is pressed.
    """

    def __init__(self, *, wait_ms: int = 1) -> None:
        self._wait_ms = wait_ms
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise InputError("--show: there is no display here; use --save OUT instead")
        cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL)
        self.quit = False

    def write(self, image: Image, name: str) -> None:  # noqa: ARG002 (all sinks have the same signature)
        """Shows a frame (H, W, 3) uint8 RGB; sets `quit` when the user pressed q or closed the window."""
        cv2.imshow(WINDOW_TITLE, image[..., ::-1])
        pressed = cv2.waitKey(self._wait_ms) & 0xFF
        closed = cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.quit = pressed in (ord("q"), 27) or closed

    def close(self) -> None:
        cv2.destroyAllWindows()
