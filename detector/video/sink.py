"""Where annotated frames go: a video file, image files, a window."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Protocol

import cv2

from detector.data.images import write_image
from detector.data.video_file import VideoFile
from detector.errors import InputError
from detector.render import tile
from detector.structures import Image
from detector.video.frame import Result

WINDOW_TITLE = "detector (q quits)"
MAX_GRID = 16
CELL_HW = (360, 640)
"""Of each of several cameras in the window."""


class Sink(Protocol):
    """Takes the annotated frames of a camera."""

    problems: list[str]

    def wants(self, result: Result) -> bool:
        """Whether it takes this frame; only then is it drawn."""
        ...

    def write(self, image: Image, result: Result) -> None:
        """Takes a frame, annotated (H, W, 3) uint8 RGB. Raises: InputError when it cannot be written."""
        ...

    def close(self) -> None:
        """Completes what was written. Raises: InputError when it cannot be."""
        ...


class FileSink:
    """A sink that takes every frame."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wants(self, result: Result) -> bool:  # noqa: ARG002
        """See `Sink`."""
        return True

    def close(self) -> None:
        """See `Sink`."""


class VideoSink(FileSink):
    """A video file whose frames keep their own times. Args: as for `VideoFile`."""

    def __init__(self, path: Path, fps: float, *, audio_of: Path | None = None) -> None:
        super().__init__()
        self._file = VideoFile(path, fps, audio_of=audio_of)
        self.problems = self._file.problems

    def write(self, image: Image, result: Result) -> None:
        """See `Sink`."""
        self._file.write(image, result.frame.seconds, result.frame.duration)

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


class FolderSink(FileSink):
    """Image files in a folder, under their own names; a repeated name gets a number."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._written: set[str] = set()

    def write(self, image: Image, result: Result) -> None:
        """See `Sink`."""
        name = result.frame.name
        target, number = Path(name), 1
        while target.name in self._written:
            number += 1
            target = Path(f"{Path(name).stem}_{number}{Path(name).suffix}")
        self._written.add(target.name)
        write_image(self._path / target, image)


class ImageSink(FileSink):
    """One image file: a single frame unchanged, or a grid of the first `MAX_GRID` frames."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._images: list[Image] = []

    def write(self, image: Image, result: Result) -> None:  # noqa: ARG002
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
            raise InputError("there is no display here for a window; use --save OUT, --json or --web instead")
        cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL)
        self.quit = False
        self._images: dict[int, Image] = {}

    def show(self, camera: int, image: Image) -> None:
        """Shows a frame (H, W, 3) uint8 RGB beside the newest of the other cameras; sets `quit` when the user pressed q
        or closed the window.
        """
        self._images[camera] = image
        images = [self._images[number] for number in sorted(self._images)]
        if len(images) > 1:
            image = tile(images, columns=math.ceil(math.sqrt(len(images))), cell_hw=CELL_HW)
        cv2.imshow(WINDOW_TITLE, image[..., ::-1])
        pressed = cv2.waitKey(self._wait_ms) & 0xFF
        closed = cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.quit = pressed in (ord("q"), 27) or closed

    def close(self) -> None:
        cv2.destroyAllWindows()
