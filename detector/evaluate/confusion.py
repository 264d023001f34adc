"""Which classes are confused, and which images have the most mistakes, at a given score threshold.

Legend: n objects, m detections, C classes; index C stands for background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.data.dataset import DetectionDataset
from detector.overlaps import pairwise_iou
from detector.structures import Detections, Floats

SHOWN_SCORE = 0.25
"""Reports count and draw only detections above this score."""


@dataclass(frozen=True)
class Matching:
    """Indices of (object, detection) pairs, of missed objects, and of extra detections."""

    pairs: list[tuple[int, int]]
    missed: list[int]
    extra: list[int]


def match_detections(boxes_xyxy: Floats, detections: Detections, *, iou_threshold: float = 0.5) -> Matching:
    """Pairs objects and detections of any class: best score first, each takes the free object with the largest IoU.

    Args:
        boxes_xyxy: (n, 4) objects.
        detections: m, best first.
        iou_threshold: pairs need at least this overlap.
    """
    iou = pairwise_iou(boxes_xyxy, detections.boxes_xyxy)  # (n, m)
    free, pairs = set(range(len(boxes_xyxy))), []
    for column in range(len(detections)):
        candidates = [row for row in free if iou[row, column] >= iou_threshold]
        if candidates:
            best = max(candidates, key=lambda row: float(iou[row, column]))
            free.remove(best)
            pairs.append((best, column))
    paired = {column for _, column in pairs}
    return Matching(pairs, sorted(free), [column for column in range(len(detections)) if column not in paired])


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of an evaluation at a given score threshold.

    Attributes:
        confusion: (C + 1, C + 1) int64 counts; row: truth, column: detection; the last of each is background.
        worst: (number of mistakes, index) of each image with mistakes, the most mistakes first.
    """

    confusion: NDArray[np.int64]
    worst: list[tuple[int, int]]


def count_mistakes(
    dataset: DetectionDataset, results: Sequence[tuple[int, Detections]], *, score: float = SHOWN_SCORE
) -> Mistakes:
    """Counts missed objects, detections without an object, and confused classes.

    Args:
        dataset: with the objects.
        results: index of an image and what was found in it.
        score: detections at or below it do not count.
    """
    background = len(dataset.class_names)
    confusion: NDArray[np.int64] = np.zeros((background + 1, background + 1), np.int64)
    worst = []
    for index, detections in results:
        boxes_xyxy, labels = dataset.targets(index)
        shown = detections.above(score)
        matching = match_detections(boxes_xyxy, shown)
        pairs = [(labels[row], shown.labels[column]) for row, column in matching.pairs]
        pairs += [(labels[row], background) for row in matching.missed]
        pairs += [(background, shown.labels[column]) for column in matching.extra]
        for pair in pairs:
            confusion[pair] += 1
        mistakes = sum(truth != found for truth, found in pairs)
        if mistakes:
            worst.append((int(mistakes), index))
    return Mistakes(confusion, sorted(worst, key=lambda item: (-item[0], item[1])))
