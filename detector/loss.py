"""YOLOv3's loss: raw maps and targets -> box, objectness and classification terms.

Darknet defines gradients, not a loss; the terms below are functions with exactly those gradients (PAPER section 4):
sums over all places, divided by the number of images in the whole batch.

Legend: B images, M objects at most in an image, A anchors of a scale, C classes, h, w rows and columns, N = B * M * A
rows of an assignment, of which some count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from detector.anchors import cell_corners, decode_boxes, encode_boxes, split_raw_map
from detector.assign import Assignment, assign_targets
from detector.boxes import best_iou, elementwise_iou

LARGEST_LOG_SIZE = 4.0
"""A box 55 times as large or as small as its anchor is pulled back."""
PAIRS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Boxes of objects times predictions that are compared in one call: what a CPU's cache holds, or 64 MB on a GPU."""


class LossTerms(NamedTuple):
    """Scalars that carry gradients; the loss is their sum."""

    box: Tensor
    objectness: Tensor
    classification: Tensor

    def total(self) -> Tensor:
        return self.box + self.objectness + self.classification


class YoloLoss:
    """Computes `LossTerms`; holds only settings.

    Args:
        anchors_wh: (S, A, 2) input pixels.
        strides: of the S scales.
        num_classes: C.
        scale_xy: one per scale (Darknet's scale_x_y).
        box: mse | giou | diou | ciou.
        box_weight, objectness_weight, class_weight: factors of the terms.
        ignore_threshold: see `LossConfig`.
        match_threshold: see `LossConfig`.
        label_smoothing: see `LossConfig`.
    """

    def __init__(
        self,
        *,
        anchors_wh: Tensor,
        strides: Sequence[int],
        num_classes: int,
        scale_xy: Sequence[float],
        box: str = "mse",
        box_weight: float = 1.0,
        objectness_weight: float = 1.0,
        class_weight: float = 1.0,
        ignore_threshold: float = 0.7,
        match_threshold: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.anchors_wh = anchors_wh
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.scale_xy = tuple(scale_xy)
        self.box = box
        self.box_weight = box_weight
        self.objectness_weight = objectness_weight
        self.class_weight = class_weight
        self.ignore_threshold = ignore_threshold
        self.match_threshold = match_threshold
        self.label_smoothing = label_smoothing

    def __call__(self, raw_maps: Sequence[Tensor], boxes_xyxy: Tensor, labels: Tensor, *, batch_size: int) -> LossTerms:
        """The terms for these images, divided by `batch_size`.

        Args:
            raw_maps: (B, A * (5 + C), h, w) for each scale.
            boxes_xyxy: (B, M, 4), input pixels, of positive size where there is an object.
            labels: (B, M) int64, -1 where there is no object.
            batch_size: images of the whole optimiser step (B times subdivisions).
        """
        size_hw = (raw_maps[0].shape[2] * self.strides[0], raw_maps[0].shape[3] * self.strides[0])
        assignments = assign_targets(
            boxes_xyxy,
            labels,
            anchors_wh=self.anchors_wh,
            strides=self.strides,
            size_hw=size_hw,
            num_classes=self.num_classes,
            match_threshold=self.match_threshold,
        )
        box, objectness, classification = [], [], []
        for scale, (raw_map, assignment) in enumerate(zip(raw_maps, assignments, strict=True)):
            raw = split_raw_map(raw_map, self.anchors_wh.shape[1])  # (B, A, h, w, 5 + C)
            found = raw[assignment.image, assignment.anchor, assignment.row, assignment.column]  # (N, 5 + C)
            found = torch.where(assignment.positive[:, None], found, 0)  # the rest has neither loss nor gradient
            box.append(self._box_term(found, assignment, scale, size_hw))
            objectness.append(self._objectness_term(raw, assignment, boxes_xyxy, scale))
            classification.append(self._class_term(found, assignment))
        return LossTerms(
            box=self.box_weight * torch.stack(box).sum() / batch_size,
            objectness=self.objectness_weight * torch.stack(objectness).sum() / batch_size,
            classification=self.class_weight * torch.stack(classification).sum() / batch_size,
        )

    def _box_term(self, found: Tensor, assignment: Assignment, scale: int, size_hw: tuple[int, int]) -> Tensor:
        """mse: gradients (2 - w h) * (sigmoid(t) - target) for the centre and (2 - w h) * (t - target) for the size."""
        cells_xy = torch.stack((assignment.column, assignment.row), dim=1)  # (N, 2)
        anchors = self.anchors_wh[scale][assignment.anchor]  # (N, 2)
        stride, scale_xy = self.strides[scale], self.scale_xy[scale]
        if self.box != "mse":
            # Unlike Darknet, the gradient passes through the sigmoid, as autograd computes it for this loss.
            predicted = decode_boxes(found[:, :4], cells_xy, anchors, stride=stride, scale_xy=scale_xy)
            target = assignment.boxes_xyxy.to(predicted.dtype)
            overlap = torch.where(assignment.positive, 1 - elementwise_iou(predicted, target, kind=self.box), 0)
            # Far from any object's size the overlap has no gradient left, and a network that overshot would stay there.
            runaway = (found[:, 2:4].abs() - LARGEST_LOG_SIZE).clamp(min=0)
            return overlap.sum() + runaway.sum()
        centre, size = encode_boxes(assignment.boxes_xyxy, cells_xy, anchors, stride=stride, scale_xy=scale_xy)
        extent = assignment.boxes_xyxy[:, 2:] - assignment.boxes_xyxy[:, :2]
        weight = 2 - extent.prod(dim=1) / (size_hw[0] * size_hw[1])  # small objects count more
        weight = torch.where(assignment.positive, weight, 0)[:, None]  # (N, 1)
        centre_loss = binary_cross_entropy_with_logits(
            found[:, :2], centre.to(found.dtype), weight * scale_xy, reduction="sum"
        )
        return centre_loss + (weight * (found[:, 2:4] - size).pow(2)).sum() / 2

    def _objectness_term(self, raw: Tensor, assignment: Assignment, boxes_xyxy: Tensor, scale: int) -> Tensor:
        """Pushes positives towards 1, the rest towards 0, except predictions that overlap an object well enough."""
        counts = assignment.is_object | self._is_background(raw.detach(), boxes_xyxy, scale)  # (B, A, h, w)
        target, weight = assignment.is_object.to(raw.dtype), counts.to(raw.dtype)
        return binary_cross_entropy_with_logits(raw[..., 4], target, weight, reduction="sum")

    def _is_background(self, raw: Tensor, boxes_xyxy: Tensor, scale: int) -> Tensor:
        """(B, A, h, w) bool: false where a prediction's IoU with any object exceeds the ignore threshold."""
        batch, num_anchors, height, width, _ = raw.shape
        predicted = decode_boxes(
            raw[..., :4],
            cell_corners(height, width, raw.device),
            self.anchors_wh[scale][:, None, None],
            stride=self.strides[scale],
            scale_xy=self.scale_xy[scale],
        ).view(batch, -1, 4)  # (B, A * h * w, 4)
        pairs = max(boxes_xyxy.shape[1] * predicted.shape[1], 1)  # of one image
        chunk = max(PAIRS_AT_ONCE[raw.device.type] // pairs, 1)
        parts = [slice(start, start + chunk) for start in range(0, batch, chunk)]
        best = [best_iou(boxes_xyxy[part].to(raw.dtype), predicted[part]) for part in parts]  # (b, A * h * w) each
        return (torch.cat(best) <= self.ignore_threshold).view(batch, num_anchors, height, width)

    def _class_term(self, found: Tensor, assignment: Assignment) -> Tensor:
        smoothing = self.label_smoothing
        target = assignment.classes.to(found) * (1 - smoothing) + smoothing / 2  # (N, C)
        weight = assignment.positive[:, None].to(found.dtype)  # (N, 1)
        return binary_cross_entropy_with_logits(found[:, 5:], target, weight, reduction="sum")
