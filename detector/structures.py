"""The containers that carry the data: Sample, Detections; a batch is in `data/batch.py`.

There is one internal box format: xyxy, float32, in pixels. Each container checks itself when created.

Legend: H, W height and width in pixels; n objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def _require_boxes(boxes_xyxy: Floats, count: int, owner: str) -> None:
    if not (boxes_xyxy.shape == (count, 4) and boxes_xyxy.dtype == np.float32):
        raise ValueError(
            f"{owner}.boxes_xyxy: expected float32 ({count}, 4), got {boxes_xyxy.dtype} {boxes_xyxy.shape}"
        )


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (n, 4) float32, pixels of `image`.
        labels: (n,) int64 in 0..C-1, an index into the class names.
        crowd: (n,) bool; a crowd region is never a training target; an evaluation ignores detections in it.
        image_id: the image's name in messages and result files.
    """

    image: Image
    boxes_xyxy: Floats
    labels: Ints
    crowd: Bools
    image_id: int | str

    def __post_init__(self) -> None:
        if not (self.image.ndim == 3 and self.image.shape[2] == 3 and self.image.dtype == np.uint8):
            raise ValueError(f"Sample.image: expected uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}")
        count = len(self.labels)
        _require_boxes(self.boxes_xyxy, count, "Sample")
        if not (self.labels.dtype == np.int64):
            raise ValueError(f"Sample.labels: expected int64, got {self.labels.dtype}")
        if not (self.crowd.shape == (count,)):
            raise ValueError(f"Sample.crowd: expected ({count},), got {self.crowd.shape}")


def _no_boxes() -> Floats:
    return np.zeros((0, 4), np.float32)


def _no_scores() -> Floats:
    return np.zeros(0, np.float32)


def _no_labels() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes_xyxy: (n, 4) float32 pixels; of the network's input after `postprocess`, of the original image after
            `Predictor.predict`.
        scores: (n,) float32 in [0, 1], objectness times class probability, not increasing.
        labels: (n,) int64, an index into the class names.
        darknet_ranks: (n,) int64, where Darknet's program would list the box; only for its metric, else None.
        anchors: (n,) int64, which anchor gave the box, counted over the scales in raw-map order; else None.
        track_ids: (n,) int64 from 1 on, the identity over time; only from `Tracker.update`, else None.
    """

    boxes_xyxy: Floats = field(default_factory=_no_boxes)
    scores: Floats = field(default_factory=_no_scores)
    labels: Ints = field(default_factory=_no_labels)
    darknet_ranks: Ints | None = None
    anchors: Ints | None = None
    track_ids: Ints | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        _require_boxes(self.boxes_xyxy, count, "Detections")
        if not (self.labels.shape == (count,) and self.labels.dtype == np.int64):
            raise ValueError(
                f"Detections.labels: expected int64 ({count},), got {self.labels.dtype} {self.labels.shape}"
            )
        if not (self.scores.shape == (count,) and self.scores.dtype == np.float32):
            raise ValueError(f"Detections.scores: expected float32 (n,), got {self.scores.dtype} {self.scores.shape}")
        if not (self.scores[1:] <= self.scores[:-1]).all():
            raise ValueError("Detections.scores: expected the best first, got a score above the one before it")
        for name in ("darknet_ranks", "anchors", "track_ids"):
            values = getattr(self, name)
            if values is not None and values.shape != (count,):
                raise ValueError(f"Detections.{name}: expected ({count},), got {values.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, count: int) -> Detections:
        """The first `count` detections."""
        return self.take(slice(count))

    def above(self, score: float) -> Detections:
        """The detections that score more than `score`."""
        return self.take(self.scores > score)

    def take(self, rows: slice | Bools | Ints) -> Detections:
        """These rows, in this order, which must keep the best first."""
        extras = (self.darknet_ranks, self.anchors, self.track_ids)
        kept = (None if values is None else values[rows] for values in extras)
        return Detections(self.boxes_xyxy[rows], self.scores[rows], self.labels[rows], *kept)
