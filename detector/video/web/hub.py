"""Between the threads of the pipeline and the server: the newest picture of each camera, and a line for each result."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import cv2

from detector.errors import InputError
from detector.inference.folder import to_rows
from detector.structures import Image
from detector.tracking.counting import Zone
from detector.video.frame import Result
from detector.video.pipeline import Camera
from detector.video.sink import FileSink

QUALITY = 80
WAITING_LINES = 200
"""Of a viewer of /events; the oldest are dropped when it does not take them."""
FRESH_SECONDS = 10.0
STATE_SECONDS = 0.5


class Hub:
    """What the server shows.

    Args:
        cameras: in the order of their numbers.
        class_names: of the labels.
    """

    def __init__(self, cameras: Sequence[Camera], class_names: Sequence[str]) -> None:
        self.cameras, self.class_names = cameras, class_names
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pictures: list[bytes | None] = [None] * len(cameras)
        self._viewers: list[set[asyncio.Event]] = [set() for _ in cameras]
        self._listeners: set[_Listener] = set()
        self._newest = [-float("inf")] * len(cameras)  # time.monotonic() of the last result
        self._state: tuple[float, list[dict[str, Any]]] = (-float("inf"), [])

    def serve_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """The server's event loop, from now on told of everything new."""
        self._loop = loop

    def watched(self, camera: int) -> bool:
        """Whether anyone looks at a camera: only then are its pictures drawn and encoded, once for all."""
        return bool(self._viewers[camera])

    def put_picture(self, camera: int, image: Image, captured: float) -> None:
        """The newest picture. Args: image: (H, W, 3) uint8 RGB; captured: time.perf_counter()."""
        encoded, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not encoded:
            raise InputError("--web: a picture cannot be encoded")
        wall = time.time() - (time.perf_counter() - captured)
        self._pictures[camera] = struct.pack(">d", wall) + content.tobytes()
        self._call(self._wake, camera)

    def put_result(self, result: Result) -> None:
        """A line for those who listen at /events."""
        self._newest[result.camera] = time.monotonic()
        if self._listeners:
            where = {"camera": result.camera, "source": self.cameras[result.camera].source.name}
            lines: list[dict[str, Any]] = [{**where, **event.row()} for event in result.events]
            rows = to_rows(result.detections, self.class_names)
            frame = {"frame": result.frame.index, "seconds": round(result.frame.seconds, 6), "detections": rows}
            self._call(self._tell, [*lines, {**where, **frame}])

    def _call(self, function: Any, *arguments: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *arguments)

    def _wake(self, camera: int) -> None:
        for event in self._viewers[camera]:
            event.set()

    def _tell(self, lines: list[dict[str, Any]]) -> None:
        for listener in self._listeners:
            listener.put(lines)

    @asynccontextmanager
    async def pictures(self, camera: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The newest pictures for one viewer, as fast as it takes them: 8 bytes with the Unix time of the capture
        (float64, big endian), then a JPEG.
        """
        event = asyncio.Event()
        self._viewers[camera].add(event)

        async def newest() -> AsyncIterator[bytes]:
            sent: bytes | None = None
            while True:
                await event.wait()
                event.clear()
                picture = self._pictures[camera]
                if picture is not None and picture is not sent:
                    sent = picture
                    yield picture

        try:
            yield newest()
        finally:
            self._viewers[camera].discard(event)

    @asynccontextmanager
    async def lines(self) -> AsyncIterator[_Listener]:
        """Results and events for one listener."""
        listener = _Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def is_fresh(self, camera: int) -> bool:
        """Whether a frame came lately."""
        return time.monotonic() - self._newest[camera] < FRESH_SECONDS

    def state(self) -> list[dict[str, Any]]:
        """Every camera as JSON shows it; computed at most twice a second, however many ask."""
        now = time.monotonic()
        if now - self._state[0] > STATE_SECONDS:
            self._state = (now, self._compute_state())
        return self._state[1]

    def _compute_state(self) -> list[dict[str, Any]]:
        return [
            {
                "source": camera.source.name,
                "state": camera.source.state,
                "reconnects": camera.source.reconnects,
                "fresh": self.is_fresh(number),
                "viewers": len(self._viewers[number]),
                "counts": {place.name: place.totals() for place in camera.places},
                "inside": {place.name: place.inside for place in camera.places if isinstance(place, Zone)},
                **camera.ledger.figures(),
            }
            for number, camera in enumerate(self.cameras)
        ]


class _Listener:
    """The lines that wait for one listener."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=WAITING_LINES)
        self._event = asyncio.Event()

    def put(self, lines: list[dict[str, Any]]) -> None:
        self._lines.extend(lines)
        self._event.set()

    async def take(self) -> list[dict[str, Any]]:
        """Waits for lines, and takes all that are there."""
        await self._event.wait()
        self._event.clear()
        lines = list(self._lines)
        self._lines.clear()
        return lines


class WebSink(FileSink):
    """Passes a camera's annotated frames on to those who look at it."""

    def __init__(self, hub: Hub, camera: int) -> None:
        super().__init__()
        self._hub, self._camera = hub, camera

    def wants(self, result: Result) -> bool:  # noqa: ARG002
        """See `Sink`."""
        return self._hub.watched(self._camera)

    def write(self, image: Image, result: Result) -> None:
        """See `Sink`."""
        self._hub.put_picture(self._camera, image, result.frame.captured)
