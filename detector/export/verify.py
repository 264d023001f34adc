"""The gate: an export is kept only if it gives what the network gives, on pictures.

Legend: B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from detector.boxes import pairwise_iou
from detector.postprocess import Decoder, postprocess
from detector.runtime import Pixels, Runtime, relative_difference
from detector.runtime.record import Suppression
from detector.structures import Detections, Floats

SUPPRESSION = Suppression(score_threshold=0.25, nms_threshold=0.45, max_detections=300)
SAME_SCORE = 1e-5
"""Scores so near to each other are the same: which of two such boxes passes a limit is rounding, not disagreement."""


@dataclass(frozen=True)
class Tolerances:
    """How far an export may be from the network in float32.

    Attributes:
        maps: largest difference of the raw maps, relative to the largest value of the map.
        score: of a box's score.
        iou: boxes of one class that overlap at least so much are counterparts.
        unmatched: share of the boxes, of both sides, that may be without a counterpart: where two boxes score nearly
            the same, suppression may keep the one or the other.
        ap50: by so much AP50 may change (for int8: fall).
    """

    maps: float
    score: float
    iou: float
    unmatched: float
    ap50: float


TOLERANCES = {
    # float32 sums in another order
    "fp32": Tolerances(maps=1e-4, score=1e-3, iou=0.999, unmatched=0.0, ap50=0.001),
    # 11 bits of mantissa in weights and features, over some fifty layers
    "fp16": Tolerances(maps=2e-2, score=0.05, iou=0.9, unmatched=0.02, ap50=0.002),
    # 8 bits: single boxes may go either way, AP50 decides
    "int8": Tolerances(maps=0.5, score=0.5, iou=0.5, unmatched=0.25, ap50=0.01),
}


@dataclass(frozen=True)
class Agreement:
    """What the gate measured.

    Attributes:
        pictures: how many were looked at.
        boxes: how many the network found in them.
        maps: largest relative difference of the raw maps.
        score: largest difference of the scores of matched boxes.
        iou: smallest overlap of matched boxes (1 without any); never below the tolerance.
        unmatched: share of the boxes without a counterpart, but for those on the very limit (`SAME_SCORE`).
        ap50: of the export and `ap50_reference` of the network, where they were measured.
    """

    pictures: int
    boxes: int
    maps: float
    score: float
    iou: float
    unmatched: float
    ap50: float | None = None
    ap50_reference: float | None = None

    def complaints(self, allowed: Tolerances, *, only_losses: bool = False) -> list[str]:
        """What is out of tolerance, in words; empty = the export agrees.

        Args:
            allowed: the declared tolerances.
            only_losses: a better AP50 is no complaint.
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
                found.append(f"AP50 is {self.ap50:.4f} instead of {self.ap50_reference:.4f} (at most {allowed.ap50:g})")
        return found

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def compare(
    reference: Runtime, candidate: Runtime, pictures: Pixels, decoder: Decoder, allowed: Tolerances
) -> Agreement:
    """Runs both on the same pictures and compares raw maps and boxes.

    Args:
        reference: the network in float32.
        candidate: the export.
        pictures: (B, H, W, 3) uint8 RGB of the network's size.
        decoder: of both.
        allowed: the declared tolerances.
    """
    expected, given = reference.run(pictures), candidate.run(pictures)
    maps = max(relative_difference(first, second) for first, second in zip(expected, given, strict=True))
    if not np.isfinite(maps):
        return Agreement(len(pictures), 0, float("inf"), float("inf"), 0.0, 1.0)
    pairs = zip(_boxes(expected, decoder), _boxes(given, decoder), strict=True)
    return compare_detections(list(pairs), SUPPRESSION, allowed, maps)


def compare_detections(
    pairs: Sequence[tuple[Detections, Detections]], suppression: Suppression, allowed: Tolerances, maps: float = 0.0
) -> Agreement:
    """Compares only boxes: for graphs that end in them.

    Args:
        pairs: of (network, export), one for each picture.
        suppression: the limits that both were given.
        allowed: the declared tolerances.
        maps: the difference of the raw maps, for the result.
    """
    scores, overlaps, alone, total = [0.0], [1.0], 0, 0
    for expected, given in pairs:
        overlap = pairwise_iou(torch.from_numpy(expected.boxes_xyxy), torch.from_numpy(given.boxes_xyxy)).numpy()
        overlap = np.where(expected.labels[:, None] == given.labels, overlap, 0.0)
        total += len(expected) + len(given)
        matched_rows, matched_columns = _match(overlap, allowed.iou)
        alone += _count_alone(expected, matched_rows, _lowest(given, suppression))
        alone += _count_alone(given, matched_columns, _lowest(expected, suppression))
        overlaps += overlap[matched_rows, matched_columns].tolist()
        scores += np.abs(expected.scores[matched_rows] - given.scores[matched_columns]).tolist()
    count = sum(len(expected) for expected, _ in pairs)
    return Agreement(len(pairs), count, maps, max(scores), min(overlaps), alone / max(total, 1))


def _boxes(raw_maps: Sequence[Floats], decoder: Decoder) -> list[Detections]:
    return postprocess(raw_maps, decoder, **vars(SUPPRESSION))


def _lowest(found: Detections, suppression: Suppression) -> float:
    """The score that a box needed to be among them."""
    is_full = len(found) == suppression.max_detections
    return float(found.scores.min()) if is_full else suppression.score_threshold


def _count_alone(found: Detections, matched: list[int], limit: float) -> int:
    """Boxes without a counterpart that were not on the other side's limit."""
    return int((np.delete(found.scores, matched) > limit + SAME_SCORE).sum())


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
