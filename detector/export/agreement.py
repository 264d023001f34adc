"""How far an export agrees with its network, on images: raw maps, boxes, AP50.

Legend: B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detector.overlaps import pairwise_iou
from detector.postprocess import Decoder, Thresholds, postprocess
from detector.runtime.protocol import Pixels, Runtime, relative_difference
from detector.structures import Detections, Floats

SUPPRESSION = Thresholds(max_detections=300)
SAME_SCORE = 1e-5
"""Scores this close count as equal: which of two such boxes passes a limit is rounding, not disagreement."""


@dataclass(frozen=True)
class Tolerances:
    """How far an export may be from the network in float32.

    Attributes:
        maps: largest difference of the raw maps, relative to the largest value of the map.
        score: largest difference of a box's score.
        iou: boxes of one class with at least this IoU are counterparts.
        unmatched: share of the boxes of both sides that may lack a counterpart: of two boxes with nearly the same
            score, suppression may keep either.
        ap50: largest change of AP50 (for int8: largest drop).
    """

    maps: float
    score: float
    iou: float
    unmatched: float
    ap50: float


TOLERANCES = {
    # float32 sums in another order
    "fp32": Tolerances(maps=1e-4, score=1e-3, iou=0.999, unmatched=0.0, ap50=0.001),
    # 11 bits of mantissa in weights and features, over about fifty layers
    "fp16": Tolerances(maps=2e-2, score=0.05, iou=0.9, unmatched=0.02, ap50=0.002),
    # 8 bits: single boxes may differ, AP50 decides
    "int8": Tolerances(maps=0.5, score=0.5, iou=0.5, unmatched=0.25, ap50=0.01),
}


@dataclass(frozen=True)
class Agreement:
    """What the gate measured.

    Attributes:
        images: number of images compared.
        boxes: number of boxes that the network found in them.
        maps: largest relative difference of the raw maps.
        score: largest difference of the scores of matched boxes.
        iou: smallest overlap of matched boxes (1 without any); never below the tolerance.
        unmatched: share of the boxes of both sides without a counterpart.
        on_limit: boxes of the network that the export lacks but that only just pass a limit; not in `unmatched`.
        ap50, ap50_reference: AP50 of the export and of the network; None = not measured.
    """

    images: int
    boxes: int
    maps: float
    score: float
    iou: float
    unmatched: float
    on_limit: int = 0
    ap50: float | None = None
    ap50_reference: float | None = None

    def worst_of(self, other: Agreement) -> Agreement:
        """The worse of both measurements; counts are added."""
        return replace(
            self,
            images=self.images + other.images,
            boxes=self.boxes + other.boxes,
            maps=max(self.maps, other.maps),
            score=max(self.score, other.score),
            iou=min(self.iou, other.iou),
            unmatched=max(self.unmatched, other.unmatched),
            on_limit=self.on_limit + other.on_limit,
        )

    def complaints(self, allowed: Tolerances, *, only_losses: bool = False) -> list[str]:
        """What is out of tolerance, in words; empty = the export agrees.

        Args:
            allowed: the declared tolerances.
            only_losses: a better AP50 is not a complaint.
        """
        found = []
        if not self.maps <= allowed.maps:
            found.append(f"raw maps differ by {self.maps:.2g} of their largest value (at most {allowed.maps:g})")
        if not self.unmatched <= allowed.unmatched:
            found.append(f"{self.unmatched:.1%} of the boxes have no counterpart (at most {allowed.unmatched:.1%})")
        if not self.score <= allowed.score:
            found.append(f"scores differ by {self.score:.2g} (at most {allowed.score:g})")
        if self.ap50 is not None and self.ap50_reference is not None:
            change = self.ap50_reference - self.ap50
            if not (change if only_losses else abs(change)) <= allowed.ap50:
                found.append(
                    f"AP50 is {self.ap50:.4f} instead of {self.ap50_reference:.4f} "
                    f"(a change of at most {allowed.ap50:g} is allowed)"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for the record."""
        return asdict(self)


def compare(reference: Runtime, candidate: Runtime, images: Pixels, decoder: Decoder, allowed: Tolerances) -> Agreement:
    """Runs both on the same images and compares raw maps and boxes.

    Args:
        reference: the network in float32.
        candidate: the export.
        images: (B, H, W, 3) uint8 RGB of the network's size.
        decoder: for the raw maps of both.
        allowed: the declared tolerances.
    """
    expected, given = reference.run(images), candidate.run(images)
    maps = max(relative_difference(first, second) for first, second in zip(expected, given, strict=True))
    if not np.isfinite(maps):
        return _disagreement(len(images))
    found = postprocess(expected, decoder, widen_thresholds(SUPPRESSION))
    exported = postprocess(given, decoder, SUPPRESSION)
    return replace(compare_detections(list(zip(found, exported, strict=True)), SUPPRESSION, allowed), maps=maps)


def widen_thresholds(suppression: Thresholds) -> Thresholds:
    """Limits that also let through boxes that tie with the last box within the given limits."""
    return replace(
        suppression,
        score_threshold=max(suppression.score_threshold - SAME_SCORE, 0.0),
        max_detections=2 * suppression.max_detections,
    )


def compare_detections(
    pairs: Sequence[tuple[Detections, Detections]], suppression: Thresholds, allowed: Tolerances
) -> Agreement:
    """Compares only boxes, for graphs that end in boxes.

    Every box of the export must have a counterpart among the network's. Every box of the network must have one in the
    export, unless its score only just passes the export's limits.

    Args:
        pairs: for each image, what the network found with widened limits, and the export with the limits.
        suppression: the limits.
        allowed: the declared tolerances.
    """
    if not all(np.isfinite(given.boxes_xyxy).all() and np.isfinite(given.scores).all() for _, given in pairs):
        return _disagreement(len(pairs))
    differences = [_compare_image(found, given, suppression, allowed.iou) for found, given in pairs]
    alone, total = sum(each.alone for each in differences), sum(each.total for each in differences)
    return Agreement(
        images=len(pairs),
        boxes=sum(each.boxes for each in differences),
        maps=0.0,
        score=max((score for each in differences for score in each.scores), default=0.0),
        iou=min((iou for each in differences for iou in each.overlaps), default=1.0),
        unmatched=alone / max(total, 1),
        on_limit=sum(each.on_limit for each in differences),
    )


@dataclass(frozen=True)
class _Difference:
    """The comparison of one image; see `Agreement`. `total`: boxes of both sides; `alone`: without a counterpart."""

    boxes: int
    total: int
    alone: int
    on_limit: int
    scores: list[float]
    overlaps: list[float]


def _compare_image(found: Detections, given: Detections, suppression: Thresholds, least: float) -> _Difference:
    overlap = pairwise_iou(found.boxes_xyxy, given.boxes_xyxy)
    overlap = np.where(found.labels[:, None] == given.labels, overlap, 0.0)
    rows, columns = _match(overlap, least)
    passes = found.scores > suppression.score_threshold  # the network's boxes within the limits
    passes[suppression.max_detections :] = False
    without = passes.copy()
    without[rows] = False
    is_full = len(given) == suppression.max_detections
    limit = float(given.scores.min()) if is_full else suppression.score_threshold
    on_limit = int((found.scores[without] <= limit + SAME_SCORE).sum())
    return _Difference(
        boxes=int(passes.sum()),
        total=int(passes.sum()) + len(given),
        alone=int(without.sum()) - on_limit + len(given) - len(columns),
        on_limit=on_limit,
        scores=np.abs(found.scores[rows] - given.scores[columns]).tolist(),
        overlaps=overlap[rows, columns].tolist(),
    )


def _disagreement(images: int) -> Agreement:
    """The result for an export whose numbers are not all finite."""
    return Agreement(images, 0, float("inf"), float("inf"), 0.0, 1.0)


def _match(overlap: Floats, least: float) -> tuple[list[int], list[int]]:
    """Pairs rows and columns greedily, the largest overlap first, none below `least`."""
    rows: list[int] = []
    columns: list[int] = []
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        row, column = divmod(int(flat), overlap.shape[1])
        if overlap[row, column] < least:
            break
        if row not in rows and column not in columns:
            rows.append(row)
            columns.append(column)
    return rows, columns
