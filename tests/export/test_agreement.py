"""The export gate's measures, checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.export.agreement import TOLERANCES, Agreement, compare_detections
from detector.postprocess import Thresholds
from detector.runtime.protocol import relative_difference
from detector.structures import Detections

FP32 = TOLERANCES["fp32"]
LIMITS = Thresholds(score_threshold=0.5, nms_threshold=0.45, max_detections=3)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([row[4] for row in rows], np.float32), np.array([row[5] for row in rows], int))


def test_the_same_boxes_agree_in_any_order() -> None:
    first = found((0, 0, 10, 10, 0.9, 0), (5, 0, 15, 10, 0.9, 0))
    second = found((5, 0, 15, 10, 0.9, 0), (0, 0, 10, 10, 0.9, 0))
    agreement = compare_detections([(first, second), (found(), found())], LIMITS, FP32)
    assert (agreement.images, agreement.boxes, agreement.unmatched, agreement.score) == (2, 2, 0, 0)
    assert agreement.complaints(FP32) == []


def test_a_box_that_moved_has_no_counterpart() -> None:
    agreement = compare_detections([(found((0, 0, 10, 10, 0.9, 0)), found((1, 0, 11, 10, 0.9, 0)))], LIMITS, FP32)
    assert agreement.unmatched == 1
    loose = replace(FP32, iou=0.8)
    again = compare_detections([(found((0, 0, 10, 10, 0.9, 0)), found((1, 0, 11, 10, 0.9, 0)))], LIMITS, loose)
    assert again.unmatched == 0
    assert again.iou == pytest.approx(9 / 11)


def test_another_class_or_score_is_a_difference() -> None:
    pair = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 10, 0.9, 1))
    assert compare_detections([pair], LIMITS, FP32).unmatched == 1
    pair = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 10, 0.7, 0))
    assert compare_detections([pair], LIMITS, FP32).score == pytest.approx(0.2)
    assert "scores differ by 0.2" in compare_detections([pair], LIMITS, FP32).complaints(FP32)[0]


def test_a_box_has_one_counterpart_only() -> None:
    one, two = found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))
    assert compare_detections([(one, two)], LIMITS, FP32).unmatched == pytest.approx(1 / 3)


@pytest.mark.parametrize(("score", "alone", "on_limit"), [(0.500009, 0, 1), (0.50002, 1, 0)])
def test_a_network_box_at_the_score_threshold_needs_no_counterpart(score: float, alone: int, on_limit: int) -> None:
    agreement = compare_detections([(found((0, 0, 10, 10, score, 0)), found())], LIMITS, FP32)
    assert (agreement.boxes, agreement.unmatched, agreement.on_limit) == (1, alone, on_limit)
    agreement = compare_detections([(found(), found((0, 0, 10, 10, score, 0)))], LIMITS, FP32)
    assert agreement.unmatched == 1, "a box that only the export finds is a difference"


@pytest.mark.parametrize(("last", "alone", "on_limit"), [(0.699995, 0, 1), (0.69998, 1 / 6, 0)])
def test_when_the_number_of_boxes_is_limited_the_last_may_differ(last: float, alone: float, on_limit: int) -> None:
    first, second = (0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1)
    third, fourth = (20, 0, 30, 10, 0.7, 0), (40, 0, 50, 10, last, 0)
    agreement = compare_detections([(found(first, second, third, fourth), found(first, second, fourth))], LIMITS, FP32)
    assert (agreement.boxes, agreement.on_limit) == (3, on_limit)
    assert agreement.unmatched == pytest.approx(alone)


def test_the_last_box_is_compared_as_well() -> None:
    limits = replace(LIMITS, max_detections=1)
    pair = found((0, 0, 10, 10, 0.9, 0)), found((50, 50, 60, 60, 0.9, 1))
    assert compare_detections([pair], limits, FP32).unmatched == 0.5
    assert compare_detections([pair], limits, FP32).complaints(FP32)


@pytest.mark.parametrize("row", [(np.nan, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, np.nan, 0)])
def test_values_that_are_not_finite_never_agree(row: tuple[float, float, float, float, float, int]) -> None:
    pair = found((0, 0, 10, 10, 0.9, 0)), found(row)
    assert len(compare_detections([pair], LIMITS, FP32).complaints(FP32)) == 3


def test_merged_measurements_keep_the_worst_of_both() -> None:
    first = Agreement(2, 5, maps=2e-6, score=0.1, iou=1.0, unmatched=0.0)
    second = Agreement(1, 3, maps=1e-6, score=0.0, iou=0.5, unmatched=0.3, on_limit=1)
    assert first.worst_of(second) == Agreement(3, 8, maps=2e-6, score=0.1, iou=0.5, unmatched=0.3, on_limit=1)


def test_ap50_may_rise_where_only_losses_count() -> None:
    agreement = Agreement(1, 1, 0.0, 0.0, 1.0, 0.0, ap50=0.92, ap50_reference=0.90)
    assert "AP50 is 0.9200 instead of 0.9000" in agreement.complaints(FP32)[0]
    assert agreement.complaints(FP32, only_losses=True) == []
    lost = replace(agreement, ap50=0.88)
    assert lost.complaints(replace(FP32, ap50=0.03), only_losses=True) == []
    assert len(lost.complaints(replace(FP32, ap50=0.01), only_losses=True)) == 1


def test_maps_of_another_shape_or_not_finite_differ_infinitely() -> None:
    ones = np.ones((1, 3, 2, 2), np.float32)
    assert relative_difference(ones, ones) == 0
    assert relative_difference(10 * ones, 10.1 * ones) == pytest.approx(0.01, rel=1e-4)
    assert relative_difference(ones, ones[:, :2]) == np.inf
    assert relative_difference(ones, np.full_like(ones, np.nan)) == np.inf
