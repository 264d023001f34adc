"""Counts tracked objects that cross a line, and those in a zone.

An object stands where the middle of its box's lower edge is. It changes sides when it is a margin beyond the line, a
tenth of its height, so that one that trembles on the line counts once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError
from detector.structures import Detections, Floats

MARGIN = 0.1
"""Of an object's height."""
MEMORY_SECONDS = 10.0
"""After so long without being seen, an identity is forgotten."""
Point = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """Something that was counted.

    Attributes:
        seconds: the frame's own time.
        place: "line 1", "zone 2", ...
        direction: right or left, seen from a line's first point to its second; enter or leave a zone.
        track_id: the object.
        class_name: its class.
    """

    seconds: float
    place: str
    direction: str
    track_id: int
    class_name: str

    def row(self) -> dict[str, Any]:
        """As a line of JSON."""
        return {"event": asdict(self)}


class Place:
    """A line or a zone.

    Args:
        text: "x1,y1,x2,y2" for a line, "x1,y1,x2,y2,x3,y3,..." for a zone, in pixels.
        name: as events call it.
        class_names: of the labels.

    Attributes:
        counts: (direction, class) -> events.
        inside: of a zone, the objects in it in the last frame.

    Raises:
        InputError: the text is not a line or polygon.
    """

    option = ""
    noun = ""
    shape = ""
    min_points = 2
    max_points = 2
    directions = ("", "")  # to the negative side, to the positive side

    def __init__(self, text: str, name: str, class_names: tuple[str, ...]) -> None:
        self.name = name
        self.counts: Counter[tuple[str, str]] = Counter()  # (direction, class) -> events
        self.inside = 0
        self.points = self._parse(text)
        self._class_names = class_names
        self._sides: dict[int, tuple[bool, Point, float]] = {}  # track -> side, where it stood, last seen

    def _parse(self, text: str) -> Point:
        try:
            numbers = np.array([float(part) for part in text.replace(" ", ",").split(",") if part])
        except ValueError:
            numbers = np.zeros(0)
        count = len(numbers) // 2
        points = numbers[: 2 * count].reshape(count, 2)
        are_points = len(numbers) % 2 == 0 and self.min_points <= count <= self.max_points
        if not are_points or not np.isfinite(points).all() or not self._has_extent(points):
            raise InputError(f"{self.option} {text}: expected {self.shape}")
        return points

    def update(self, detections: Detections, seconds: float) -> list[Event]:
        """What happened here in a frame with `track_ids`."""
        assert detections.track_ids is not None, "only tracked objects are counted"
        events = []
        feet, margins = feet_of(detections.boxes_xyxy)
        margins = np.minimum(margins, self.max_margin())
        for row, track_id in enumerate(detections.track_ids.tolist()):
            foot = feet[row]
            distance = self.distance(foot)
            known = self._sides.get(track_id)
            if abs(distance) <= margins[row]:
                if known is not None:
                    self._sides[track_id] = (known[0], known[1], seconds)
                continue
            side = distance > 0
            if self._changes(known and known[:2], side, foot):
                class_name = self._class_names[int(detections.labels[row])]
                event = Event(seconds, self.name, self.directions[side], track_id, class_name)
                self.counts[event.direction, class_name] += 1
                events.append(event)
            self._sides[track_id] = (side, foot, seconds)
        self._sides = {key: value for key, value in self._sides.items() if seconds - value[2] < MEMORY_SECONDS}
        self.inside = sum(side and seen == seconds for side, _, seen in self._sides.values())
        return events

    def totals(self) -> dict[str, int]:
        """The counts as "direction class" -> events; may be called from another thread."""
        return {f"{direction} {name}": count for (direction, name), count in list(self.counts.items())}

    def caption(self) -> str:
        """The counts of both directions in one line."""
        totals = dict.fromkeys(self.directions[::-1], 0)
        for (direction, _), count in self.counts.items():
            totals[direction] += count
        return "  ".join(f"{direction} {total}" for direction, total in totals.items())

    def max_margin(self) -> float:
        """In pixels, so that a small place is not lost in the margin of a large object."""
        return float("inf")

    def distance(self, point: Point) -> float:
        """From the edge in pixels; the sign is the side."""
        raise NotImplementedError

    def _has_extent(self, points: Point) -> bool:
        raise NotImplementedError

    def _changes(self, known: tuple[bool, Point] | None, side: bool, point: Point) -> bool:
        raise NotImplementedError


class CountLine(Place):
    """A line between two points."""

    option = "--count-line"
    noun = "line"
    shape = "x1,y1,x2,y2 in pixels, two different points"
    directions = ("left", "right")

    def distance(self, point: Point) -> float:
        """From the endless line through both points, positive to the right of their direction."""
        along = self.points[1] - self.points[0]
        to = point - self.points[0]
        return float((along[0] * to[1] - along[1] * to[0]) / np.hypot(*along))

    def _has_extent(self, points: Point) -> bool:
        return bool((points[0] != points[1]).any())

    def _changes(self, known: tuple[bool, Point] | None, side: bool, point: Point) -> bool:
        if known is None or known[0] == side:
            return False
        before, after = self.distance(known[1]), self.distance(point)
        crossing = known[1] + (point - known[1]) * before / (before - after)
        along = self.points[1] - self.points[0]
        return bool(0 <= (crossing - self.points[0]) @ along <= along @ along)  # not past one of its ends


class Zone(Place):
    """The inside of a polygon."""

    option = "--zone"
    noun = "zone"
    shape = "x1,y1,x2,y2,x3,y3,... in pixels, at least three points around an area"
    min_points = 3
    max_points = 1000
    directions = ("leave", "enter")

    def caption(self) -> str:
        """How many are inside now, and the counts."""
        return f"inside {self.inside}  {super().caption()}"

    def max_margin(self) -> float:
        """An eighth of the zone's shorter side."""
        return float(min(cv2.minAreaRect(self.points.astype(np.float32))[1])) / 8

    def distance(self, point: Point) -> float:
        """From the nearest edge, positive inside."""
        contour = self.points.astype(np.float32)
        return float(cv2.pointPolygonTest(contour, (float(point[0]), float(point[1])), True))

    def _has_extent(self, points: Point) -> bool:
        return cv2.contourArea(points.astype(np.float32)) > 0

    def _changes(self, known: tuple[bool, Point] | None, side: bool, point: Point) -> bool:  # noqa: ARG002
        return known is not None and known[0] != side  # who is first seen inside did not enter here


def feet_of(boxes_xyxy: Floats) -> tuple[Point, Point]:
    """Where objects stand (n, 2), and how far from an edge they must be to count (n,), in pixels."""
    boxes = boxes_xyxy.astype(np.float64)
    feet = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], 1)
    return feet, MARGIN * (boxes[:, 3] - boxes[:, 1])
