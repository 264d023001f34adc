"""Live sources: cameras and streams, whose connection is watched by the time of arrival, lost, and found again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import cv2
import numpy as np

from detector.errors import InputError
from detector.structures import Image
from detector.video.belt import Belt
from detector.video.frame import Frame, Source
from detector.video.media import DEFAULT_FPS, READ_SECONDS, Media, seconds_of, to_image

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
JITTER = 0.2
MAX_DRIFT_SECONDS = 1.0
"""A stream whose own clock is further from the time of arrival gets a new start."""


class Connection(Protocol):
    """An open live source."""

    fps: float

    def images(self) -> Iterator[tuple[Image, float | None]]:
        """Images and their own times, until the source ends. Raises: InputError: nothing comes any more."""
        ...

    def close(self) -> None: ...


class LiveSource(Source):
    """The frames of a camera or stream as they arrive.

    When nothing comes for two seconds, or the connection ends, it is opened again: after half a second, then after
    twice as long each time, up to half a minute, each with some jitter so that cameras do not return in step.

    Args:
        name: without a password.
        connect: opens it. Raises: InputError.
        retries: so many attempts in a row may fail before the source ends; None = it never ends.
        patient: a source that is not there yet is waited for like a lost one; else it is an error at once.

    Raises:
        InputError: it cannot be opened.
    """

    live = True

    def __init__(
        self, name: str, connect: Callable[[], Connection], retries: int | None = None, *, patient: bool = False
    ) -> None:
        super().__init__(name)
        self._connect = connect
        self._retries = retries
        self._closed = threading.Event()
        self._clock = _Clock()
        self._wait, self._attempts = FIRST_WAIT_SECONDS, 0
        self._connection: Connection | None = None
        self._reason = ""
        self.fps: float = DEFAULT_FPS
        try:
            self._connection = connect()
            self.fps = self._connection.fps
        except InputError as error:
            if not patient:
                raise
            self._reason = str(error)

    def __iter__(self) -> Iterator[Frame]:
        """Raises: InputError when no frame arrives at all."""
        index = 0
        if self._connection is None:
            self._connection = self._open_again(self._reason)
        try:
            while self._connection is not None and not self._closed.is_set():
                self._reason = "the stream ended"
                begun = time.perf_counter()
                try:
                    for image, own_seconds in self._connection.images():
                        if self._closed.is_set():
                            return
                        now = time.perf_counter()
                        seconds = self._clock.seconds(own_seconds, now)
                        self._wait, self._attempts = FIRST_WAIT_SECONDS, 0  # it works again
                        yield Frame(image, f"{index:06d}", index, now, seconds, read_ms=(now - begun) * 1000)
                        index += 1
                        begun = time.perf_counter()
                except InputError as error:
                    self._reason = str(error)
                self._connection.close()
                self._clock.restart()
                self._connection = self._open_again(self._reason)
        finally:
            if self._connection is not None:
                self._connection.close()
        if not self._closed.is_set():
            if not index:
                raise InputError(f"{self.name}: no frame arrived ({self._reason or 'the stream ended'})")
            self.problems.append(f"{self.name}: was lost after {index} frames and did not come back")

    def _open_again(self, reason: str) -> Connection | None:
        """A new connection; None when the source was closed or the attempts are used up."""
        while self._retries is None or self._attempts < self._retries:
            self.state = f"reconnecting, attempt {self._attempts + 1}: {reason}"
            if self._closed.wait(self._wait * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311
                return None
            self._wait, self._attempts = min(2 * self._wait, LONGEST_WAIT_SECONDS), self._attempts + 1
            try:
                connection = self._connect()
            except InputError as error:
                reason = self._reason = str(error)
                continue
            self.state = "open"
            self.reconnects += 1
            return connection
        self.state = f"lost: {reason}"
        return None

    def close(self) -> None:
        self._closed.set()


class _Clock:
    """A stream's own times as seconds since its first frame, through every new start of its clock."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._offset: float | None = None
        self._last = -1.0

    def seconds(self, own: float | None, arrived: float) -> float:
        """The time of a frame. Args: own: what the stream says; arrived: on this computer's clock."""
        self._begun = arrived if self._begun is None else self._begun
        elapsed = arrived - self._begun
        if own is None:
            found = elapsed
        else:
            if self._offset is None or abs(own + self._offset - elapsed) > MAX_DRIFT_SECONDS:
                self._offset = elapsed - own
            found = own + self._offset
        self._last = max(found, self._last + 0.001)  # times rise
        return self._last

    def restart(self) -> None:
        """The next own time has nothing to do with those before."""
        self._offset = None


class StreamConnection:
    """A stream by PyAV, which gives up on a read after two seconds."""

    def __init__(self, media: Media) -> None:
        self._media = media
        self.fps = media.fps

    def images(self) -> Iterator[tuple[Image, float | None]]:
        """See `Connection`."""
        for frame, _ in self._media.decode():
            yield to_image(frame), seconds_of(frame)

    def close(self) -> None:
        self._media.close()


class CameraConnection:
    """A camera by OpenCV, in a thread that may be left behind: a driver can hang and cannot be interrupted.

    Raises:
        InputError: there is no such camera.
    """

    def __init__(self, number: int, capture: cv2.VideoCapture | None = None) -> None:
        self._name = f"cam{number}"
        self._capture = cv2.VideoCapture(number) if capture is None else capture
        if not self._capture.isOpened():
            raise InputError(f"{self._name}: no such camera, or another program uses it; ls /dev/video* lists them")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        self._belt: Belt[Image] = Belt(1, newest=True)
        threading.Thread(target=self._grab, daemon=True).start()

    def _grab(self) -> None:
        try:
            while True:
                read, frame = self._capture.read()
                if not read or not self._belt.put(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)):
                    return
        except cv2.error as error:
            self._belt.end(InputError(f"{self._name}: {error}"))
        finally:
            self._belt.end()
            self._capture.release()  # by the thread that reads it: at no other moment is this safe

    def images(self) -> Iterator[tuple[Image, float | None]]:
        """See `Connection`."""
        while True:
            image = self._belt.get(READ_SECONDS)
            if image is None:
                if self._belt.ended:
                    return
                raise InputError(f"{self._name}: no frame for {READ_SECONDS:g} s")
            yield image, None

    def close(self) -> None:
        self._belt.stop()
