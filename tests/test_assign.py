"""Which anchor is assigned to which object."""

import torch
from torch.nn.utils.rnn import pad_sequence

from detector.assign import Assignment, assign_targets

ANCHORS = torch.tensor([[[10.0, 10.0], [20.0, 10.0]], [[40.0, 40.0], [80.0, 80.0]]])  # 2 scales, 2 anchors
STRIDES = (8, 16)


def assign(
    boxes: list[list[list[float]]], labels: list[list[int]], *, match_threshold: float = 1.0
) -> list[Assignment]:
    return assign_targets(
        pad_sequence([torch.tensor(each).reshape(-1, 4) for each in boxes], True),
        pad_sequence([torch.tensor(each, dtype=torch.int64) for each in labels], True, -1),
        anchors_wh=ANCHORS,
        strides=STRIDES,
        size_hw=(64, 96),
        num_classes=3,
        match_threshold=match_threshold,
    )


def places(assignment: Assignment) -> list[list[int]]:
    """[image, anchor, row, column] of each positive."""
    rows = torch.stack((assignment.image, assignment.anchor, assignment.row, assignment.column), dim=1)
    return rows[assignment.positive].tolist()


def test_the_best_anchor_of_all_scales_is_assigned() -> None:
    fine, coarse = assign([[], [[40.0, 20.0, 60.0, 30.0], [0.0, 0.0, 44.0, 42.0]]], [[], [2, 0]])
    # 20x10 at centre (50, 25): anchor 1 of the fine scale, cell (6, 3)
    assert places(fine) == [[1, 1, 3, 6]]
    assert fine.classes[fine.positive].tolist() == [[0, 0, 1]]
    assert fine.is_object.nonzero().tolist() == places(fine)
    # 44x42 at centre (22, 21): anchor 0 of the coarse scale, cell (1, 1)
    assert places(coarse) == [[1, 0, 1, 1]]


def test_two_objects_in_one_place_keep_the_later_box_and_both_classes() -> None:
    fine, _ = assign([[[40.0, 20.0, 50.0, 30.0], [41.0, 21.0, 51.0, 31.0]]], [[0, 2]])
    assert places(fine) == [[0, 0, 3, 5]]
    assert fine.boxes_xyxy[fine.positive].tolist() == [[41, 21, 51, 31]]
    assert fine.classes[fine.positive].tolist() == [[1, 0, 1]]


def test_match_threshold_adds_anchors() -> None:
    # 10x10 overlaps 20x10 by one half
    only_best, _ = assign([[[40.0, 20.0, 50.0, 30.0]]], [[1]])
    both, _ = assign([[[40.0, 20.0, 50.0, 30.0]]], [[1]], match_threshold=0.4)
    assert places(only_best) == [[0, 0, 3, 5]]
    assert places(both) == [[0, 0, 3, 5], [0, 1, 3, 5]]


def test_a_centre_on_the_border_belongs_to_the_last_cell() -> None:
    fine, _ = assign([[[91.0, 59.0, 101.0, 69.0]]], [[0]])  # centre (96, 64) of a 96x64 input
    assert places(fine) == [[0, 0, 7, 11]]


def test_no_objects() -> None:
    fine, coarse = assign([[], []], [[], []])
    assert places(fine) == places(coarse) == []
    assert not fine.is_object.any()
