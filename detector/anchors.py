"""Anchor grids, and the coding of boxes relative to them: `decode_boxes` and its exact inverse `encode_boxes`.

Legend: B images, A anchors of a scale, C classes, h, w rows and columns of a raw map, s stride, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detector.boxes import cxcywh_to_xyxy, size_iou


def split_anchors(anchors: Sequence[tuple[float, float]], num_scales: int) -> Tensor:
    """All anchors (width, height) in input pixels, smallest first -> (num_scales, A, 2), finest scale first.

    Raises:
        ValueError: the number of anchors is not a multiple of num_scales.
    """
    if len(anchors) % num_scales:
        raise ValueError(f"anchors: expected a multiple of {num_scales} scales, got {len(anchors)}")
    return torch.tensor(anchors, dtype=torch.float32).view(num_scales, -1, 2)


def split_raw_map(raw_map: Tensor, num_anchors: int) -> Tensor:
    """A raw map (B, A * (5 + C), h, w) -> (B, A, h, w, 5 + C); a view where possible."""
    batch, channels, height, width = raw_map.shape
    split = raw_map.view(batch, num_anchors, channels // num_anchors, height, width)
    return split.permute(0, 1, 3, 4, 2)  # (B, A, h, w, 5 + C)


def cell_corners(height: int, width: int, device: torch.device) -> Tensor:
    """Column and row of every cell: (h, w, 2) float32."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1)


def decode_boxes(
    codes: Tensor,
    cells_xy: Tensor,
    anchors_wh: Tensor,
    *,
    stride: int,
    scale_xy: float = 1.0,
    new_coords: bool = False,
) -> Tensor:
    """Codes (tx, ty, tw, th) -> boxes xyxy in input pixels. `postprocess.find_candidates` does the same in NumPy.

    Centre = (sigmoid(t) * scale - (scale - 1) / 2 + cell) * stride, size = exp(t) * anchor (Darknet `get_yolo_box`).

    Args:
        codes: (..., 4) logits.
        cells_xy: (..., 2) column and row of the cell.
        anchors_wh: (..., 2) anchor width and height in input pixels.
        stride: input pixels per cell.
        scale_xy: Darknet's scale_x_y.
        new_coords: the codes are activated values v, and the size is (2 v)^2 * anchor (Scaled-YOLOv4).

    Returns:
        (..., 4), broadcast, not clipped.
    """
    share = codes[..., :2] if new_coords else codes[..., :2].sigmoid()
    growth = (2 * codes[..., 2:4]).square() if new_coords else codes[..., 2:4].exp()
    centre = (share * scale_xy - (scale_xy - 1) / 2 + cells_xy) * stride
    size = growth * anchors_wh
    return cxcywh_to_xyxy(torch.cat((centre, size), dim=-1))


def encode_boxes(
    boxes_xyxy: Tensor, cells_xy: Tensor, anchors_wh: Tensor, *, stride: int, scale_xy: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The exact inverse of `decode_boxes`, except that the centre is returned before the logit.

    Args: as in `decode_boxes`; boxes (N, 4) have positive size and centres within reach of their cells.

    Returns:
        centre targets (N, 2): what sigmoid(tx), sigmoid(ty) should be, in [0, 1];
        size targets (N, 2): what tw, th should be.
    """
    corner, opposite = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    offset = (corner + opposite) / 2 / stride - cells_xy  # within the cell: [0, 1)
    centre = (offset + (scale_xy - 1) / 2) / scale_xy
    return centre, ((opposite - corner) / anchors_wh).log()


def best_possible_recall(sizes_wh: Tensor, anchors_wh: Tensor, *, threshold: float = 0.5) -> float:
    """Share of the box sizes (N, 2) that some anchor (A, 2) overlaps with at least `threshold`; nan without boxes."""
    return float((size_iou(sizes_wh, anchors_wh).amax(dim=1) >= threshold).float().mean())


def fit_anchors(sizes_wh: Tensor, num_anchors: int, *, seed: int = 0, max_rounds: int = 300) -> Tensor:
    """k-means anchors with 1 - IoU as the distance (Redmon and Farhadi, 2017, section 2).

    Args:
        sizes_wh: (N, 2) box sizes in pixels of the network's input, N >= num_anchors.
        num_anchors: how many.
        seed: of the initial choice.
        max_rounds: at most this many rounds; it usually converges in a few dozen.

    Returns:
        (num_anchors, 2), smallest area first.

    Raises:
        ValueError: fewer boxes than anchors.
    """
    if len(sizes_wh) < num_anchors:
        raise ValueError(f"fit_anchors: expected at least {num_anchors} boxes, got {len(sizes_wh)}")
    generator = np.random.default_rng(seed)
    anchors = sizes_wh[torch.from_numpy(generator.choice(len(sizes_wh), num_anchors, replace=False))].clone()
    nearest = torch.full((len(sizes_wh),), -1)
    for _ in range(max_rounds):
        previous, nearest = nearest, size_iou(sizes_wh, anchors).argmax(dim=1)
        if torch.equal(previous, nearest):
            break
        for index in range(num_anchors):
            members = sizes_wh[nearest == index]
            if len(members):
                anchors[index] = members.median(dim=0).values
    return anchors[anchors.prod(dim=1).argsort()]
