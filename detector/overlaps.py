"""How much boxes overlap, in NumPy: for evaluation and reports, which need no PyTorch."""

from __future__ import annotations

import numpy as np

from detector.structures import Floats


def pairwise_iou(first_xyxy: Floats, second_xyxy: Floats) -> Floats:
    """Intersection over union (N, M) of every box of (N, 4) with every box of (M, 4); 0 where both are empty."""
    first, second = first_xyxy[:, None], second_xyxy[None]
    top_left, bottom_right = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.maximum(bottom_right - top_left, 0).prod(-1)  # (N, M)
    union = _areas(first) + _areas(second) - intersection
    iou: Floats = intersection / np.maximum(union, np.finfo(union.dtype).tiny)
    return iou


def _areas(boxes_xyxy: Floats) -> Floats:
    areas: Floats = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])
    return areas
