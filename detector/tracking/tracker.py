"""OC-SORT (Cao et al., 2023) and ByteTrack (Zhang et al., 2022), as the library `trackers` has them.

Only this room imports the library. Both are driven by the time of each frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from detector.errors import InputError
from detector.extras import require
from detector.structures import Detections

KINDS = ("ocsort", "bytetrack")
WEAK_SCORE = 0.1
"""ByteTrack goes down to this score: weak boxes keep an identity, though they never begin one."""
MEMORY_SECONDS = 1.0
FRAMES_PER_SECOND = 30.0
"""The library's unit of motion and of memory; it does not limit the frame rate."""
MIN_FRAMES = 2
MIN_IOU = {"ocsort": 0.2, "bytetrack": 0.1}


class Tracker:
    """Gives detections their identities, from one frame to the next.

    Time is in seconds, so that dropped frames and uneven rates change nothing but the distance that an object moved.
    Its cost does not grow with the number of frames.

    Args:
        kind: ocsort, which changes identities least; or bytetrack, which follows weak detections too.
        score_threshold: a box that scores this much begins an identity.
        memory_seconds: so long an identity waits for its object to be seen again.

    Raises:
        InputError: another kind, or the library is not installed.
    """

    def __init__(self, kind: str = "ocsort", *, score_threshold: float, memory_seconds: float = MEMORY_SECONDS) -> None:
        require("trackers", "--track")
        from trackers import ByteTrackTracker, OCSORTTracker

        if kind not in KINDS:
            raise InputError(f"--track: expected {' or '.join(KINDS)}, got {kind}")
        settings: dict[str, Any] = {
            "lost_track_buffer": round(memory_seconds * FRAMES_PER_SECOND),
            "frame_rate": FRAMES_PER_SECOND,
            "high_conf_det_threshold": score_threshold,
            "minimum_consecutive_frames": MIN_FRAMES,
            "minimum_iou_threshold": MIN_IOU[kind],
        }
        self._tracker: ByteTrackTracker | OCSORTTracker
        if kind == "ocsort":
            self._tracker = OCSORTTracker(**settings)
        else:
            self._tracker = ByteTrackTracker(**settings, track_activation_threshold=score_threshold)
        self._last_seconds = -np.inf

    def update(self, detections: Detections, seconds: float) -> Detections:
        """The detections of a frame that belong to an identity, with `track_ids`.

        Args:
            detections: of the frame, down to `lowest_score`.
            seconds: the frame's own time; it must rise.

        Raises:
            InputError: the time did not rise.
        """
        if not seconds > self._last_seconds:
            raise InputError(f"tracking: expected a frame after {self._last_seconds:g} s, got one of {seconds:g} s")
        self._last_seconds = seconds
        import supervision

        rows = np.arange(len(detections))
        given = supervision.Detections(
            xyxy=detections.boxes_xyxy, confidence=detections.scores, class_id=detections.labels, data={"row": rows}
        )
        found = self._tracker.update(given, timestamp=seconds)
        track_ids = np.zeros(len(detections), np.int64)  # the library's -1 = no identity, its first is 0
        if found.tracker_id is not None and len(found):
            track_ids[found.data["row"]] = found.tracker_id + 1
        return replace(detections, track_ids=track_ids).take(track_ids > 0)


def lowest_score(kind: str, score_threshold: float) -> float:
    """Down to which score the detector must report."""
    return min(WEAK_SCORE, score_threshold) if kind == "bytetrack" else score_threshold
