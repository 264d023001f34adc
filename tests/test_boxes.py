"""Box maths against hand-computed numbers."""

import pytest
import torch

from detector.boxes import (
    box_area,
    cxcywh_to_xyxy,
    elementwise_iou,
    size_iou,
    xyxy_to_cxcywh,
)

A = [0.0, 0.0, 4.0, 2.0]  # area 8
B = [2.0, 1.0, 6.0, 3.0]  # area 8; overlaps A in 2 x 1
FAR = [10.0, 10.0, 12.0, 12.0]


def test_conversion_by_hand_and_back() -> None:
    boxes = torch.tensor([A, B])
    centres = xyxy_to_cxcywh(boxes)
    assert centres.tolist() == [[2, 1, 4, 2], [4, 2, 4, 2]]
    assert torch.equal(cxcywh_to_xyxy(centres), boxes)
    assert boxes.tolist() == [A, B], "the argument was changed"


def test_area() -> None:
    assert box_area(torch.tensor([A, FAR])).tolist() == [8, 4]


def test_size_iou() -> None:
    iou = size_iou(torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, 4.0], [4.0, 2.0]]))
    assert iou[0].tolist() == pytest.approx([1, 4 / 12])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("iou", 2 / 14),
        ("giou", 2 / 14 - (18 - 14) / 18),  # hull 6 x 3
        ("diou", 2 / 14 - 5 / 45),  # centres (2,1), (4,2); hull diagonal^2 36 + 9
        ("ciou", 2 / 14 - 5 / 45),  # equal aspects
    ],
)
def test_elementwise_kinds_by_hand(kind: str, expected: float) -> None:
    value = elementwise_iou(torch.tensor([A]), torch.tensor([B]), kind=kind)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_equal_boxes_have_iou_one_and_gradients_are_right(kind: str) -> None:
    boxes = torch.tensor([A, B], dtype=torch.float64)
    assert elementwise_iou(boxes, boxes, kind=kind).tolist() == pytest.approx([1, 1], abs=1e-6)
    if kind != "ciou":  # its aspect weight is a constant by definition, so numeric gradients differ
        moved = (boxes + torch.tensor([0.3, -0.2, 0.7, 0.4], dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: elementwise_iou(x, boxes, kind=kind), moved)


def test_ciou_punishes_a_wrong_aspect() -> None:
    target = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    wide = torch.tensor([[-2.0, 1.0, 6.0, 3.0]])  # same centre
    # IoU 8 / 24; angles atan(1) and atan(4)
    penalty = 4 / torch.pi**2 * (torch.pi / 4 - torch.atan(torch.tensor(4.0))) ** 2
    expected = 1 / 3 - penalty * penalty / (1 - 1 / 3 + penalty)
    assert elementwise_iou(wide, target, kind="ciou").item() == pytest.approx(expected.item(), abs=1e-6)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'eiou'"):
        elementwise_iou(torch.zeros(1, 4), torch.zeros(1, 4), kind="eiou")
