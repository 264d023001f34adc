"""Raw maps -> detections: decode, threshold, non-maximum suppression, top-k. One path for every program here.

Legend: B images, A anchors of a scale, C classes, h, w rows and columns, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.anchors import decode_boxes, split_raw_map
from detector.structures import Detections

MAX_CANDIDATES = 10_000


@dataclass(frozen=True)
class Decoder:
    """What it takes to read a network's raw maps.

    Attributes:
        anchors_wh: (S, A, 2) input pixels.
        strides: of the S scales.
        scale_xy: one per scale.
    """

    anchors_wh: Tensor
    strides: tuple[int, ...]
    scale_xy: tuple[float, ...]


def postprocess(
    raw_maps: Sequence[Tensor],
    decoder: Decoder,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> list[Detections]:
    """Detections of each image, best first, in network-input pixels.

    The score of a class is objectness times class probability; a place may yield several classes, as in Darknet. Of
    two boxes of one class that overlap by more than `nms_threshold` the better one stays. Should an image have more
    than 10,000 candidates above the threshold, the best 10,000 go on.

    Args:
        raw_maps: (B, A * (5 + C), h, w) for each scale, any float type.
        decoder: anchors and strides of the network.
        score_threshold: candidates at or below are dropped.
        nms_threshold: IoU.
        max_detections: per image.

    Returns:
        B `Detections`.
    """
    batch = raw_maps[0].shape[0]
    candidates = [
        _candidates(raw_map.float(), decoder, scale, score_threshold) for scale, raw_map in enumerate(raw_maps)
    ]
    image, boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
    results = []
    for index in range(batch):
        mine = (image == index).nonzero()[:, 0]
        if len(mine) > MAX_CANDIDATES:
            mine = mine[scores[mine].topk(MAX_CANDIDATES).indices]
        kept = mine[batched_nms(boxes[mine], scores[mine], labels[mine], nms_threshold)[:max_detections]]
        results.append(Detections(boxes[kept].numpy(), scores[kept].numpy(), labels[kept].numpy()))
    return results


def _candidates(
    raw_map: Tensor, decoder: Decoder, scale: int, score_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image (K,), boxes (K, 4), scores (K,), labels (K,) above the threshold, on the CPU.

    Objectness first: a score can never exceed it, so most places are dropped before anything else is computed.
    """
    raw = split_raw_map(raw_map, decoder.anchors_wh.shape[1])  # (B, A, h, w, 5 + C)
    objectness = raw[..., 4].sigmoid()
    image, anchor, row, column = (objectness > score_threshold).nonzero(as_tuple=True)
    places = raw[image, anchor, row, column]  # (K', 5 + C)
    scores = places[:, 5:].sigmoid() * objectness[image, anchor, row, column, None]  # (K', C)
    place, label = (scores > score_threshold).nonzero(as_tuple=True)  # (K,)
    boxes = decode_boxes(
        places[place, :4],
        torch.stack((column[place], row[place]), dim=1),
        decoder.anchors_wh[scale].to(raw.device)[anchor[place]],
        stride=decoder.strides[scale],
        scale_xy=decoder.scale_xy[scale],
    )
    return image[place].cpu(), boxes.cpu(), scores[place, label].cpu(), label.cpu()
