"""Raw maps -> detections: decode, threshold, non-maximum suppression, top-k. One path for every program here.

Everything is done in NumPy and OpenCV: at a threshold of 0.01 or more, only a few hundred places remain after the
first comparison. For this few, a tensor library has more overhead than work. The number of calls matters most: right
after a network, whose weights have just filled the caches, each call takes several times as long as in a loop.

Legend: B images, S scales, A anchors of a scale, N anchors of all scales, C classes, h, w rows and columns,
K candidates, K' those that remain after a step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detector.errors import InputError
from detector.structures import Detections, Floats, Ints

_LOG = logging.getLogger(__name__)
MAX_CANDIDATES = 10_000
DARKNET_MIN_SCORE = 0.005
SMALLEST_SIDE = 1e-6
"""Pixels; OpenCV treats all boxes without area as the same box, wherever they are."""
SAME_OBJECT_IOU = 0.65
"""Boxes of different classes that overlap by more are one object, seen as several classes; a rider and a horse overlap
by less."""
FARTHEST = np.float32(1e6)
"""Pixels; suppression clips boxes to this distance."""
FEW_CANDIDATES = 400
"""Up to this many, one suppression of all classes is faster than one for each class."""
FEW_TOGETHER = 128
"""The same for suppression by distance, which compares every pair of boxes."""
LARGEST_EXPONENT = 88.0
"""exp of a larger value overflows in float32."""
LARGEST_GROWTH = 20.0
"""exp of it times an anchor is larger than any image, and small enough to compute with."""


@dataclass(frozen=True)
class Thresholds:
    """Which boxes are detections; the defaults are those of every program here.

    Attributes:
        score_threshold: candidates that score this or less are dropped.
        nms_threshold: of two boxes of one class with a larger IoU only the better one is kept.
        max_detections: at most this many per image, the best; in a graph that ends in boxes, per class of an image.
        multi_label: an object may have boxes of several classes, as evaluation on COCO counts them. Else each object
            has one box, of its best class (`best_class_only`); a graph that ends in boxes leaves this to its reader.

    Raises:
        InputError: a threshold outside 0 to 1, or max_detections below 1.
    """

    score_threshold: float = 0.25
    nms_threshold: float = 0.45
    max_detections: int = 100
    multi_label: bool = True

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.max_detections < 1:
            raise InputError(f"max_detections: expected at least 1, got {self.max_detections}")


@dataclass(frozen=True)
class Decoder:
    """What is needed to decode a network's raw maps.

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

    @cached_property
    def anchor_table(self) -> Floats:
        """For each anchor, counted over the scales: width, height, stride, scale_xy; (N, 4) float32."""
        rows = zip(self.anchors_wh, self.strides, self.scale_xy, strict=True)
        return np.array([(*wh, stride, scale) for anchors, stride, scale in rows for wh in anchors], np.float32)


@dataclass(frozen=True)
class Places:
    """The part of the raw maps of some images that can hold a box: the places whose objectness is high enough.

    Attributes:
        codes: (K', 5 + C) float32, the maps' values.
        where: (4, K') image, anchor (counted over the scales), row and column.
        batch: B.
    """

    codes: Floats
    where: Ints
    batch: int


@dataclass(frozen=True)
class Candidates:
    """Class-wise boxes, of one image or several, that scored above the threshold.

    Attributes:
        boxes_xyxy: (K, 4) network-input pixels.
        scores: (K,) objectness times class probability.
        labels: (K,).
        where: (4, K) image, anchor (counted over the scales), row and column that gave the box.
    """

    boxes_xyxy: Floats
    scores: Floats
    labels: Ints
    where: Ints

    def take(self, rows: Ints) -> Candidates:
        """These rows, in this order."""
        return Candidates(self.boxes_xyxy[rows], self.scores[rows], self.labels[rows], self.where[:, rows])


def postprocess(
    outputs: Sequence[Floats] | Places,
    decoder: Decoder,
    thresholds: Thresholds,
    *,
    darknet_ranks: bool = False,
) -> list[Detections]:
    """Detections of each image, best first, in network-input pixels.

    The score of a class is objectness times class probability; a place may yield several classes, as in Darknet. Of
    two boxes of one class that overlap by more than the threshold the better one is kept. If an image has more
    than 10,000 candidates above the threshold, only the best 10,000 are used.

    Args:
        outputs: raw maps (B, A * (5 + C), h, w) float32 for each scale, or their places above `objectness_limit`.
        decoder: anchors and strides of the network.
        thresholds: which boxes are detections.
        darknet_ranks: fill `Detections.darknet_ranks`, for Darknet's metric.

    Returns:
        B `Detections`.
    """
    places = outputs if isinstance(outputs, Places) else find_places(outputs, decoder, thresholds.score_threshold)
    found = find_candidates(places, decoder, thresholds.score_threshold)
    results = []
    for index in range(places.batch):
        mine = found if places.batch == 1 else found.take(np.flatnonzero(found.where[0] == index))
        if len(mine.scores) > MAX_CANDIDATES:
            mine = mine.take(_best_first(mine.scores)[:MAX_CANDIDATES])
        rows = _suppress(mine, thresholds.nms_threshold, decoder.nms_beta)
        if not thresholds.multi_label:
            rows = rows[_best_classes(mine.boxes_xyxy[rows], mine.scores[rows], thresholds.nms_threshold)]
        rows = rows[: thresholds.max_detections]
        finite = np.isfinite(mine.boxes_xyxy[rows]).all(axis=1)
        if not finite.all():
            _LOG.warning("%d boxes are not numbers and were dropped; the network is damaged", (~finite).sum())
            rows = rows[finite]
        ranks = _darknet_ranks(mine)[rows] if darknet_ranks else None
        results.append(
            Detections(mine.boxes_xyxy[rows], mine.scores[rows], mine.labels[rows], ranks, mine.where[1, rows])
        )
    return results


def objectness_limit(decoder: Decoder, score_threshold: float) -> float:
    """The value in a raw map that the objectness of every box above the threshold exceeds.

    Slightly below the threshold: the exact comparison, on scores, is that of `find_candidates`.
    """
    return score_threshold - 1e-6 if decoder.new_coords else _logit(score_threshold) - 1e-3


def find_places(raw_maps: Sequence[Floats], decoder: Decoder, score_threshold: float) -> Places:
    """The places of all scales that can score above the threshold.

    A score can never exceed the objectness, so most places are dropped before anything else is computed.
    """
    lowest = objectness_limit(decoder, score_threshold)
    parts, first_anchor = [], 0
    for raw_map, anchors_wh in zip(raw_maps, decoder.anchors_wh, strict=True):
        parts.append(_promising(raw_map, len(anchors_wh), first_anchor, lowest))
        first_anchor += len(anchors_wh)
    codes = np.concatenate([codes for codes, _ in parts])
    where = np.concatenate([where for _, where in parts], axis=1)
    return Places(codes, where, len(raw_maps[0]))


def find_candidates(places: Places, decoder: Decoder, score_threshold: float) -> Candidates:
    """The boxes that score above the threshold, before any suppression; all scales are decoded together."""
    codes, where = places.codes, places.where
    active = codes if decoder.new_coords else sigmoid(codes)
    scores = active[:, 5:] * active[:, 4:5]  # (K', C)
    place, labels = np.nonzero(scores > score_threshold)  # (K,)

    where, sizes = where[:, place], codes[place, 2:4]  # (4, K), (K, 2)
    of_anchor = decoder.anchor_table[where[1]]
    stride, scale_xy = of_anchor[:, 2:3], of_anchor[:, 3:]
    cell = where[[3, 2]].T.astype(np.float32)  # column, row: (K, 2)
    centre = (active[place, :2] * scale_xy - (scale_xy - 1) / 2 + cell) * stride
    growth = np.square(2 * sizes) if decoder.new_coords else np.exp(np.minimum(sizes, np.float32(LARGEST_GROWTH)))
    half = growth * of_anchor[:, :2] / 2
    return Candidates(np.concatenate((centre - half, centre + half), axis=1), scores[place, labels], labels, where)


def best_class_only(found: Detections, nms_threshold: float) -> Detections:
    """Of boxes of different classes with an IoU above 0.65 (or `nms_threshold`), only the one with the best score.

    `nms_threshold` is what each class was suppressed with, so that boxes of one class drop each other no further.
    """
    return found.take(_best_classes(found.boxes_xyxy, found.scores, nms_threshold))


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), element by element, without overflow."""
    growth = np.exp(np.minimum(-values, np.float32(LARGEST_EXPONENT)))
    return np.float32(1) / (growth + np.float32(1))


def _promising(raw_map: Floats, num_anchors: int, first_anchor: int, lowest: float) -> tuple[Floats, Ints]:
    """The places of one scale whose objectness is above `lowest`, K' of them, whatever the map's order in memory.

    Returns:
        codes (K', 5 + C); image, anchor (counted from `first_anchor`), row, column (4, K').
    """
    batch, channels, height, width = raw_map.shape
    raw = raw_map.reshape(batch, num_anchors, channels // num_anchors, height, width)  # a view
    image, anchor, row, column = np.nonzero(raw[:, :, 4] > lowest)
    return raw[image, anchor, :, row, column], np.array((image, anchor + first_anchor, row, column))


def _logit(probability: float) -> float:
    """log(p / (1 - p)), -inf at 0, inf at 1."""
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return -math.inf if probability <= 0 else math.inf


def _best_first(scores: Floats) -> Ints:
    """Row numbers; of equal scores the earlier row comes first."""
    return np.argsort(-scores, kind="stable")


def _suppress(found: Candidates, threshold: float, beta: float | None) -> Ints:
    """Row numbers (K',) of the boxes of one image that are kept, best first; each class separately."""
    boxes, scores, labels = found.boxes_xyxy, found.scores, found.labels
    if beta is not None:
        order = _best_first(scores)
        return order[_suppress_by_distance(boxes[order], labels[order], threshold, beta)]
    if len(labels) <= FEW_CANDIDATES:
        return _suppress_by_iou(boxes, scores, labels, threshold)
    stays = [np.zeros(0, np.int64)]
    for label in set(labels.tolist()):
        mine = np.flatnonzero(labels == label)
        stays.append(mine[_suppress_by_iou(boxes[mine], scores[mine], labels[mine], threshold)])
    rows = np.sort(np.concatenate(stays))
    return rows[_best_first(scores[rows])]


def _suppress_by_iou(boxes_xyxy: Floats, scores: Floats, labels: Ints, threshold: float) -> Ints:
    """Row numbers (K',) of the boxes that are kept, best first; a kept box drops worse ones that overlap it.

    All classes go into one call, each in its own region; float64 keeps the shifted boxes exact enough. A box with NaN
    must not drop others: it becomes a box without size at the end of the region.
    """
    from cv2.dnn import NMSBoxes  # here: models are built and converted without OpenCV

    boxes_xywh = np.fmax(np.fmin(boxes_xyxy, FARTHEST), -FARTHEST).astype(np.float64)
    sides = boxes_xywh[:, 2:]
    sides -= boxes_xywh[:, :2]
    np.maximum(sides, SMALLEST_SIDE, out=sides)
    boxes_xywh[:, 0] += labels * (3.0 * FARTHEST)
    # The type stub asks for lists; arrays work too and save a copy.
    return np.array(NMSBoxes(boxes_xywh, scores, 0.0, threshold), np.int64)  # type: ignore[arg-type]


def _best_classes(boxes_xyxy: Floats, scores: Floats, nms_threshold: float) -> Ints:
    """Row numbers (K',), best first, that `best_class_only` keeps of one image's boxes."""
    no_labels = np.zeros(len(scores), np.int64)
    return _suppress_by_iou(boxes_xyxy, scores, no_labels, max(SAME_OBJECT_IOU, nms_threshold))


def _suppress_by_distance(boxes: Floats, labels: Ints, threshold: float, beta: float) -> Ints:
    """Row numbers (K',) of the boxes that are kept by IoU minus (d / c)^beta; the input is sorted best first."""
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


def _darknet_ranks(found: Candidates) -> Ints:
    """(K,) the position of each one's place in the list of Darknet's program, after its suppression.

    It sorts whole boxes by the score of one class after the other (`do_nms_sort`), before that class is suppressed, so
    the last class in which two boxes differ decides. Scores up to 0.005 count as zero there.
    """
    keys = np.ravel_multi_index(tuple(found.where), tuple(found.where.max(axis=1, initial=0) + 1))
    places, place = np.unique(keys, return_inverse=True)
    counted = found.scores > DARKNET_MIN_SCORE
    scores = np.zeros((len(places), found.labels.max(initial=0) + 1), np.float32)
    scores[place[counted], found.labels[counted]] = found.scores[counted]
    ranks = np.empty(len(places), np.int64)
    ranks[np.lexsort(-scores.T)] = np.arange(len(places))
    return ranks.clip(max=scores.any(axis=1).sum())[place]
