"""How much boxes overlap, in NumPy: for evaluation and reports, which need no PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating[Any]]


def pairwise_iou(first_xyxy: Boxes, second_xyxy: Boxes) -> Boxes:
    """Intersection over union (N, M) of every box of (N, 4) with every box of (M, 4); 0 where both are empty."""
    first, second = first_xyxy[:, None], second_xyxy[None]
    top_left, bottom_right = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.maximum(bottom_right - top_left, 0).prod(-1)  # (N, M)
    union = _areas(first) + _areas(second) - intersection
    iou: Boxes = intersection / np.maximum(union, np.finfo(union.dtype).tiny)
    return iou


def _areas(boxes_xyxy: Boxes) -> Boxes:
    areas: Boxes = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])
    return areas
