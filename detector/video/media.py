"""Video files and streams as PyAV (FFmpeg) decodes them: upright, each frame at its own time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.video_file import MEDIA_ERRORS
from detector.errors import InputError
from detector.extras import require
from detector.structures import Image
from detector.video.frame import Frame, Source

with suppress(ImportError):  # images need no PyAV
    import av

DEFAULT_FPS = 25.0
OPEN_SECONDS, READ_SECONDS = 5.0, 2.0
STALL_SECONDS = 0.95 * READ_SECONDS
_STALLED = f"nothing came for {READ_SECONDS:g} s"
LIVE_OPTIONS = {
    "rtsp_flags": "prefer_tcp",
    "flags": "low_delay",
    "probesize": "500000",
    "analyzeduration": "500000",  # microseconds; with fflags=nobuffer the keyframe among them would be lost
}


class Media:
    """An opened container and its first video stream.

    Args:
        address: a path or a URL.
        shown: how messages call it.
        live: a stream, also if it states a duration: decoded with the least delay.

    Attributes:
        discarded: packets before the beginning of a trimmed file, whose frames are not shown.

    Raises:
        InputError: it cannot be opened, has no video, or PyAV is not installed.
    """

    def __init__(self, address: str, shown: str, *, live: bool = False) -> None:
        require("av", "reading a video")
        timeout = (OPEN_SECONDS, READ_SECONDS) if "://" in address else None
        self.shown = shown
        self.container: Any
        try:
            self.container = av.open(address, timeout=timeout, options=LIVE_OPTIONS if live else {})
        except MEDIA_ERRORS as error:
            raise InputError(f"{shown}: cannot be opened as a video ({_reason(error)})") from error
        if not self.container.streams.video:
            self.container.close()
            raise InputError(f"{shown}: has no video in it")
        self.stream: Any = self.container.streams.video[0]
        self.discarded = 0
        self._live = live or not self.has_end
        if self._live:
            self.stream.codec_context.thread_count = 1  # frames in the threads of a decoder are late
        else:
            self.stream.thread_type = "AUTO"

    @property
    def fps(self) -> float:
        """What the container says, or a guess."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else DEFAULT_FPS

    @property
    def total(self) -> int | None:
        """What the container says."""
        return self.stream.frames or None

    @property
    def start(self) -> float:
        """Seconds at which its streams begin."""
        return (self.container.start_time or 0) / av.time_base

    @property
    def has_end(self) -> bool:
        """Whether it is a file, rather than a stream without end."""
        return self.container.duration is not None

    def decode(self) -> Iterator[tuple[Any, int]]:
        """Its frames, and how many packets before each could not be decoded. Raises: InputError: reading failed."""
        lost = 0
        packets = self.container.demux(self.stream)
        while True:
            asked = time.monotonic()
            try:
                packet = next(packets, None)
            except MEDIA_ERRORS as error:
                raise InputError(f"{self.shown}: {_reason(error)}") from error
            if self._live and time.monotonic() - asked > STALL_SECONDS:
                raise InputError(f"{self.shown}: {_STALLED}")  # a reader that gave up may return an old packet
            if packet is None:
                return
            self.discarded += packet.is_discard
            try:
                frames = packet.decode()
            except MEDIA_ERRORS:
                lost += 1
                continue
            for frame in frames:
                yield frame, lost
                lost = 0

    def close(self) -> None:
        self.container.close()


def to_image(frame: Any) -> Image:
    """(H, W, 3) uint8 RGB, turned as the file says."""
    image: Image = frame.to_ndarray(format="rgb24", threads=1)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def seconds_of(frame: Any) -> float | None:
    """The frame's presentation time; None if it has none."""
    return None if frame.pts is None else float(frame.pts * frame.time_base)


class FileSource(Source):
    """Every frame of a video file. Frames that cannot be decoded are left out and counted in `problems`.

    Args:
        media: the opened file.
        path: the file; None for one of the web.
    """

    def __init__(self, media: Media, path: Path | None) -> None:
        super().__init__(media.shown)
        self._media = media
        self._reading = False
        self.paths = (path,) if path is not None else ()
        self.fps, self.total = media.fps, media.total

    def __iter__(self) -> Iterator[Frame]:
        self._reading = True
        try:
            yield from self._frames()
        finally:
            self._media.close()  # by the thread that reads it: at no other moment is this safe

    def _frames(self) -> Iterator[Frame]:
        fps = self.fps or DEFAULT_FPS
        index, lost, last = 0, 0, -1 / fps
        begun = time.perf_counter()
        for decoded, missing in self._media.decode():
            lost += missing
            seconds = seconds_of(decoded)
            seconds = None if seconds is None else seconds - self._media.start
            if seconds is None or (index and seconds <= last):
                seconds = last + 1 / fps
            duration = float(decoded.duration * decoded.time_base) if decoded.duration else None
            image = to_image(decoded)
            now = time.perf_counter()
            yield Frame(image, f"{index:06d}", index, now, seconds, duration, (now - begun) * 1000)
            begun = time.perf_counter()
            index, last = index + 1, seconds
        if index == 0:
            raise InputError(f"{self.name}: has no readable frame")
        lost = max(lost, (self.total or 0) - index - self._media.discarded)
        if lost:
            self.problems.append(f"{self.name}: {lost} of its {index + lost} frames could not be read")

    def close(self) -> None:
        if not self._reading:
            self._media.close()


def _reason(error: BaseException) -> str:
    """Why FFmpeg gave up, without the address, which may hold a password."""
    if type(error).__name__ == "ExitError":  # PyAV's time-out
        return _STALLED
    return str(getattr(error, "strerror", None) or type(error).__name__)
