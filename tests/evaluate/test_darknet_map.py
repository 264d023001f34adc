"""Darknet's metric by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detector.evaluate.darknet_map import DarknetEvaluator
from detector.structures import Detections

TRUTH = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
LABELS = np.zeros(2, np.int64)


def found(rows: list[tuple[list[float], float]], ranks: list[int] | None = None) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in rows], np.float32)
    order = None if ranks is None else np.array(ranks)
    return Detections(boxes, scores, np.zeros(len(rows), np.int64), order)


ROWS = [([0.0, 0, 10, 10], 0.9), ([50.0, 0, 60, 10], 0.8), ([20.0, 0, 30, 8], 0.7)]


def test_by_hand() -> None:
    evaluator = DarknetEvaluator(1)
    evaluator.update(TRUTH, LABELS, found(ROWS))
    metrics = evaluator.compute()
    # precision 1 at recall 1/2, 2/3 at recall 1
    assert metrics["map50"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (metrics["tp"], metrics["fp"], metrics["fn"]) == (2, 1, 0)
    assert metrics["avg_iou"] == pytest.approx((1 + 0.8) / 3)
    assert evaluator.compute(points=11)["map50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert evaluator.compute(points=101)["map50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_class_without_objects_counts_as_zero() -> None:
    evaluator = DarknetEvaluator(2)
    evaluator.update(TRUTH, LABELS, found(ROWS))
    assert evaluator.compute()["map50"] == pytest.approx((0.5 + 1 / 3) / 2)


def test_a_second_hit_is_a_false_alarm_and_order_decides_which() -> None:
    twice = [([0.0, 0, 10, 10], 0.9), ([0.0, 0, 10, 9], 0.2)]
    best_first, weak_first = DarknetEvaluator(1), DarknetEvaluator(1)
    best_first.update(TRUTH, LABELS, found(twice))
    weak_first.update(TRUTH, LABELS, found(twice, [1, 0]))
    assert (best_first.compute()["tp"], best_first.compute()["fp"]) == (1, 0)
    assert (weak_first.compute()["tp"], weak_first.compute()["fp"]) == (0, 1)
    assert best_first.compute()["map50"] == weak_first.compute()["map50"] == pytest.approx(0.5)


def test_nothing() -> None:
    evaluator = DarknetEvaluator(1)
    evaluator.update(TRUTH[:0], LABELS[:0], Detections())
    assert evaluator.compute() == {"map50": 0.0, "tp": 0, "fp": 0, "fn": 0, "avg_iou": 0.0, "per_class": [0.0]}
    evaluator.update(TRUTH, LABELS, found([([0.0, 0, 10, 10], 0.004)]))
    assert (evaluator.compute()["fn"], evaluator.compute()["map50"]) == (2, 0.0)
