"""COCO's metrics, computed by pycocotools itself and reported unchanged."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.structures import Detections

_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


class CocoEvaluator:
    """Collects detections and computes AP over them.

    Args:
        ground_truth: COCO dictionary with images, annotations, categories (not changed).
        category_ids: the category of each label.
        class_names: the name of each label.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: list[int], class_names: tuple[str, ...]) -> None:
        self._truth = COCO()
        self._truth.dataset = copy.deepcopy(ground_truth)
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth.createIndex()
        self._category_ids = category_ids
        self._class_names = class_names
        self.reset()

    def reset(self) -> None:
        self._results: list[dict[str, Any]] = []
        self._evaluation: COCOeval | None = None

    def update(self, image_id: int, detections: Detections) -> None:
        """Adds what was found in an image; boxes in its original pixels."""
        self._results += to_coco_results(image_id, detections, self._category_ids)

    def compute(self) -> dict[str, Any]:
        """The metrics as fractions; None where there is no object to measure on.

        Returns:
            ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100 and per_class {name: {ap, ap50, ar100,
            objects}}.
        """
        evaluation = self._evaluate()
        metrics: dict[str, Any] = {
            name: _fraction(value) for name, value in zip(_STATS, evaluation.stats.tolist(), strict=False)
        }
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        metrics["per_class"] = {
            name: {
                "ap": _fraction(_mean(precision[:, :, index, 0, -1])),
                "ap50": _fraction(_mean(precision[0, :, index, 0, -1])),
                "ar100": _fraction(_mean(recall[:, index, 0, -1])),
                "objects": len(self._truth.getAnnIds(catIds=[self._category_ids[index]], iscrowd=False)),
            }
            for index, name in enumerate(self._class_names)
        }
        return metrics

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall levels (101,) and precision at IoU 0.5 for each class (101, C); -1 for a class without objects."""
        evaluation = self._evaluate()
        return np.asarray(evaluation.params.recThrs), np.asarray(evaluation.eval["precision"][0, :, :, 0, -1])

    def results(self) -> list[dict[str, Any]]:
        """The collected detections, in COCO's results format."""
        return self._results

    def _evaluate(self) -> COCOeval:
        if self._evaluation is None:
            with contextlib.redirect_stdout(io.StringIO()):
                found = self._truth.loadRes(self._results) if self._results else COCO()
                self._evaluation = COCOeval(self._truth, found, "bbox")
                self._evaluation.params.catIds = self._category_ids
                self._evaluation.params.useCats = 1
                self._evaluation.evaluate()
                self._evaluation.accumulate()
                self._evaluation.summarize()
        return self._evaluation


def to_coco_results(image_id: int, detections: Detections, category_ids: list[int]) -> list[dict[str, Any]]:
    """Detections of an image in COCO's results format: boxes x, y, width, height in pixels."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(
            detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


def _mean(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _fraction(value: float) -> float | None:
    """Replaces pycocotools's -1, for nothing to measure, with None."""
    return None if value < 0 else float(value)
