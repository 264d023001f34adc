"""The loss against hand-computed gradients (Darknet's deltas) and numeric differentiation."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou

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
    targets = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    return loss([raw], targets, torch.tensor([labels], dtype=torch.int64), batch_size=batch_size)


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


ANCHORS = torch.tensor([[[8.0, 8.0], [20.0, 10.0]], [[20.0, 10.0], [60.0, 40.0]]], dtype=torch.float64)
OVERLAP = {"giou": generalized_box_iou, "diou": distance_box_iou, "ciou": complete_box_iou}
Objects = list[tuple[Tensor, int]]


def responsible(loss: YoloLoss, objects: Objects, scale: int) -> dict[tuple[int, int, int], tuple[Tensor, set[int]]]:
    """Which (anchor, row, column) of a scale answers for which box and classes, object by object."""
    answers: dict[tuple[int, int, int], tuple[Tensor, set[int]]] = {}
    anchors = loss.anchors_wh.view(-1, 2)
    for box, label in objects:
        size = (box[2:] - box[:2]).expand_as(anchors)
        shared = torch.minimum(size, anchors).prod(1)
        iou = shared / (size.prod(1) + anchors.prod(1) - shared)
        best = anchors[iou.argmax()]
        for index, anchor in enumerate(loss.anchors_wh[scale]):
            if torch.equal(anchor, best) or iou[scale * 2 + index] > loss.match_threshold:
                column, row = ((box[:2] + box[2:]) / 2 / loss.strides[scale]).long().tolist()
                _, classes = answers.get((index, row, column), (box, set()))
                answers[index, row, column] = (box, classes | {label})
    return answers


def loss_by_loops(loss: YoloLoss, raw_maps: list[Tensor], images: list[Objects], size_hw: tuple[int, int]) -> LossTerms:
    """The loss as the paper says it, one place after the other."""
    box_term = objectness = classification = torch.zeros((), dtype=torch.float64)
    for scale, stride in enumerate(loss.strides):
        _, _, height, width = raw_maps[scale].shape
        ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        for image, objects in enumerate(images):
            raw = raw_maps[scale][image].view(2, -1, height, width).permute(0, 2, 3, 1)  # (A, h, w, 5 + C)
            centre = (raw[..., :2].sigmoid() - 0.5) * loss.scale_xy[scale] + 0.5 + torch.stack((xs, ys), dim=-1)
            size = raw[..., 2:4].exp() * loss.anchors_wh[scale][:, None, None]
            decoded = torch.cat((centre * stride - size / 2, centre * stride + size / 2), dim=-1)  # (A, h, w, 4)
            target, counts = torch.zeros(2, height, width).double(), torch.ones(2, height, width).double()
            if objects:
                boxes = torch.stack([box for box, _ in objects])
                best = box_iou(decoded.detach().view(-1, 4), boxes).amax(1).view_as(counts)
                counts[best > loss.ignore_threshold] = 0
            for place, (box, classes) in responsible(loss, objects, scale).items():
                target[place] = counts[place] = 1
                if loss.box == "mse":
                    weight = 2 - (box[2:] - box[:2]).prod() / (size_hw[0] * size_hw[1])
                    cell = torch.tensor([place[2], place[1]])
                    offset = ((box[:2] + box[2:]) / 2 / stride - cell - 0.5) / loss.scale_xy[scale] + 0.5
                    log_size = ((box[2:] - box[:2]) / loss.anchors_wh[scale, place[0]]).log()
                    cross_entropy = binary_cross_entropy_with_logits(raw[place][:2], offset, reduction="sum")
                    squares = (raw[place][2:4] - log_size).pow(2).sum()
                    box_term = box_term + weight * (loss.scale_xy[scale] * cross_entropy + squares / 2)
                else:
                    runaway = (raw[place][2:4].abs() - 4).clamp(min=0).sum()
                    box_term = box_term + 1 - OVERLAP[loss.box](decoded[place][None], box[None]).squeeze() + runaway
                wanted = torch.zeros(loss.num_classes, dtype=torch.float64)
                wanted[list(classes)] = 1
                wanted = wanted * (1 - loss.label_smoothing) + loss.label_smoothing / 2
                classification = classification + binary_cross_entropy_with_logits(
                    raw[place][5:], wanted, reduction="sum"
                )
            objectness = objectness + binary_cross_entropy_with_logits(raw[..., 4], target, counts, reduction="sum")
    return LossTerms(box_term / len(images), objectness / len(images), classification / len(images))


def random_objects(generator: torch.Generator, size_hw: tuple[int, int]) -> Objects:
    count = int(torch.randint(0, 6, (), generator=generator))
    size_wh = torch.tensor([size_hw[1], size_hw[0]])
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * (size_wh - 2)
    boxes = torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1).float().double()
    labels = torch.randint(0, 3, (count,), generator=generator).tolist()
    return [*zip(boxes, labels, strict=True)] * (1 + (count == 1))  # two objects in one place


@pytest.mark.parametrize("seed", range(200))
def test_the_loss_equals_its_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size_hw = [(32, 48), (64, 32), (48, 48)][seed % 3]
    images = [random_objects(generator, size_hw) for _ in range(3)]
    loss = YoloLoss(
        anchors_wh=ANCHORS,
        strides=(8, 16),
        num_classes=3,
        scale_xy=(1.1, 1.0),
        box=["mse", "giou", "diou", "ciou"][seed % 4],
        ignore_threshold=[0.3, 0.7][seed % 2],
        match_threshold=[0.3, 1.0][seed // 2 % 2],
        label_smoothing=[0.0, 0.1][seed // 4 % 2],
    )
    spread = [1.0, 3.0][seed // 8 % 2]
    maps = [torch.randn(3, 16, size_hw[0] // s, size_hw[1] // s, generator=generator).double() for s in (8, 16)]
    maps = [spread * each for each in maps]
    ours, loops = ([each.clone().requires_grad_() for each in maps] for _ in range(2))
    boxes = [torch.stack([box for box, _ in image]) if image else torch.zeros(0, 4).double() for image in images]
    labels = [torch.tensor([label for _, label in image], dtype=torch.int64) for image in images]
    found = loss(ours, pad_sequence(boxes, True).float(), pad_sequence(labels, True, -1), batch_size=3)
    expected = loss_by_loops(loss, loops, images, size_hw)
    assert [float(term.detach()) for term in found] == pytest.approx(
        [float(term.detach()) for term in expected], rel=1e-6
    )
    found.total().backward()  # type: ignore[no-untyped-call]
    expected.total().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(ours, loops, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
