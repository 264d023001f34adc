"""Where annotated frames go: a video file, image files, a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2

from detector.data.images import write_image
from detector.data.video_file import VideoFile
from detector.errors import InputError
from detector.render import tile
from detector.structures import Image

WINDOW_TITLE = "detector (q quits)"
MAX_GRID = 16


class VideoSink(VideoFile):
    """A video file."""

    def write(self, image: Image, name: str = "") -> None:  # noqa: ARG002 (all sinks have the same signature)
        """Appends a frame (H, W, 3) uint8 RGB. Raises: InputError when the file cannot be written."""
        super().write(image)


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
        write_image(self._path / target, image)

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
            write_image(self._path, self._images[0])
        elif self._images:
            write_image(self._path, tile(self._images, columns=4, cell_hw=(240, 320)))
        self._images = []


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
