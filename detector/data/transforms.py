"""Geometric and pixel operations on samples: pure functions, plus the albumentations pipeline for the common ones.

Random choices come from the caller's generator, so that they are a function of (seed, step, slot).

Legend: H, W network size; H0, W0 size of the image that was read; n objects.
"""

from __future__ import annotations

import warnings

import albumentations as A
import cv2
import numpy as np

from detector.config import AugmentConfig
from detector.preprocess import fit_image, resize
from detector.structures import Floats, Image, Sample

MIN_VISIBLE_SHARE = 0.1
"""After a crop an object is kept if at least this share of its area is visible (Darknet keeps every sliver)."""
MIN_VISIBLE_SIDE = 2.0
"""... and both its sides have at least this many pixels."""


def fit_sample(sample: Sample, size_hw: tuple[int, int], *, letterbox: bool) -> Sample:
    """`fit_image` for an image with its objects; those that become too small are left out."""
    image, record = fit_image(sample.image, size_hw, letterbox=letterbox)
    boxes = record.to_network(sample.boxes_xyxy)
    return clip_objects(Sample(image, boxes, sample.labels, sample.crowd, sample.image_id))


def random_crop(
    sample: Sample, size_hw: tuple[int, int], *, jitter: float, letterbox: bool, rng: np.random.Generator
) -> Sample:
    """Darknet's jitter: each border moves by U(-jitter, jitter) of the side; the result is resized to the network.

    Pixels outside the image get its mean colour. The aspect is kept only with `letterbox`.
    """
    height, width = sample.image.shape[:2]
    left, right = rng.uniform(-jitter, jitter, 2) * width
    top, bottom = rng.uniform(-jitter, jitter, 2) * height
    window = np.array([left, top, width - right, height - bottom])  # xyxy in original pixels
    if letterbox:
        window = _widen(window, size_hw)
    return crop_resize(sample, window, size_hw)


def crop_resize(sample: Sample, window_xyxy: np.ndarray, size_hw: tuple[int, int]) -> Sample:
    """The part of a sample inside a window (original pixels, may extend past the image), resized to `size_hw`.

    Objects are clipped to the window; those that are barely visible are left out.
    """
    height, width = sample.image.shape[:2]
    x1, y1, x2, y2 = (round(float(value)) for value in window_xyxy)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    scale = np.array([size_hw[1] / (x2 - x1), size_hw[0] / (y2 - y1)])
    inside = np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)])
    if (inside[2:] <= inside[:2]).any():
        canvas = np.full((*size_hw, 3), _mean_colour(sample.image), np.uint8)
    elif (inside == (x1, y1, x2, y2)).all():
        canvas = np.empty((*size_hw, 3), np.uint8)
        resize(sample.image[y1:y2, x1:x2], canvas)
    else:
        place = np.rint((inside.reshape(2, 2) - (x1, y1)) * scale).astype(int)
        left, top = np.minimum(place[0], (size_hw[1] - 1, size_hw[0] - 1)).tolist()
        right, bottom = np.clip(place[1], (left + 1, top + 1), size_hw[::-1]).tolist()
        part = np.empty((bottom - top, right - left, 3), np.uint8)
        resize(sample.image[inside[1] : inside[3], inside[0] : inside[2]], part)
        borders = (top, size_hw[0] - bottom, left, size_hw[1] - right)
        grown = cv2.copyMakeBorder(part, *borders, cv2.BORDER_CONSTANT, value=_mean_colour(sample.image))
        canvas = np.asarray(grown, np.uint8)
    boxes = ((sample.boxes_xyxy.reshape(-1, 2, 2) - (x1, y1)) * scale).reshape(-1, 4)
    return clip_objects(Sample(canvas, boxes.astype(np.float32), sample.labels, sample.crowd, sample.image_id))


def clip_objects(sample: Sample) -> Sample:
    """Clips boxes to the image and leaves out objects that are barely visible."""
    height, width = sample.image.shape[:2]
    boxes = np.clip(sample.boxes_xyxy, 0, np.array([width, height, width, height], np.float32))
    sides, area = boxes[:, 2:] - boxes[:, :2], _area(sample.boxes_xyxy)
    kept = (sides.min(axis=1, initial=np.inf) >= MIN_VISIBLE_SIDE) & (_area(boxes) >= MIN_VISIBLE_SHARE * area)
    return Sample(sample.image, boxes[kept], sample.labels[kept], sample.crowd[kept], sample.image_id)


def adjust_hsv(image: Image, *, hue: float, saturation: float, exposure: float) -> Image:
    """Shifts the hue by a share of the colour circle, multiplies saturation and brightness; as Darknet does, on uint8.

    One look-up table for each channel, so the cost does not depend on what is changed.
    """
    values = np.arange(256, dtype=np.float64)
    table = np.stack(
        (
            (np.arange(256) + round(hue * 180)) % 180,
            np.clip(values * saturation, 0, 255),
            np.clip(values * exposure, 0, 255),
        ),
        axis=-1,
    ).astype(np.uint8)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def random_hsv(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """`adjust_hsv` with draws from the config's ranges."""
    if config.hue == 0 and config.saturation == 1 and config.exposure == 1:
        return image
    return adjust_hsv(
        image,
        hue=rng.uniform(-config.hue, config.hue),
        saturation=rand_scale(config.saturation, rng),
        exposure=rand_scale(config.exposure, rng),
    )


def rand_scale(largest: float, rng: np.random.Generator) -> float:
    """Darknet's `rand_scale`: U(1, largest), or its inverse, with equal probability; `largest` may be below 1."""
    scale = rng.uniform(min(1.0, largest), max(1.0, largest))
    return float(scale if rng.random() < 0.5 else 1 / scale)


class CommonAugmentations:
    """Flips, quarter turns, blur and noise by albumentations, reseeded for each sample."""

    def __init__(self, config: AugmentConfig) -> None:
        candidates = [
            A.HorizontalFlip(p=config.horizontal_flip),
            A.VerticalFlip(p=config.vertical_flip),
            A.RandomRotate90(p=config.rotate90),
            A.GaussianBlur(blur_limit=(3, 5), p=config.blur),
            A.GaussNoise(std_range=(0.01, 0.05), p=config.noise),
        ]
        active = [transform for transform in candidates if transform.p > 0]
        box_params = A.BboxParams(format="pascal_voc", label_fields=["rows"])
        self._pipeline = A.Compose(active, bbox_params=box_params) if active else None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A new sample; a quarter turn of an image that is not square swaps its sides."""
        if self._pipeline is None:
            return sample
        # Compose.set_random_seed would give all transforms the same seed, and so the same draw.
        for transform in self._pipeline.transforms:
            transform.set_random_seed(int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it divides by zero when there are no boxes
            result = self._pipeline(image=sample.image, bboxes=sample.boxes_xyxy, rows=np.arange(len(sample.labels)))
        rows = np.asarray(result["rows"], np.int64)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        image = np.ascontiguousarray(result["image"])
        return Sample(image, boxes, sample.labels[rows], sample.crowd[rows], sample.image_id)


def _mean_colour(image: Image) -> tuple[int, ...]:
    """The mean of every fourth pixel of every fourth row, which is faster and almost the same colour."""
    return tuple(round(value) for value in cv2.mean(np.ascontiguousarray(image[::4, ::4]))[:3])


def _widen(window: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Grows a window about its centre to the network's aspect."""
    sides = window[2:] - window[:2]
    target = size_hw[1] / size_hw[0]
    wanted = np.array([max(sides[0], sides[1] * target), max(sides[1], sides[0] / target)])
    centre = (window[:2] + window[2:]) / 2
    return np.concatenate((centre - wanted / 2, centre + wanted / 2))


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
