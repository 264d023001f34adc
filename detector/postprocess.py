"""Raw maps -> detections: decode, threshold, non-maximum suppression, top-k. One path for every program here.

Legend: B images, A anchors of a scale, C classes, h, w rows and columns, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.anchors import decode_boxes, split_raw_map
from detector.boxes import pairwise_distance_iou
from detector.structures import Detections

MAX_CANDIDATES = 10_000
PLACES_PER_SCALE = 1 << 32
DARKNET_MIN_SCORE = 0.005


@dataclass(frozen=True)
class Decoder:
    """What it takes to read a network's raw maps.

    Attributes:
        anchors_wh: for each of the S scales (A, 2) input pixels.
        strides: of the S scales.
        scale_xy: one per scale.
        new_coords: the maps hold activated values, sizes are (2 v)^2 * anchor (Scaled-YOLOv4's cfgs).
        nms_beta: suppress by IoU - (d / c)^beta instead of IoU, d and c the squared distance of the centres and the
            squared diagonal of the hull (Darknet's greedynms and diounms); None = by IoU.
    """

    anchors_wh: Sequence[Tensor]
    strides: tuple[int, ...]
    scale_xy: tuple[float, ...]
    new_coords: bool = False
    nms_beta: float | None = None


def postprocess(
    raw_maps: Sequence[Tensor],
    decoder: Decoder,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    darknet_ranks: bool = False,
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
        darknet_ranks: fill `Detections.darknet_ranks`, for Darknet's metric.

    Returns:
        B `Detections`.
    """
    batch = raw_maps[0].shape[0]
    candidates = [
        _candidates(raw_map.float(), decoder, scale, score_threshold) for scale, raw_map in enumerate(raw_maps)
    ]
    image, boxes, scores, labels, place, anchors = (torch.cat(parts) for parts in zip(*candidates, strict=True))
    results = []
    for index in range(batch):
        mine = (image == index).nonzero()[:, 0]
        if len(mine) > MAX_CANDIDATES:
            mine = mine[scores[mine].topk(MAX_CANDIDATES).indices]
        kept = mine[_suppress(boxes[mine], scores[mine], labels[mine], nms_threshold, decoder.nms_beta)]
        kept = kept[:max_detections]
        ranks = None
        if darknet_ranks:
            by_place = _darknet_ranks(place[mine], scores[mine], labels[mine])
            ranks = np.array([by_place.get(int(key), len(by_place)) for key in place[kept]], np.int64)
        found = Detections(
            boxes[kept].numpy(), scores[kept].numpy(), labels[kept].numpy(), ranks, anchors[kept].numpy()
        )
        results.append(found)
    return results


def _candidates(
    raw_map: Tensor, decoder: Decoder, scale: int, score_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Image, boxes (K, 4), scores, labels above the threshold, a key for each place, its anchor; (K,), on the CPU.

    Objectness first: a score can never exceed it, so most places are dropped before anything else is computed.
    """
    raw = split_raw_map(raw_map, len(decoder.anchors_wh[scale]))  # (B, A, h, w, 5 + C)
    if decoder.new_coords:
        raw = _to_logits(raw)
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
    keys = (place + scale * PLACES_PER_SCALE).cpu()
    number = anchor[place] + sum(len(anchors) for anchors in decoder.anchors_wh[:scale])  # counted over the scales
    return image[place].cpu(), boxes.cpu(), scores[place, label].cpu(), label.cpu(), keys, number.cpu()


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, beta: float | None) -> Tensor:
    """Indices (K',) of the boxes that stay, best first; each class by itself."""
    if beta is None:
        kept_rows: Tensor = batched_nms(boxes, scores, labels, threshold)
        return kept_rows
    order = scores.argsort(descending=True, stable=True)
    kept = []
    for label in torch.unique(labels):
        mine = order[labels[order] == label]
        overlap = pairwise_distance_iou(boxes[mine], beta=beta) > threshold  # (k, k)
        alive = torch.ones(len(mine), dtype=torch.bool)
        for row in range(len(mine)):
            if alive[row]:
                alive[row + 1 :] &= ~overlap[row, row + 1 :]
        kept.append(mine[alive])
    stays = torch.cat(kept) if kept else order
    return stays[scores[stays].argsort(descending=True, stable=True)]


def _darknet_ranks(place: Tensor, scores: Tensor, labels: Tensor) -> dict[int, int]:
    """The order in which Darknet's program lists boxes after its suppression: place -> rank.

    It sorts whole boxes by the score of one class after the other (`do_nms_sort`), before that class is suppressed, so
    the last class on which two boxes differ decides. Scores up to 0.005 do not exist there.
    """
    counted = scores > DARKNET_MIN_SCORE
    keys, owner = np.unique(place[counted].numpy(), return_inverse=True)
    table = np.zeros((len(keys), int(labels.max()) + 1 if len(labels) else 1), np.float32)
    table[owner, labels[counted].numpy()] = scores[counted].numpy()
    return {int(keys[row]): rank for rank, row in enumerate(np.lexsort(-table.T))}


def _to_logits(raw: Tensor) -> Tensor:
    """Activated values of a `new_coords` map -> the codes that `decode_boxes` turns into the same box."""
    codes = raw.clamp(1e-7, 1 - 1e-7).logit()
    size = 2 * (2 * raw[..., 2:4]).clamp(min=1e-9).log()  # exp gives (2 v)^2
    return torch.cat((codes[..., :2], size, codes[..., 4:]), dim=-1)
