"""A frame, what was found in it, and what all sources of frames have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detector.structures import Detections, Floats, Image
from detector.tracking.counting import Event
from detector.video.drawing import Trail
from detector.video.ledger import Stopwatch


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        name: file name, or the number of the frame.
        index: counted from 0, dropped frames included.
        captured: time.perf_counter() when it was read.
        seconds: when it is shown, in the source's own time.
        duration: seconds until the next one, if the source says so.
        read_ms: how long reading and decoding it took.
    """

    image: Image
    name: str
    index: int
    captured: float
    seconds: float
    duration: float | None = None
    read_ms: float = 0.0


@dataclass(frozen=True)
class Result:
    """A frame and what was found in it.

    Attributes:
        camera: its number.
        frame: as it was read.
        detections: in its pixels.
        events: what was counted.
        trails: of tracked objects.
        captions: of each line and zone, with its counts at this frame.
        blurred_xyxy: (n, 4) what must not be recognised, tracked or not.
        watch: of its stages.
    """

    camera: int
    frame: Frame
    detections: Detections
    events: list[Event]
    trails: list[Trail]
    captions: list[str]
    blurred_xyxy: Floats
    watch: Stopwatch


class Source:
    """An iterable of frames; close it when done.

    Attributes:
        name: as the user called it, without a password.
        fps: frames per second of a video, None for images.
        live: whether only the newest frame counts.
        total: number of frames, None if unknown.
        problems: what could not be read, for the user.
        paths: the files that are read, which must not be overwritten.
        state: "open", or what a live source is doing instead.
        reconnects: how often a live source had to be opened again.
    """

    fps: float | None = None
    live: bool = False
    total: int | None = None
    paths: tuple[Path, ...] = ()
    state: str = "open"
    reconnects: int = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Frees the device; nothing to free by default. May be called while another thread waits for a frame."""
