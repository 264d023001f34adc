"""The few containers that data travels in: Sample, Batch, Detections, Letterbox.

Everything inside uses one box format: xyxy, float32, in pixels. Each container checks itself when it is made.

Legend: H, W height and width in pixels; n objects; B images in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
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
class Letterbox:
    """How an image was fitted to the network's size: network = original * scale + offset, per axis.

    A plain resize has zero offsets and two scales; a letterbox has one scale twice and the bars as offsets.

    Attributes:
        original_hw: height and width of the image that was read, in pixels.
        scale_xy: network pixels per original pixel, horizontally and vertically.
        offset_xy: network pixels left of and above the picture.
    """

    original_hw: tuple[int, int]
    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]

    def to_network(self, boxes_xyxy: Floats) -> Floats:
        """Boxes (n, 4) in original pixels -> the same boxes in network pixels."""
        scale, offset = self._as_arrays()
        return (boxes_xyxy * scale + offset).astype(np.float32)

    def to_original(self, boxes_xyxy: Floats) -> Floats:
        """Boxes (n, 4) in network pixels -> original pixels, clipped to the original image."""
        scale, offset = self._as_arrays()
        height, width = self.original_hw
        boxes = (boxes_xyxy - offset) / scale
        return np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)

    def _as_arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.scale_xy * 2), np.array(self.offset_xy * 2)


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (n, 4) float32, pixels of `image`.
        labels: (n,) int64 in 0..C-1, an index into the class names.
        crowd: (n,) bool; a crowd region is never a training target and only excuses detections in an evaluation.
        image_id: what messages and result files call the image.
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


@dataclass(frozen=True)
class Batch:
    """Images of one size with their targets.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; scaled to [0, 1] on the device.
        boxes_xyxy: B tensors (n_i, 4) float32, pixels of the network input.
        labels: B tensors (n_i,) int64.
        image_ids: B names for messages.
    """

    images: torch.Tensor
    boxes_xyxy: list[torch.Tensor]
    labels: list[torch.Tensor]
    image_ids: list[int | str]

    def __post_init__(self) -> None:
        if not (self.images.ndim == 4 and self.images.shape[1] == 3 and self.images.dtype == torch.uint8):
            raise ValueError(
                f"Batch.images: expected uint8 (B, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        count = len(self.images)
        if not (len(self.boxes_xyxy) == len(self.labels) == len(self.image_ids) == count):
            raise ValueError(
                f"Batch: {count} images, but {len(self.boxes_xyxy)} box lists, {len(self.labels)} label lists, "
                f"{len(self.image_ids)} ids"
            )

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes; called by PyTorch's loader."""
        return Batch(
            self.images.pin_memory(),
            [boxes.pin_memory() for boxes in self.boxes_xyxy],
            [labels.pin_memory() for labels in self.labels],
            self.image_ids,
        )


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
        anchors: (n,) int64, which anchor gave the box, counted over the scales as the raw maps come; else None.
    """

    boxes_xyxy: Floats = field(default_factory=_no_boxes)
    scores: Floats = field(default_factory=_no_scores)
    labels: Ints = field(default_factory=_no_labels)
    darknet_ranks: Ints | None = None
    anchors: Ints | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        _require_boxes(self.boxes_xyxy, count, "Detections")
        if not (self.labels.shape == (count,)):
            raise ValueError(f"Detections.labels: expected ({count},), got {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, count: int) -> Detections:
        """The first `count` of them."""
        return self._take(slice(count))

    def above(self, score: float) -> Detections:
        """Those that score more."""
        return self._take(self.scores > score)

    def _take(self, rows: slice | Bools) -> Detections:
        ranks = None if self.darknet_ranks is None else self.darknet_ranks[rows]
        anchors = None if self.anchors is None else self.anchors[rows]
        return Detections(self.boxes_xyxy[rows], self.scores[rows], self.labels[rows], ranks, anchors)
