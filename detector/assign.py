"""Which anchor is responsible for which object: YOLOv3's rule, with Darknet's `iou_thresh` as an option.

Every shape is known before any value is, so that a GPU never has to report one back: instead of a list of positives
there is one row for each object and anchor, and a mask of the rows that count.

Legend: B images, M objects at most in an image, S scales, A anchors of a scale, C classes, h, w rows and columns of a
raw map, N = B * M * A rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.boxes import size_iou


@dataclass(frozen=True)
class Assignment:
    """The objects' anchors in one scale. A row is one object with one anchor, in the cell of the object's centre.

    Attributes:
        positive: (N,) bool, the rows to learn from; each anchor of a cell is in at most one of them.
        image, anchor, row, column: (N,) int64 indices into the raw map, valid in all rows.
        boxes_xyxy: (N, 4) the object's box, input pixels; of one pixel where the row is not positive.
        classes: (N, C) float, 1 for the class of each object at this place, 0 elsewhere.
        is_object: (B, A, h, w) bool, the places of the positive rows.
    """

    positive: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    boxes_xyxy: Tensor
    classes: Tensor
    is_object: Tensor


def assign_targets(
    boxes_xyxy: Tensor,
    labels: Tensor,
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
        boxes_xyxy: (B, M, 4), input pixels.
        labels: (B, M) int64, -1 where there is no object.
        anchors_wh: (S, A, 2) input pixels.
        strides: of the S scales.
        size_hw: of the network's input.
        num_classes: C.
        match_threshold: every anchor with a larger size IoU is responsible as well; 1 = only the best one.

    Returns:
        One `Assignment` for each scale.
    """
    batch, objects, _ = boxes_xyxy.shape
    num_scales, per_scale, _ = anchors_wh.shape
    boxes, sizes = boxes_xyxy.reshape(-1, 4), anchors_wh.reshape(-1, 2)  # (B * M, 4), (S * A, 2)
    iou = size_iou(boxes[:, 2:] - boxes[:, :2], sizes)  # (B * M, S * A)
    best = sizes[iou.argmax(dim=1)]  # (B * M, 2)
    answers = (iou > match_threshold) | (sizes == best[:, None]).all(dim=2)
    answers &= labels.reshape(-1, 1) >= 0
    answers = answers.view(-1, num_scales, per_scale)

    rows = torch.arange(batch * objects * per_scale, device=boxes.device)
    image, anchor = rows // (objects * per_scale), rows % per_scale
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).repeat_interleave(per_scale, dim=0)  # (N, 2)
    boxes, labels = boxes.repeat_interleave(per_scale, dim=0), labels.reshape(-1).repeat_interleave(per_scale)
    one_pixel = (torch.arange(4, device=boxes.device) // 2).to(boxes.dtype)  # 0, 0, 1, 1
    assignments = []
    for scale, stride in enumerate(strides):
        height, width = size_hw[0] // stride, size_hw[1] // stride
        # A centre on the right or lower border belongs to the last cell.
        column = (centres[:, 0] / stride).long().clamp(0, width - 1)
        row = (centres[:, 1] / stride).long().clamp(0, height - 1)
        answer = answers[:, scale].reshape(-1)  # (N,)
        num_places = batch * per_scale * height * width
        place = torch.where(answer, ((image * per_scale + anchor) * height + row) * width + column, num_places)
        # The last row of each place; the place after the last one collects the rows without an answer.
        owners = torch.full((num_places + 1,), -1, device=boxes.device).scatter_reduce(0, place, rows, reduce="amax")
        owner = owners[place]  # (N,)
        positive = answer & (owner == rows)
        classes = torch.zeros(len(rows), num_classes, device=boxes.device)
        classes[owner, labels.clamp(min=0)] = 1  # rows without an answer write into rows that do not count
        is_object = (owners[:-1] >= 0).view(batch, per_scale, height, width)
        targets = torch.where(positive[:, None], boxes, one_pixel)
        assignments.append(Assignment(positive, image, anchor, row, column, targets, classes, is_object))
    return assignments
