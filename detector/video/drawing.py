"""What is drawn besides boxes: unrecognisable objects, trails, lines and zones with their counts."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.render import class_color
from detector.structures import Detections, Floats, Image
from detector.tracking.counting import CountLine, Place, feet_of

COLOR = (255, 210, 0)
MOSAIC_CELLS = 8
"""A blurred object is a mosaic of at most so many cells along its longer side."""
MARGIN = 0.1
"""So much of its size is blurred around it too."""
TRAIL_SECONDS = 1.0
Trail = tuple[int, NDArray[np.float64]]
"""An identity, and points (n, 2) in pixels."""


def blur(image: Image, boxes_xyxy: Floats) -> Image:
    """A new image in which these places are mosaics, whose pixels hold nothing else of them."""
    image = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in boxes_xyxy.tolist():
        grow_x, grow_y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
        left, top = max(int(x1 - grow_x), 0), max(int(y1 - grow_y), 0)
        right, bottom = min(int(np.ceil(x2 + grow_x)), width), min(int(np.ceil(y2 + grow_y)), height)
        part = image[top:bottom, left:right]
        if part.size:
            cell = max(part.shape[:2]) / MOSAIC_CELLS
            columns, rows = (max(round(side / cell), 1) for side in part.shape[1::-1])
            small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
            part[:] = cv2.resize(small, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_NEAREST)
    return image


def draw_places(image: Image, places: Sequence[Place], captions: Sequence[str]) -> Image:
    """Draws lines and zones with their counts into an image."""
    scale = max(0.5, max(image.shape[:2]) / 1400)
    for place, caption in zip(places, captions, strict=True):
        points = np.rint(place.points).astype(np.int32)
        cv2.polylines(image, [points], not isinstance(place, CountLine), COLOR, 2, cv2.LINE_AA)
        write_outlined(image, caption, (int(points[0][0]) + 4, max(int(points[0][1]) - 8, 20)), scale, COLOR)
    return image


def write_outlined(image: Image, text: str, corner: tuple[int, int], scale: float, color: tuple[int, int, int]) -> None:
    """Writes into an image, readable on any background. Args: corner: lower left, in pixels."""
    for ink, thickness in (((0, 0, 0), 4), (color, 1)):
        cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)


class Trails:
    """Where each tracked object stood in the last second."""

    def __init__(self) -> None:
        self._points: dict[int, list[tuple[float, tuple[float, float]]]] = {}  # track -> (seconds, place)

    def update(self, detections: Detections, seconds: float) -> list[Trail]:
        """The trails of the objects in a frame with `track_ids`."""
        assert detections.track_ids is not None, "only tracked objects leave a trail"
        feet, _ = feet_of(detections.boxes_xyxy)
        for track_id, (x, y) in zip(detections.track_ids.tolist(), feet.tolist(), strict=True):
            self._points.setdefault(track_id, []).append((seconds, (x, y)))
        recent = {
            track_id: [point for point in points if seconds - point[0] <= TRAIL_SECONDS]
            for track_id, points in self._points.items()
        }
        self._points = {track_id: points for track_id, points in recent.items() if points}
        seen = detections.track_ids.tolist()
        return [(track_id, np.array([place for _, place in self._points[track_id]])) for track_id in seen]


def draw_trails(image: Image, trails: Sequence[Trail]) -> Image:
    """Draws trails into an image, each in its object's colour."""
    for track_id, points in trails:
        cv2.polylines(image, [np.rint(points).astype(np.int32)], False, class_color(track_id), 2, cv2.LINE_AA)
    return image
