"""Overlaps against hand-computed numbers."""

import numpy as np
import pytest

from detector.overlaps import pairwise_iou

A = [0.0, 0.0, 4.0, 2.0]  # area 8
B = [2.0, 1.0, 6.0, 3.0]  # area 8; overlaps A in 2 x 1
FAR = [10.0, 10.0, 12.0, 12.0]


@pytest.mark.parametrize(
    ("first", "second", "expected", "reason"),
    [
        (A, A, 1.0, "equal"),
        (A, B, 2 / 14, "corner overlap"),
        (A, FAR, 0.0, "apart"),
        (A, [4.0, 0.0, 8.0, 2.0], 0.0, "touching"),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], 0.0, "both empty"),
    ],
)
def test_pairwise_iou(first: list[float], second: list[float], expected: float, reason: str) -> None:
    iou = pairwise_iou(np.array([first], np.float32), np.array([second], np.float32))
    assert iou.shape == (1, 1)
    assert iou.item() == pytest.approx(expected, abs=1e-6), reason


def test_pairwise_iou_of_nothing() -> None:
    assert pairwise_iou(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32)).shape == (0, 3)
