"""Darknet's own metric (`detector map`, `validate_detector_map`), to compare with published Darknet figures.

How it differs from COCO's AP50: precision is integrated over all points (or 11, or 101) of the curve; every class
counts, also those without objects; each detection is compared with its best object only, even if that is
taken; there are no crowd regions; all detections above 0.005 count, not the best 100.

Legend: n objects, m detections of an image, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.overlaps import pairwise_iou
from detector.structures import Detections, Floats, Ints

MIN_SCORE = 0.005


@dataclass(frozen=True)
class _Scored:
    score: float
    label: int
    truth: int  # number of the object that it hits, or -1


class DarknetEvaluator:
    """Collects detections and computes Darknet's mAP, TP, FP, FN and average IoU.

    Args:
        num_classes: C.
        iou_threshold: a hit has a larger IoU (`-iou_thresh`).
        confidence: score threshold for TP, FP, FN and the average IoU (`-thresh`).
    """

    def __init__(self, num_classes: int, *, iou_threshold: float = 0.5, confidence: float = 0.25) -> None:
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self.confidence = confidence
        self._scored: list[_Scored] = []
        self._objects: NDArray[np.int64] = np.zeros(num_classes, np.int64)
        self._tp = self._fp = 0
        self._iou_sum = 0.0

    def update(self, boxes_xyxy: Floats, labels: Ints, detections: Detections) -> None:
        """Adds an image; the caller leaves out crowd regions."""
        detections = detections.above(MIN_SCORE)
        first = int(self._objects.sum())
        self._objects += np.bincount(labels, minlength=self.num_classes)
        iou = pairwise_iou(detections.boxes_xyxy, boxes_xyxy)  # (m, n)
        seen: set[int] = set()
        # Darknet does not go through them best first: if a weak box takes an object first, a better box that comes
        # later is not a true positive.
        ranks = np.arange(len(detections)) if detections.darknet_ranks is None else detections.darknet_ranks
        for row in np.lexsort((detections.labels, ranks)).tolist():
            score, label = float(detections.scores[row]), int(detections.labels[row])
            overlaps = np.where(labels == label, iou[row], 0.0) if len(labels) else np.zeros(0)
            best = int(overlaps.argmax()) if overlaps.size and overlaps.max() > self.iou_threshold else -1
            truth = first + best if best >= 0 else -1
            if score > self.confidence:
                if truth >= 0 and truth not in seen:
                    self._tp += 1
                    self._iou_sum += float(overlaps[best])
                else:
                    self._fp += 1
            if truth >= 0:
                seen.add(truth)
            self._scored.append(_Scored(score, label, truth))

    def compute(self, *, points: int = 0) -> dict[str, Any]:
        """The metrics as fractions.

        Args:
            points: 0 = all points, 11 (VOC 2007) or 101 (as COCO).

        Returns:
            map50, tp, fp, fn, avg_iou, and per_class AP by label.
        """
        order = sorted(self._scored, key=lambda item: -item.score)
        curves: list[list[bool]] = [[] for _ in range(self.num_classes)]
        taken: set[int] = set()
        for item in order:
            curves[item.label].append(item.truth >= 0 and item.truth not in taken)
            taken.add(item.truth)
        per_class = [
            _average_precision(np.array(hits, bool), int(count), points)
            for hits, count in zip(curves, self._objects, strict=True)
        ]
        return {
            "map50": float(np.mean(per_class)),
            "tp": self._tp,
            "fp": self._fp,
            "fn": int(self._objects.sum()) - self._tp,
            "avg_iou": self._iou_sum / max(self._tp + self._fp, 1),
            "per_class": per_class,
        }


def _average_precision(hits: NDArray[np.bool_], num_objects: int, points: int) -> float:
    """Area under the precision-recall curve of detections, best first; 0 without objects or detections."""
    if not hits.size or not num_objects:
        return 0.0
    true = hits.cumsum()
    recall, precision = true / num_objects, true / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or beyond
    if points:
        levels = np.arange(points) / (points - 1)
        reached = np.searchsorted(recall, levels - 1e-12, side="left")
        return float(np.append(envelope, 0.0)[reached].mean())
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
