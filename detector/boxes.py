"""Pure box maths on tensors. Boxes are xyxy (x right, y down, x2 >= x1, y2 >= y1) unless the name says otherwise.

Legend: N, M boxes. No function changes its arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Corners (..., 4) -> centre x, centre y, width, height (..., 4), same units."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre x, centre y, width, height (..., 4) -> corners (..., 4), same units."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4), in squared units."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Overlap areas of boxes (..., 4) and (..., 4), broadcast against each other."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def best_iou(objects_xyxy: Tensor, predicted_xyxy: Tensor) -> Tensor:
    """The largest IoU (B, m) of each predicted box (B, m, 4) with any object (B, n, 4) of its image; 0 without objects.

    With each coordinate in memory of its own, which is several times faster than boxes in rows.
    """
    if not objects_xyxy.shape[1]:
        return predicted_xyxy.new_zeros(predicted_xyxy.shape[:2])
    x1, y1, x2, y2 = objects_xyxy.unsqueeze(2).unbind(-1)  # (B, n, 1)
    left, top, right, bottom = (side.contiguous() for side in predicted_xyxy.unsqueeze(1).unbind(-1))  # (B, 1, m)
    intersection = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)  # (B, n, m)
    intersection *= (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    union = ((x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny)).amax(dim=1)


def size_iou(first_wh: Tensor, second_wh: Tensor) -> Tensor:
    """IoU (N, M) of box sizes (N, 2) and (M, 2) with one centre; used to match anchors (Darknet `box_iou`)."""
    intersection = torch.minimum(first_wh[:, None], second_wh[None]).prod(-1)  # (N, M)
    return intersection / (first_wh.prod(-1)[:, None] + second_wh.prod(-1)[None] - intersection)


def elementwise_iou(predicted_xyxy: Tensor, target_xyxy: Tensor, *, kind: str = "iou", eps: float = 1e-9) -> Tensor:
    """IoU or one of its penalised forms (N,) between box i of (N, 4) and box i of (N, 4).

    Args:
        predicted_xyxy: (N, 4); gradients flow to it.
        target_xyxy: (N, 4).
        kind: `iou`; `giou` (Rezatofighi et al., 2019); `diou` and `ciou` (Zheng et al., 2020). In `ciou` the weight of
            the aspect term is treated as a constant by the gradient, as its authors define it.
        eps: keeps empty boxes from dividing by zero, in squared pixels.

    Returns:
        (N,): `iou` in [0, 1], `giou` and `diou` in [-1, 1], `ciou` in [-2, 1]; 1 for equal boxes.

    Raises:
        ValueError: unknown kind.
    """
    intersection = _intersection(predicted_xyxy, target_xyxy)
    union = box_area(predicted_xyxy) + box_area(target_xyxy) - intersection
    iou = intersection / (union + eps)
    if kind == "iou":
        return iou
    hull_wh = torch.maximum(predicted_xyxy[:, 2:], target_xyxy[:, 2:]) - torch.minimum(
        predicted_xyxy[:, :2], target_xyxy[:, :2]
    )  # (N, 2)
    if kind == "giou":
        hull = hull_wh.prod(-1)
        return iou - (hull - union) / (hull + eps)
    predicted, target = xyxy_to_cxcywh(predicted_xyxy), xyxy_to_cxcywh(target_xyxy)
    distance = (predicted[:, :2] - target[:, :2]).pow(2).sum(-1) / (hull_wh.pow(2).sum(-1) + eps)
    if kind == "diou":
        return iou - distance
    if kind == "ciou":
        aspect = torch.atan2(target[:, 2], target[:, 3]) - torch.atan2(predicted[:, 2], predicted[:, 3])
        penalty = 4 / math.pi**2 * aspect.pow(2)
        with torch.no_grad():
            weight = penalty / (1 - iou + penalty + eps)
        return iou - distance - weight * penalty
    raise ValueError(f"kind: expected iou, giou, diou or ciou, got {kind!r}")
