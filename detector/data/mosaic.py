"""Mosaic: four samples around one cut point (Bochkovskiy et al., 2020; Darknet `mosaic=1`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from detector.data.transforms import clip_objects
from detector.structures import Image, Sample

CUT_RANGE = (0.2, 0.8)


def mosaic(
    samples: Sequence[Sample], rng: np.random.Generator, recolour: Callable[[Image], Image] | None = None
) -> Sample:
    """Joins four samples of one size (H, W, 3) into one of that size.

    The image is cut at a point U(.2, .8) of each side; each quarter shows a randomly placed window of one sample at
    its own scale. Objects are clipped to their window. The id is the first sample's.

    Args:
        samples: four samples of one size.
        rng: chooses the cut point and the windows.
        recolour: applied to each window separately, so that hidden pixels are not computed.

    Raises:
        ValueError: there are not four samples, or their sizes differ.
    """
    shapes = {sample.image.shape for sample in samples}
    if len(samples) != 4 or len(shapes) != 1:
        raise ValueError(f"mosaic: expected 4 samples of one size, got {len(samples)} of {shapes}")
    height, width = samples[0].image.shape[:2]
    cut_x, cut_y = round(rng.uniform(*CUT_RANGE) * width), round(rng.uniform(*CUT_RANGE) * height)
    canvas = np.empty_like(samples[0].image)
    quarters = (
        (0, 0, cut_x, cut_y),
        (cut_x, 0, width, cut_y),
        (0, cut_y, cut_x, height),
        (cut_x, cut_y, width, height),
    )
    parts = [_place(canvas, sample, quarter, rng) for sample, quarter in zip(samples, quarters, strict=True)]
    if recolour is not None:
        for x1, y1, x2, y2 in quarters:
            canvas[y1:y2, x1:x2] = recolour(canvas[y1:y2, x1:x2])
    return Sample(
        canvas,
        np.concatenate([part.boxes_xyxy for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.crowd for part in parts]),
        samples[0].image_id,
    )


def _place(canvas: Image, sample: Sample, quarter: tuple[int, int, int, int], rng: np.random.Generator) -> Sample:
    """Copies a window of `sample` into a quarter of `canvas`; returns its objects in canvas pixels."""
    x1, y1, x2, y2 = quarter
    height, width = canvas.shape[:2]
    left, top = int(rng.integers(width - (x2 - x1) + 1)), int(rng.integers(height - (y2 - y1) + 1))
    window = sample.image[top : top + y2 - y1, left : left + x2 - x1]
    canvas[y1:y2, x1:x2] = window
    moved = sample.boxes_xyxy - np.array([left, top, left, top], np.float32)
    part = clip_objects(Sample(window, moved, sample.labels, sample.crowd, sample.image_id))
    boxes = part.boxes_xyxy + np.array([x1, y1, x1, y1], np.float32)
    return Sample(window, boxes, part.labels, part.crowd, part.image_id)
