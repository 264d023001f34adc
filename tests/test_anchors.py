"""Box coding, grids and anchor fitting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.anchors import (
    best_possible_recall,
    cell_corners,
    decode_boxes,
    encode_boxes,
    fit_anchors,
    split_anchors,
    split_raw_map,
)


def test_split_raw_map_puts_channels_last() -> None:
    raw = torch.arange(2 * 3 * 7 * 4 * 5, dtype=torch.float32).view(2, 21, 4, 5)  # B 2, A 3, 5 + C = 7
    split = split_raw_map(raw, 3)
    assert split.shape == (2, 3, 4, 5, 7)
    assert split[1, 2, 3, 4, 6] == raw[1, 2 * 7 + 6, 3, 4]


def test_cell_corners_are_x_then_y() -> None:
    corners = cell_corners(2, 3, torch.device("cpu"))
    assert corners.shape == (2, 3, 2)
    assert corners[1, 2].tolist() == [2, 1]


def test_decode_by_hand() -> None:
    codes = torch.tensor([0.0, 0.0, 0.0, torch.log(torch.tensor(2.0))])
    box = decode_boxes(codes, torch.tensor([3, 1]), torch.tensor([10.0, 20.0]), stride=8)
    # centre (3.5, 1.5) * 8 = (28, 12), size 10 x 40
    assert box.tolist() == pytest.approx([23, -8, 33, 32])


def test_scale_xy_reaches_beyond_the_cell() -> None:
    codes = torch.tensor([20.0, -20.0, 0.0, 0.0])  # sigmoids 1 and 0
    box = decode_boxes(codes, torch.tensor([0, 0]), torch.tensor([2.0, 2.0]), stride=10, scale_xy=1.2)
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([11, -1], abs=1e-4)


@settings(deadline=None)
@given(
    offset=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    size=st.tuples(st.floats(1, 400), st.floats(1, 400)),
    scale_xy=st.sampled_from([1.0, 1.05, 1.2, 2.0]),
    stride=st.sampled_from([8, 16, 32]),
)
def test_encode_is_the_inverse_of_decode(
    offset: tuple[float, float], size: tuple[float, float], scale_xy: float, stride: int
) -> None:
    cell, anchor = torch.tensor([[5, 2]]), torch.tensor([[33.0, 61.0]], dtype=torch.float64)
    centre = (cell + torch.tensor([offset], dtype=torch.float64)) * stride
    half = torch.tensor([size], dtype=torch.float64) / 2
    boxes = torch.cat((centre - half, centre + half), dim=1)
    centre_target, size_target = encode_boxes(boxes, cell, anchor, stride=stride, scale_xy=scale_xy)
    codes = torch.cat((centre_target.logit(), size_target), dim=1)
    decoded = decode_boxes(codes, cell, anchor, stride=stride, scale_xy=scale_xy)
    assert torch.allclose(decoded, boxes, atol=1e-6)


def test_split_anchors() -> None:
    anchors = split_anchors([(1, 2), (3, 4), (5, 6), (7, 8)], 2)
    assert anchors.shape == (2, 2, 2)
    assert anchors[1, 0].tolist() == [5, 6]
    with pytest.raises(ValueError, match="multiple of 3"):
        split_anchors([(1, 2)], 3)


def test_fit_finds_the_clusters_smallest_first() -> None:
    sizes = torch.tensor([[10.0, 20.0]] * 30 + [[50.0, 40.0]] * 30 + [[100.0, 200.0]] * 30)
    noise = torch.rand(sizes.shape, generator=torch.Generator().manual_seed(0))
    fitted = fit_anchors(sizes + noise, 3)
    expected = torch.tensor([[10.5, 20.5], [50.5, 40.5], [100.5, 200.5]])
    assert (fitted - expected).abs().max() < 0.5
    assert best_possible_recall(sizes, fitted, threshold=0.9) == 1.0


def test_fit_needs_enough_boxes() -> None:
    with pytest.raises(ValueError, match="at least 9"):
        fit_anchors(torch.ones(3, 2), 9)


def test_recall_without_boxes_is_not_a_number() -> None:
    assert math.isnan(best_possible_recall(torch.zeros(0, 2), torch.ones(9, 2)))
    assert best_possible_recall(torch.ones(1, 2), torch.ones(9, 2)) == 1
