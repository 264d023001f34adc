"""Which anchor is responsible for which object: YOLOv3's rule, with Darknet's `iou_thresh` as an option.

Legend: S scales, A anchors of a scale, P positives (an anchor in a cell that is responsible for an object).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.boxes import size_iou


@dataclass(frozen=True)
class Assignment:
    """The positives of one scale. Each anchor of a cell appears at most once.

    Attributes:
        image, anchor, row, column: (P,) int64 indices into the raw map.
        boxes_xyxy: (P, 4) the object's box, input pixels.
        classes: (P, C) float, 1 for the class of each object at this place, 0 elsewhere.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    boxes_xyxy: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.image)


def assign_targets(
    boxes_xyxy: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    anchors_wh: Tensor,
    strides: Sequence[int],
    size_hw: tuple[int, int],
    num_classes: int,
    match_threshold: float = 1.0,
) -> list[Assignment]:
    """Chooses for each object, by size alone, the best of all S * A anchors; the cell is the one with its centre.

    An anchor that appears in two scales is used in both. If two objects choose the same anchor of the same cell, the
    later one sets the box and both set their classes (Darknet `forward_yolo_layer`).

    Args:
        boxes_xyxy: B tensors (n_i, 4), input pixels.
        labels: B tensors (n_i,) int64.
        anchors_wh: (S, A, 2) input pixels.
        strides: of the S scales.
        size_hw: of the network's input.
        num_classes: C.
        match_threshold: every anchor with a larger size IoU is responsible as well; 1 = only the best one.

    Returns:
        One `Assignment` for each scale.
    """
    image = torch.cat([torch.full((len(boxes),), index, device=boxes.device) for index, boxes in enumerate(boxes_xyxy)])
    boxes, classes = torch.cat(list(boxes_xyxy)), torch.cat(list(labels))
    num_scales, per_scale, _ = anchors_wh.shape
    iou = size_iou(boxes[:, 2:] - boxes[:, :2], anchors_wh.view(-1, 2))  # (n, S * A)
    answers = iou > match_threshold
    if len(boxes):
        best = anchors_wh.view(-1, 2)[iou.argmax(dim=1)]  # (n, 2)
        answers |= (anchors_wh.view(1, -1, 2) == best[:, None]).all(dim=2)
    answers = answers.view(len(boxes), num_scales, per_scale)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
    assignments = []
    for scale, stride in enumerate(strides):
        target, anchor = answers[:, scale].nonzero(as_tuple=True)
        # A centre on the right or lower border belongs to the last cell.
        column = (centres[target, 0] / stride).long().clamp(0, size_hw[1] // stride - 1)
        row = (centres[target, 1] / stride).long().clamp(0, size_hw[0] // stride - 1)
        keys = torch.stack((image[target], anchor, row, column), dim=1)  # (P', 4)
        assignments.append(_merge(keys, boxes[target], classes[target], num_classes))
    return assignments


def _merge(keys: Tensor, boxes: Tensor, labels: Tensor, num_classes: int) -> Assignment:
    """One row for each distinct key: the last box, the union of the classes."""
    places, inverse = torch.unique(keys, dim=0, return_inverse=True)  # (P, 4), (P',)
    order = torch.arange(len(inverse), device=inverse.device)
    chosen = torch.zeros(len(places), dtype=torch.int64, device=inverse.device)
    chosen = chosen.scatter_reduce(0, inverse, order, reduce="amax")  # (P,)
    classes = torch.zeros(len(places), num_classes, device=inverse.device)
    classes[inverse, labels] = 1
    image, anchor, row, column = places.unbind(dim=1)
    return Assignment(image, anchor, row, column, boxes[chosen], classes)
