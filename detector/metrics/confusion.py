"""Which class is taken for which, and which images go worst, at a working threshold.

Legend: n objects, m detections, C classes; index C stands for background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from detector.boxes import pairwise_iou
from detector.structures import Detections, Floats, Ints


@dataclass(frozen=True)
class Matching:
    """Pairs of (object, detection) indices, and what is left of both."""

    pairs: list[tuple[int, int]]
    missed: list[int]
    extra: list[int]


def match_detections(boxes_xyxy: Floats, detections: Detections, *, iou_threshold: float = 0.5) -> Matching:
    """Pairs objects with detections, whatever their classes: best score first, each takes the free object it fits best.

    Args:
        boxes_xyxy: (n, 4) objects.
        detections: m, best first.
        iou_threshold: pairs need at least this overlap.
    """
    iou = pairwise_iou(torch.from_numpy(boxes_xyxy), torch.from_numpy(detections.boxes_xyxy)).numpy()  # (n, m)
    free, pairs = set(range(len(boxes_xyxy))), []
    for column in range(len(detections)):
        candidates = [row for row in free if iou[row, column] >= iou_threshold]
        if candidates:
            best = max(candidates, key=lambda row: float(iou[row, column]))
            free.remove(best)
            pairs.append((best, column))
    paired = {column for _, column in pairs}
    return Matching(pairs, sorted(free), [column for column in range(len(detections)) if column not in paired])


class ConfusionMatrix:
    """Counts (true class, detected class) over images.

    Attributes:
        counts: (C + 1, C + 1) int64; row: truth, column: detection; the last of each is background.
    """

    def __init__(self, num_classes: int, *, iou_threshold: float = 0.5) -> None:
        self.iou_threshold = iou_threshold
        self.counts: NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, boxes_xyxy: Floats, labels: Ints, detections: Detections) -> int:
        """Adds an image; detections should be above the working threshold.

        Returns:
            the image's mistakes: objects missed, detections too many, classes mixed up.
        """
        matching = match_detections(boxes_xyxy, detections, iou_threshold=self.iou_threshold)
        background, mistakes = len(self.counts) - 1, len(matching.missed) + len(matching.extra)
        for row, column in matching.pairs:
            self.counts[labels[row], detections.labels[column]] += 1
            mistakes += int(labels[row] != detections.labels[column])
        for row in matching.missed:
            self.counts[labels[row], background] += 1
        for column in matching.extra:
            self.counts[background, detections.labels[column]] += 1
        return mistakes
