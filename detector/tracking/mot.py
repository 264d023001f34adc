"""Tracks in the format of the MOT Challenge, and how good they are: HOTA, DetA, AssA, MOTA, IDF1.

The measures are those of TrackEval (Luiten et al.), computed by the library `trackers`, which equals it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.extras import require
from detector.overlaps import Boxes, pairwise_iou
from detector.structures import Detections, Ints

MIN_COLUMNS = 6


@dataclass
class Tracks:
    """Boxes and identities of each frame. Attributes: frames: number -> identities (n,), boxes (n, 4) xyxy float64."""

    frames: dict[int, tuple[Ints, Boxes]] = field(default_factory=dict)


def mot_lines(frame: int, detections: Detections) -> str:
    """A frame's tracked detections as rows "frame,id,left,top,width,height,score,class,1", from frame and class 1 on.

    Args:
        frame: counted from 0.
        detections: with `track_ids`.
    """
    assert detections.track_ids is not None, "only tracked objects have a row"
    rows = zip(detections.track_ids, detections.boxes_xyxy, detections.scores, detections.labels, strict=True)
    return "".join(
        f"{frame + 1},{track},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},{label + 1},1\n"
        for track, (x1, y1, x2, y2), score, label in rows
    )


def read_mot(path: Path) -> Tracks:
    """Reads rows "frame,id,left,top,width,height[,conf,...]"; those with conf 0 are left out, as in the Challenge.

    Raises:
        InputError: the file cannot be read or is empty, a line has another form, or an identity is in a frame twice.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    rows: dict[int, dict[int, list[float]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        values = _numbers(line)
        if len(values) < MIN_COLUMNS or not np.isfinite(values).all() or min(values[4:6]) < 0:
            raise InputError(f"{path}, line {number}: expected frame,id,left,top,width,height,..., got {line[:60]!r}")
        if len(values) > MIN_COLUMNS and values[6] == 0:
            continue
        frame, track = int(values[0]), int(values[1])
        if track in rows.setdefault(frame, {}):
            raise InputError(f"{path}, line {number}: identity {track} is in frame {frame} twice")
        left, top, width, height = values[2:6]
        rows[frame][track] = [left, top, left + width, top + height]
    if not rows:
        raise InputError(f"{path}: has no row")
    return Tracks({frame: (np.array([*boxes]), np.array([*boxes.values()])) for frame, boxes in rows.items()})


def _numbers(line: str) -> list[float]:
    try:
        return [float(part) for part in line.split(",")]
    except ValueError:
        return []


def measure_tracks(truth: Tracks, found: Tracks) -> dict[str, float]:
    """HOTA, DetA, AssA, MOTA, IDF1 as fractions, and the number of identity switches (IDSW).

    Raises:
        InputError: the library is not installed.
    """
    require("trackers", "measuring tracks")
    from trackers.eval import compute_clear_metrics, compute_hota_metrics, compute_identity_metrics

    true_ids, found_ids = _numbered(truth), _numbered(found)
    nothing: tuple[Ints, Boxes] = (np.zeros(0, np.int64), np.zeros((0, 4)))
    given: tuple[list[Ints], list[Ints], list[Boxes]] = ([], [], [])
    for frame in range(1, max(*truth.frames, *found.frames) + 1):
        (ours, boxes), (theirs, found_boxes) = truth.frames.get(frame, nothing), found.frames.get(frame, nothing)
        given[0].append(np.array([true_ids[track] for track in ours.tolist()], np.int64))
        given[1].append(np.array([found_ids[track] for track in theirs.tolist()], np.int64))
        given[2].append(pairwise_iou(boxes, found_boxes))
    hota, clear, identity = (
        compute(*given) for compute in (compute_hota_metrics, compute_clear_metrics, compute_identity_metrics)
    )
    return {
        **{name: float(hota[name]) for name in ("HOTA", "DetA", "AssA")},
        **{name: float(clear[name]) for name in ("MOTA", "IDSW")},
        "IDF1": float(identity["IDF1"]),
    }


def _numbered(tracks: Tracks) -> dict[int, int]:
    """Identities -> 0, 1, 2, ..."""
    names = sorted({int(track) for identities, _ in tracks.frames.values() for track in identities})
    return {track: number for number, track in enumerate(names)}
