"""Raw maps -> detections: decode, threshold, non-maximum suppression, top-k. One path for every program here.

Everything is done in NumPy: from a threshold of 0.01 on only some dozens of places are left after the first comparison,
and for so few a tensor library costs more than it computes.

Legend: B images, A anchors of a scale, C classes, h, w rows and columns, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from detector.structures import Detections, Floats, Ints

MAX_CANDIDATES = 10_000
MAX_SIDE = 1 << 16
"""More rows and columns than any map has."""
DARKNET_MIN_SCORE = 0.005
FEW_CANDIDATES = 1000
"""Up to so many, one suppression of all classes is quicker than one for each class."""
FEW_TOGETHER = 128
"""The same for the suppression that looks at distances, which compares each box with each."""
LARGEST_EXPONENT = 88.0
"""exp of more overflows in float32."""
LARGEST_GROWTH = 20.0
"""exp of it times an anchor is farther than any picture reaches, and small enough to compute with."""


@dataclass(frozen=True)
class Decoder:
    """What it takes to read a network's raw maps.

    Attributes:
        anchors_wh: for each of the S scales (A, 2) float32, input pixels.
        strides: of the S scales.
        scale_xy: one per scale.
        new_coords: the maps hold activated values, sizes are (2 v)^2 * anchor (Scaled-YOLOv4's cfgs).
        nms_beta: suppress by IoU - (d / c)^beta instead of IoU, d and c the squared distance of the centres and the
            squared diagonal of the hull (Darknet's greedynms and diounms); None = by IoU.
    """

    anchors_wh: tuple[Floats, ...]
    strides: tuple[int, ...]
    scale_xy: tuple[float, ...]
    new_coords: bool = False
    nms_beta: float | None = None


@dataclass(frozen=True)
class Candidates:
    """Class-wise boxes of all images that scored above the threshold.

    Attributes:
        image: (K,) index of the image.
        boxes_xyxy: (K, 4) network-input pixels.
        scores: (K,) objectness times class probability.
        labels: (K,).
        places: (K,) a key for each place (image, scale, anchor, cell) that gave the box.
        anchors: (K,) counted over the scales.
    """

    image: Ints
    boxes_xyxy: Floats
    scores: Floats
    labels: Ints
    places: Ints
    anchors: Ints


def postprocess(
    raw_maps: Sequence[Floats],
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
        raw_maps: (B, A * (5 + C), h, w) float32 for each scale.
        decoder: anchors and strides of the network.
        score_threshold: candidates at or below are dropped.
        nms_threshold: IoU.
        max_detections: per image.
        darknet_ranks: fill `Detections.darknet_ranks`, for Darknet's metric.

    Returns:
        B `Detections`.
    """
    found = find_candidates(raw_maps, decoder, score_threshold)
    batch = len(raw_maps[0])
    results = []
    for index in range(batch):
        mine = np.flatnonzero(found.image == index) if batch > 1 else np.arange(len(found.image))
        mine = mine[np.argsort(-found.scores[mine], kind="stable")[:MAX_CANDIDATES]]
        boxes, scores, labels = found.boxes_xyxy[mine], found.scores[mine], found.labels[mine]
        rows = _suppress(boxes, scores, labels, nms_threshold, decoder.nms_beta)[:max_detections]
        ranks = None
        if darknet_ranks:
            by_place = _darknet_ranks(found.places[mine], scores, labels)
            ranks = np.array([by_place.get(int(key), len(by_place)) for key in found.places[mine[rows]]], np.int64)
        results.append(Detections(boxes[rows], scores[rows], labels[rows], ranks, found.anchors[mine[rows]]))
    return results


def find_candidates(raw_maps: Sequence[Floats], decoder: Decoder, score_threshold: float) -> Candidates:
    """What scores above the threshold, before any suppression.

    Objectness first: a score can never exceed it, so most places are dropped before anything else is computed. What is
    left of all scales is decoded together; `scale` tells where each place comes from.
    """
    # A hair below the threshold: the exact comparison follows, on scores.
    lowest = score_threshold - 1e-6 if decoder.new_coords else _logit(score_threshold) - 1e-3
    parts = [
        _promising(raw_map, len(anchors_wh), lowest)
        for raw_map, anchors_wh in zip(raw_maps, decoder.anchors_wh, strict=True)
    ]
    codes = np.concatenate([codes for codes, _ in parts])  # (K', 5 + C)
    where = np.concatenate([where for _, where in parts], axis=1)  # image, anchor, row, column: (4, K')
    scale = np.repeat(np.arange(len(parts)), [len(part) for part, _ in parts])
    activate = sigmoid if not decoder.new_coords else np.positive
    scores = activate(codes[:, 5:]) * activate(codes[:, 4:5])  # (K', C)
    place, label = np.nonzero(scores > score_threshold)  # (K,)
    (image, anchor, row, column), scale, codes = where[:, place], scale[place], codes[place, :4]

    counts = np.array([len(anchors) for anchors in decoder.anchors_wh])
    number = anchor + (np.cumsum(counts) - counts)[scale]  # of the anchor, counted over the scales
    corner = np.stack((column, row), axis=1).astype(np.float32)
    scale_xy = np.array(decoder.scale_xy, np.float32)[scale, None]
    stride = np.array(decoder.strides, np.float32)[scale, None]
    centre = (activate(codes[:, :2]) * scale_xy - (scale_xy - 1) / 2 + corner) * stride
    if decoder.new_coords:
        growth = np.square(2 * codes[:, 2:])
    else:
        growth = np.exp(np.minimum(codes[:, 2:], np.float32(LARGEST_GROWTH)))
    half = growth * np.concatenate(decoder.anchors_wh)[number] / 2
    return Candidates(
        image=image,
        boxes_xyxy=np.concatenate((centre - half, centre + half), axis=1),
        scores=scores[place, label],
        labels=label,
        places=((image * counts.sum() + number) * MAX_SIDE + row) * MAX_SIDE + column,
        anchors=number,
    )


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), element by element, without overflow."""
    growth = np.exp(np.minimum(-values, np.float32(LARGEST_EXPONENT)))
    return np.float32(1) / (growth + np.float32(1))


def _promising(raw_map: Floats, num_anchors: int, lowest: float) -> tuple[Floats, Ints]:
    """The places of one scale whose objectness is above `lowest`, K' of them, whatever the map's order in memory.

    Returns:
        codes (K', 5 + C); image, anchor, row, column (4, K').
    """
    batch, channels, height, width = raw_map.shape
    raw = raw_map.reshape(batch, num_anchors, channels // num_anchors, height, width)  # a view
    image, anchor, row, column = where = np.nonzero(raw[:, :, 4] > lowest)
    return raw[image, anchor, :, row, column], np.array(where)


def _logit(probability: float) -> float:
    """log(p / (1 - p)), -inf at 0, inf at 1."""
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return -math.inf if probability <= 0 else math.inf


def _suppress(boxes: Floats, scores: Floats, labels: Ints, threshold: float, beta: float | None) -> Ints:
    """Row numbers (K',) of the boxes that stay, best first; each class by itself. The rows come best first."""
    if beta is not None:
        return _suppress_by_distance(boxes, labels, threshold, beta)
    if len(labels) <= FEW_CANDIDATES:
        # All classes in one call, each in a region of its own; float64 keeps the shifted boxes exact enough.
        shift = labels * (2.0 * np.abs(boxes).max(initial=0) + 1)
        apart = torch.from_numpy(boxes + shift[:, None])
        return np.sort(nms(apart, torch.from_numpy(scores.astype(np.float64)), threshold).numpy())
    stays = [np.zeros(0, np.int64)]
    for label in set(labels.tolist()):
        mine = np.flatnonzero(labels == label)
        stays.append(mine[nms(torch.from_numpy(boxes[mine]), torch.from_numpy(scores[mine]), threshold).numpy()])
    return np.sort(np.concatenate(stays))


def _suppress_by_distance(boxes: Floats, labels: Ints, threshold: float, beta: float) -> Ints:
    """The same by IoU minus (d / c)^beta."""
    alive = np.ones(len(labels), bool)
    together = len(labels) <= FEW_TOGETHER
    groups = [np.arange(len(labels))] if together else [np.flatnonzero(labels == one) for one in set(labels.tolist())]
    for mine in groups:
        same_class = labels[mine, None] == labels[mine]
        overlaps = same_class & (_distance_iou(boxes[mine], beta) > threshold)  # (k, k)
        alive_here = np.ones(len(mine), bool)
        for row in np.flatnonzero(overlaps.sum(axis=1) > 1):  # each overlaps with itself
            if alive_here[row]:
                alive_here[row + 1 :] &= ~overlaps[row, row + 1 :]
        alive[mine] = alive_here
    return np.flatnonzero(alive)


def _distance_iou(boxes_xyxy: Floats, beta: float) -> Floats:
    """IoU minus (d / c)^beta (k, k) for every pair of boxes (k, 4) (Darknet `box_diounms`).

    d is the squared distance of the centres, c the squared diagonal of the smallest box around both.
    """
    x1, y1, x2, y2 = boxes_xyxy.T
    tiny = np.finfo(boxes_xyxy.dtype).tiny
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    area = (x2 - x1) * (y2 - y1)
    union = np.add.outer(area, area) - common
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    distance = np.square(np.subtract.outer(x, x)) + np.square(np.subtract.outer(y, y))
    hull_width = np.maximum.outer(x2, x2) - np.minimum.outer(x1, x1)
    hull_height = np.maximum.outer(y2, y2) - np.minimum.outer(y1, y1)
    diagonal = np.square(hull_width) + np.square(hull_height)
    return np.asarray(common / np.maximum(union, tiny) - (distance / np.maximum(diagonal, tiny)) ** beta)


def _darknet_ranks(places: Ints, scores: Floats, labels: Ints) -> dict[int, int]:
    """The order in which Darknet's program lists boxes after its suppression: place -> rank.

    It sorts whole boxes by the score of one class after the other (`do_nms_sort`), before that class is suppressed, so
    the last class on which two boxes differ decides. Scores up to 0.005 do not exist there.
    """
    counted = scores > DARKNET_MIN_SCORE
    keys, owner = np.unique(places[counted], return_inverse=True)
    table = np.zeros((len(keys), int(labels.max()) + 1 if len(labels) else 1), np.float32)
    table[owner, labels[counted]] = scores[counted]
    return {int(keys[row]): rank for rank, row in enumerate(np.lexsort(-table.T))}
