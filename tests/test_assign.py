"""Which anchor is assigned to which object."""

import torch

from detector.assign import assign_targets

ANCHORS = torch.tensor([[[10.0, 10.0], [20.0, 10.0]], [[40.0, 40.0], [80.0, 80.0]]])  # 2 scales, 2 anchors
STRIDES = (8, 16)


def assign(boxes: list[list[list[float]]], labels: list[list[int]], *, match_threshold: float = 1.0):  # type: ignore[no-untyped-def]
    return assign_targets(
        [torch.tensor(b).reshape(-1, 4) for b in boxes],
        [torch.tensor(x, dtype=torch.int64) for x in labels],
        anchors_wh=ANCHORS,
        strides=STRIDES,
        size_hw=(64, 96),
        num_classes=3,
        match_threshold=match_threshold,
    )


def test_the_best_anchor_of_all_scales_is_assigned() -> None:
    fine, coarse = assign([[], [[40.0, 20.0, 60.0, 30.0], [0.0, 0.0, 44.0, 42.0]]], [[], [2, 0]])
    # 20x10 at centre (50, 25): anchor 1 of the fine scale, cell (6, 3)
    assert (fine.image.tolist(), fine.anchor.tolist(), fine.row.tolist(), fine.column.tolist()) == ([1], [1], [3], [6])
    assert fine.classes.tolist() == [[0, 0, 1]]
    # 44x42 at centre (22, 21): anchor 0 of the coarse scale, cell (1, 1)
    assert (coarse.image.tolist(), coarse.anchor.tolist(), coarse.row.tolist(), coarse.column.tolist()) == (
        [1],
        [0],
        [1],
        [1],
    )


def test_two_objects_in_one_place_keep_the_later_box_and_both_classes() -> None:
    fine, _ = assign([[[40.0, 20.0, 50.0, 30.0], [41.0, 21.0, 51.0, 31.0]]], [[0, 2]])
    assert len(fine) == 1
    assert fine.boxes_xyxy.tolist() == [[41, 21, 51, 31]]
    assert fine.classes.tolist() == [[1, 0, 1]]


def test_match_threshold_adds_anchors() -> None:
    # 10x10 overlaps 20x10 by one half
    only_best, _ = assign([[[40.0, 20.0, 50.0, 30.0]]], [[1]])
    both, _ = assign([[[40.0, 20.0, 50.0, 30.0]]], [[1]], match_threshold=0.4)
    assert (len(only_best), len(both)) == (1, 2)
    assert both.anchor.tolist() == [0, 1]


def test_a_centre_on_the_border_belongs_to_the_last_cell() -> None:
    fine, _ = assign([[[91.0, 59.0, 101.0, 69.0]]], [[0]])  # centre (96, 64) of a 96x64 input
    assert (fine.row.tolist(), fine.column.tolist()) == ([7], [11])


def test_no_objects() -> None:
    fine, coarse = assign([[], []], [[], []])
    assert len(fine) == len(coarse) == 0
    assert fine.classes.shape == (0, 3)
