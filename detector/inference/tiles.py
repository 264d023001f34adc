"""Large images in tiles: finds objects that a network of a fixed size would miss after shrinking.

An object on a seam is seen whole in one tile, or cut in several. Overlapping finds of one object are merged: a whole
view wins over a cut one, and pieces that face each other across a seam are joined.

Legend: n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.postprocess import best_class_only
from detector.structures import Detections, Floats, Image

BORDER_SHARE = 0.01
"""A box this close to the border of its tile, as a share of the tile's side, may continue beyond it."""
COVERED = 0.6
"""A cut box with more than this share inside a better box is part of the same object."""
ALIGNED = 0.6
"""Two pieces belong together from this IoU of their extents along the seam."""
BATCH_SIZE = 8

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the image."""


@dataclass
class _Find:
    """One box in the image's pixels, the tiles it comes from, and the sides (x1, y1, x2, y2) where it may be cut."""

    box: Floats
    score: float
    label: int
    tiles: frozenset[int]
    cut: tuple[bool, bool, bool, bool]


def tile_windows(height: int, width: int, *, tile: int, overlap: float) -> list[Window]:
    """Windows of `tile` x `tile` pixels that cover an image, evenly spaced, all of the same size.

    Args:
        height: height of the image.
        width: width of the image.
        tile: side in pixels.
        overlap: smallest share of the side that neighbours have in common, 0 <= overlap < 0.9.

    Raises:
        InputError: the side or the overlap is out of range.
    """
    if tile < 32:
        raise InputError(f"--tile {tile}: expected at least 32 pixels")
    if not 0 <= overlap < 0.9:
        raise InputError(f"--overlap {overlap}: expected at least 0 and below 0.9")

    def starts(length: int) -> list[int]:
        if length <= tile:
            return [0]
        step = tile * (1 - overlap)
        count = int(np.ceil((length - tile) / step)) + 1
        return [round(position) for position in np.linspace(0, length - tile, count)]

    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in starts(height) for x in starts(width)]


def predict_tiled(
    predictor: Predictor, image_rgb: Image, *, tile: int, overlap: float = 0.2, threads: Executor | None = None
) -> Detections:
    """Detections in a large image: those of its tiles and of the whole image, merged.

    Args:
        predictor: runs on each tile, and on the whole image for objects larger than a tile.
        image_rgb: (H, W, 3) uint8.
        tile: side of a tile in pixels.
        overlap: share of the side that neighbours have in common; objects up to that size are seen whole.
        threads: predict the tiles in parallel instead of in batches.

    Returns:
        boxes in pixels of the image, best first; the predictor's `max_detections` applies to each tile.

    Raises:
        InputError: the side or the overlap is out of range, or `image_rgb` is not an image.
    """
    height, width = image_rgb.shape[:2]
    windows = tile_windows(height, width, tile=tile, overlap=overlap)
    if len(windows) > 1:
        windows.append((0, 0, width, height))
    parts = [image_rgb[y1:y2, x1:x2] for x1, y1, x2, y2 in windows]
    if threads is not None:
        found = list(threads.map(predictor.predict, parts))
    else:
        found = []
        for first in range(0, len(parts), BATCH_SIZE):
            found += predictor.predict_batch(parts[first : first + BATCH_SIZE])
    thresholds = predictor.thresholds
    merged = merge_tiles(found, windows, (height, width), nms_threshold=thresholds.nms_threshold)
    return merged if thresholds.multi_label else best_class_only(merged, thresholds.nms_threshold)


def merge_tiles(
    found: Sequence[Detections], windows: Sequence[Window], image_hw: tuple[int, int], *, nms_threshold: float
) -> Detections:
    """Detections of overlapping windows -> those of the image, each object once.

    Args:
        found: detections of each window, in its own pixels.
        windows: their positions in the image.
        image_hw: height and width of the image.
        nms_threshold: of two finds of one class with a larger IoU, one is kept.
    """
    finds = [
        find
        for tile, (detections, window) in enumerate(zip(found, windows, strict=True))
        for find in _to_image(detections, tile, window, image_hw)
    ]
    kept: list[_Find] = []
    for label in sorted({find.label for find in finds}):
        of_class = _join_pieces([find for find in finds if find.label == label])
        kept += _suppress_duplicates(of_class, nms_threshold)
    kept.sort(key=lambda find: -find.score)
    return Detections(
        np.array([find.box for find in kept], np.float32).reshape(-1, 4),
        np.array([find.score for find in kept], np.float32),
        np.array([find.label for find in kept], np.int64),
    )


def _to_image(detections: Detections, tile: int, window: Window, image_hw: tuple[int, int]) -> list[_Find]:
    x1, y1, x2, y2 = window
    inner = (x1 > 0, y1 > 0, x2 < image_hw[1], y2 < image_hw[0])  # sides of the tile that are seams
    boxes = detections.boxes_xyxy + np.array([x1, y1, x1, y1], np.float32)
    reach = BORDER_SHARE * max(x2 - x1, y2 - y1)
    near = np.abs(boxes - np.array(window, np.float32)) <= reach  # (n, 4)
    cut = near & np.array(inner)
    return [
        _Find(box, float(score), int(label), frozenset({tile}), (bool(c[0]), bool(c[1]), bool(c[2]), bool(c[3])))
        for box, score, label, c in zip(boxes, detections.scores, detections.labels, cut, strict=True)
    ]


def _join_pieces(finds: list[_Find]) -> list[_Find]:
    """Joins cut finds that face each other across a seam, until no more can be joined."""
    uncut = [find for find in finds if not any(find.cut)]
    waiting = [find for find in reversed(finds) if any(find.cut)]
    alone: list[_Find] = []  # no two of these can be joined
    while waiting:
        piece = waiting.pop()
        for index, other in enumerate(alone):
            union = _join(other, piece)
            if union is not None:
                del alone[index]
                waiting.append(union)
                break
        else:
            alone.append(piece)
    return uncut + alone


def _join(first: _Find, second: _Find) -> _Find | None:
    """Two pieces as one object, or None if they do not belong together."""
    if first.tiles & second.tiles:
        return None
    for axis in (0, 1):
        before, after = sorted((first, second), key=lambda find: float(find.box[axis]))
        facing = before.cut[axis + 2] and after.cut[axis]
        touching = after.box[axis] <= before.box[axis + 2]
        if facing and touching and _interval_iou(first.box, second.box, 1 - axis) >= ALIGNED:
            box = np.concatenate((np.minimum(first.box[:2], second.box[:2]), np.maximum(first.box[2:], second.box[2:])))
            sides = [first.cut[side] or second.cut[side] for side in range(4)]
            sides[axis], sides[axis + 2] = before.cut[axis], after.cut[axis + 2]
            cut = (sides[0], sides[1], sides[2], sides[3])
            return _Find(box, max(first.score, second.score), first.label, first.tiles | second.tiles, cut)
    return None


def _interval_iou(first: Floats, second: Floats, axis: int) -> float:
    common = min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis])
    extent = max(first[axis + 2], second[axis + 2]) - min(first[axis], second[axis])
    return float(max(common, 0) / max(extent, 1e-6))


def _suppress_duplicates(finds: list[_Find], nms_threshold: float) -> list[_Find]:
    """Suppression that prefers whole views, and drops cut ones that lie mostly inside a better one."""
    kept: list[_Find] = []
    boxes = np.empty((len(finds), 4))
    for find in sorted(finds, key=lambda find: (any(find.cut), -find.score)):
        if not _is_duplicate(find, boxes[: len(kept)], nms_threshold):
            boxes[len(kept)] = find.box
            kept.append(find)
    return kept


def _is_duplicate(find: _Find, better: np.ndarray, nms_threshold: float) -> bool:
    """Whether a find shows the same object as one of the `better` boxes (k, 4)."""
    box = find.box.astype(np.float64)
    sides = np.minimum(box[2:], better[:, 2:]) - np.maximum(box[:2], better[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    area, others = np.prod(box[2:] - box[:2]), (better[:, 2:] - better[:, :2]).prod(axis=1)
    repeated = common > nms_threshold * (area + others - common)
    if any(find.cut):
        repeated |= common > COVERED * area
    return bool(repeated.any())
