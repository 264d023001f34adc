"""Reported metrics equal those of pycocotools and those computed by hand."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from detector.data.dataset import DatasetBuilder
from detector.data.open import open_dataset
from detector.evaluate.coco import CocoEvaluator
from detector.evaluate.confusion import count_mistakes, match_detections
from detector.evaluate.table import metrics_table
from detector.report.plots import plot_confusion, plot_precision_recall
from detector.structures import Detections


def truth(boxes: list[list[float]], *, crowd: int = 0) -> dict:  # type: ignore[type-arg]
    return {
        "images": [{"id": 1}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 7, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for n, box in enumerate(boxes)
        ],
    }


def found(boxes: list[list[float]], scores: list[float]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.zeros(len(boxes), np.int64)
    )


def evaluate(ground: dict, detections: Detections) -> dict:  # type: ignore[type-arg]
    evaluator = CocoEvaluator(ground, [7, 9], ("cat", "dog"))
    evaluator.update(1, detections)
    return evaluator.compute()


def test_by_hand() -> None:
    # Two objects; a hit, a false alarm, then the other hit with IoU .6: precision 1 up to recall .5, then 2/3.
    ground = truth([[0, 0, 100, 100], [200, 0, 100, 100]])
    boxes = [[0, 0, 100, 100], [400, 0, 500, 100], [200, 0, 300, 60]]
    metrics = evaluate(ground, found(boxes, [0.9, 0.8, 0.7]))
    assert metrics["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["ap75"] == pytest.approx(51 / 101)
    assert metrics["ap_small"] is None
    assert metrics["per_class"]["dog"] == {"ap": None, "ap50": None, "ar100": None, "objects": 0}
    assert metrics["per_class"]["cat"]["ap50"] == pytest.approx(metrics["ap50"])
    assert metrics["per_class"]["cat"]["objects"] == 2
    assert "0.8350" in metrics_table(metrics)


def test_no_detections_and_no_objects() -> None:
    assert evaluate(truth([[0, 0, 10, 10]]), Detections())["ap50"] == 0
    assert evaluate(truth([]), Detections())["ap50"] is None
    assert evaluate(truth([]), found([[0, 0, 5, 5]], [0.9]))["ap50"] is None
    assert "-" in metrics_table(evaluate(truth([]), Detections()))


def test_crowd_excuses_detections() -> None:
    ground = truth([[0, 0, 100, 100]])
    ground["annotations"].append(
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [300, 0, 200, 200], "area": 40000, "iscrowd": 1}
    )
    inside_crowd = [[310, 10, 350, 50], [360, 10, 390, 50], [0, 0, 100, 100]]
    assert evaluate(ground, found(inside_crowd, [0.9, 0.8, 0.7]))["ap50"] == pytest.approx(1)


def test_equal_to_pycocotools_on_coco_itself(shared: Path, tmp_path: Path) -> None:
    """Noisy copies of the real objects, with crowd and sparse ids: the same numbers as pycocotools run on files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = shared / "data/coco_val126/instances.json"
    dataset = open_dataset(path)
    rng = np.random.default_rng(0)
    evaluator = CocoEvaluator(*_truth(dataset))
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.objects(index)
        boxes = dataset.boxes_xyxy[objects] + rng.normal(0, 6, (objects.stop - objects.start, 4)).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = -np.sort(-rng.random(len(boxes))).astype(np.float32)  # the best first
        evaluator.update(int(image_id), Detections(boxes, scores, dataset.labels[objects]))
    (tmp_path / "results.json").write_text(json.dumps(evaluator.results()))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
        official = COCOeval(reference, reference.loadRes(str(tmp_path / "results.json")), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    ours = evaluator.compute()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    assert [ours[name] for name in names] == official.stats[:9].tolist()
    assert 0.2 < ours["ap50"] < 0.99


def _truth(dataset):  # type: ignore[no-untyped-def]
    ground, category_ids, _ = dataset.ground_truth()
    return ground, category_ids, dataset.class_names


def test_matching_and_confusion_by_hand(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    detections = Detections(
        np.array([[0, 0, 10, 10], [20, 0, 30, 9], [21, 0, 30, 10], [80, 0, 90, 10]], np.float32),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.array([0, 1, 0, 1]),
    )
    matching = match_detections(boxes, detections)
    assert matching.pairs == [(0, 0), (1, 1)]
    assert (matching.missed, matching.extra) == ([2], [2, 3])
    builder = DatasetBuilder("two images", ("cat", "dog"), "clip")
    for image_id in ("a", "b"):
        builder.add_image(tmp_path / image_id, image_id=image_id, size_hw=(100, 100))
    for box, name in zip(boxes.tolist(), ("cat", "cat", "dog"), strict=True):
        builder.add_object(tuple(box), name, crowd=False, where="b")
    mistakes = count_mistakes(builder.build(), [(0, Detections()), (1, detections)])
    assert mistakes.worst == [(1 + 2 + 1, 1)]  # missed, extra, wrong class; the first image has none
    assert mistakes.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    plot_confusion(tmp_path / "c.png", mistakes.confusion, ("cat", "dog", "background"), title="Confusion")
    plot_precision_recall(tmp_path / "p.png", np.linspace(0, 1, 101), np.full((101, 2), -1.0), ("cat", "dog"))
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert (tmp_path / "p.png").stat().st_size > 5000
