"""The loss against hand-computed gradients (Darknet's deltas) and numeric differentiation."""

import math

import pytest
import torch
from torch import Tensor

from detector.loss import LossTerms, YoloLoss

STRIDE = 8
ANCHOR = (16.0, 8.0)


def make_loss(**options: object) -> YoloLoss:
    settings: dict[str, object] = {
        "anchors_wh": torch.tensor([[ANCHOR]]),
        "strides": (STRIDE,),
        "num_classes": 2,
        "scale_xy": (1.0,),
    }
    return YoloLoss(**{**settings, **options})  # type: ignore[arg-type]


def run(loss: YoloLoss, raw: Tensor, boxes: list[list[float]], labels: list[int], *, batch_size: int = 1) -> LossTerms:
    return loss(
        [raw],
        [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)],
        [torch.tensor(labels, dtype=torch.int64)],
        batch_size=batch_size,
    )


def raw_map(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, 7, 4, 4): one anchor, two classes, a 32x32 input."""
    return torch.randn(1, 7, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


BOX = [9.0, 6.0, 19.0, 14.0]  # 10x8 at (14, 10): cell column 1, row 1, offsets .75, .25


def test_mse_gradients_are_darknets_deltas() -> None:
    raw = raw_map().requires_grad_()
    terms = run(make_loss(), raw, [BOX], [1])
    terms.total().backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    values, delta = raw[0, :, 1, 1].detach(), -raw.grad[0, :, 1, 1]
    weight = 2 - 10 * 8 / (32 * 32)
    expected = [
        weight * (0.75 - values[0].sigmoid()),
        weight * (0.25 - values[1].sigmoid()),
        weight * (math.log(10 / 16) - values[2]),
        weight * (math.log(8 / 8) - values[3]),
        1 - values[4].sigmoid(),
        0 - values[5].sigmoid(),
        1 - values[6].sigmoid(),
    ]
    assert delta.tolist() == pytest.approx([float(value) for value in expected], abs=1e-5)


def test_background_is_pushed_down_and_nothing_else() -> None:
    raw = raw_map(1).requires_grad_()
    terms = run(make_loss(), raw, [], [])
    terms.total().backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    assert torch.allclose(-raw.grad[0, 4], -raw.detach()[0, 4].sigmoid(), atol=1e-6)
    assert raw.grad[0, [0, 1, 2, 3, 5, 6]].abs().max() == 0
    assert float(terms.box.detach()) == float(terms.classification.detach()) == 0


def test_a_good_background_prediction_is_left_alone() -> None:
    raw = torch.full((1, 7, 4, 4), -9.0)
    # The cell to the left of the object's cell predicts nearly its box: IoU above .7, though it is not responsible.
    raw[0, :4, 1, 0] = torch.tensor([9.0, math.log(0.25 / 0.75), math.log(10 / 16), 0.0])
    box = [3.0 + 1.2, 6.0, 13.0 + 1.2, 14.0]  # centre 9.2: cell 1; the prediction's centre is 8
    raw.requires_grad_()
    run(make_loss(), raw, [box], [0]).objectness.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    assert raw.grad[0, 4, 1, 0] == 0
    raw.grad = None
    run(make_loss(ignore_threshold=0.95), raw, [box], [0]).objectness.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    assert raw.grad[0, 4, 1, 0] > 0


def test_scale_xy_gradient() -> None:
    raw = raw_map(2).requires_grad_()
    run(make_loss(scale_xy=(1.2,)), raw, [BOX], [0]).box.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    weight = 2 - 80 / 1024
    predicted = float(raw.detach()[0, 0, 1, 1].sigmoid()) * 1.2 - 0.1
    assert float(-raw.grad[0, 0, 1, 1]) == pytest.approx(weight * (0.75 - predicted), abs=1e-5)


def test_weights_batch_size_and_smoothing() -> None:
    raw = raw_map(3)
    plain = run(make_loss(), raw, [BOX], [1])
    scaled = run(make_loss(box_weight=2, objectness_weight=3, class_weight=4), raw, [BOX], [1], batch_size=8)
    for name, factor in (("box", 2), ("objectness", 3), ("classification", 4)):
        assert float(getattr(scaled, name)) == pytest.approx(float(getattr(plain, name)) * factor / 8, rel=1e-5)
    raw.requires_grad_()
    run(make_loss(label_smoothing=0.2), raw, [BOX], [1]).classification.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    targets = (raw.detach()[0, 5:, 1, 1].sigmoid() - raw.grad[0, 5:, 1, 1]).tolist()
    assert targets == pytest.approx([0.1, 0.9], abs=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou"])
def test_iou_terms_by_hand(kind: str) -> None:
    raw = torch.zeros(1, 7, 4, 4)  # predicts 16x8 at (12, 12) in cell (1, 1): 4..20, 8..16
    terms = run(make_loss(box=kind, box_weight=0.5), raw, [BOX], [0])
    intersection, union = 10 * 6, 16 * 8 + 80 - 60
    hull_w, hull_h = 16, 10
    penalty = (hull_w * hull_h - union) / (hull_w * hull_h) if kind == "giou" else 8 / (hull_w**2 + hull_h**2)
    assert float(terms.box) == pytest.approx(0.5 * (1 - intersection / union + penalty), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "giou", "diou"])
def test_gradcheck(kind: str) -> None:
    loss = make_loss(box=kind, anchors_wh=torch.tensor([[ANCHOR]], dtype=torch.float64))
    raw = (raw_map(4, torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(loss, x, [BOX], [1]).total(), raw)
