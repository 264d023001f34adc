"""Opens what a user calls a source: a camera, a stream, a video file, images."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2

from detector.data.images import read_image
from detector.errors import InputError
from detector.files import SHOWN_SUFFIXES, expand, is_image_name, list_images
from detector.video.frame import Frame, Source
from detector.video.live import CameraConnection, LiveSource, StreamConnection
from detector.video.media import DEFAULT_FPS, FileSource, Media

WEB = ("http://", "https://", "ftp://", "file://")


class ImageSource(Source):
    """Image files, one after the other. Those that cannot be read are left out and are `problems`."""

    def __init__(self, name: str, paths: list[Path]) -> None:
        super().__init__(name)
        self.paths = tuple(paths)
        self.total = len(paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            begun = time.perf_counter()
            try:
                image = read_image(path)
            except InputError as error:
                self.problems.append(str(error))
                continue
            now = time.perf_counter()
            yield Frame(image, path.name, index, now, index / DEFAULT_FPS, read_ms=(now - begun) * 1000)
        if len(self.problems) == len(self.paths):
            raise InputError(self.problems[0])


def open_source(text: str, *, retries: int | None = None, patient: bool = False) -> Source:
    """Opens the source that a user named.

    Args:
        text: cam0, cam1, ...; a stream URL; a video or image file; a folder of images; a glob.
        retries: see `LiveSource`.
        patient: see `LiveSource`.

    Raises:
        InputError: there is no such source, or it cannot be opened.
    """
    camera = re.fullmatch(r"cam(\d+)", text)
    if camera:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our own messages replace OpenCV's
        return LiveSource(text, partial(CameraConnection, int(camera[1])), retries, patient=patient)
    if "://" in text:
        return _open_address(text, retries, patient=patient)
    path = Path(text)
    matching = expand(text)
    if path.is_dir() or matching is not None:
        images = list_images(path) if matching is None else matching
        if not images:
            raise InputError(f"{text}: no images found; expected {SHOWN_SUFFIXES}")
        return ImageSource(text, images)
    if not path.is_file():
        raise InputError(f"{text}: no such file; expected cam0, a video, an image, a folder, a glob or a stream URL")
    if is_image_name(path) and path.suffix.lower() != ".gif":
        return ImageSource(text, [path])
    return FileSource(Media(text, text), path)


def _open_address(text: str, retries: int | None, *, patient: bool) -> Source:
    """A stream, or a file of the web."""
    shown = without_password(text)
    opened: list[Media] = []
    if text.startswith(WEB):
        try:
            opened = [Media(text, shown)]
        except InputError:
            if not patient:
                raise
        else:
            if opened[0].has_end:
                return FileSource(opened[0], Path(text.removeprefix("file://")) if text.startswith("file://") else None)

    def connect() -> StreamConnection:
        return StreamConnection(opened.pop() if opened else Media(text, shown, live=True))

    return LiveSource(shown, connect, retries, patient=patient)


def without_password(address: str) -> str:
    """An address as it may be shown: without user, password and query, where cameras take passwords too."""
    return re.sub(r"(?<=//).*@", "", address.partition("?")[0])
