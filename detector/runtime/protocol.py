"""Runs a network with any of the libraries: one small protocol, one file for each library.

A library is imported when it is used, so a missing or broken one does not affect the others.

Legend: B images, H, W the network's input, A anchors of a scale, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detector.structures import Floats

BACKENDS = ("torch", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16", "opencv")

Pixels = NDArray[np.uint8]


class Runtime(Protocol):
    """A network that runs.

    Attributes:
        name: one of BACKENDS.
    """

    name: str

    def run(self, images: Pixels) -> list[Floats]:
        """One forward pass; may be called from several threads at once.

        Args:
            images: (B, H, W, 3) uint8 RGB, contiguous.

        Returns:
            The network's outputs: raw maps (B, A * (5 + C), h, w) float32, fine to coarse. A file that ends in boxes
            returns boxes (n, 4), scores (n,), labels (n,) and indices of the images (n,).
        """
        ...


def to_planes(images: Pixels) -> Floats:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], contiguous: the input of every exported file."""
    planes: Floats = np.divide(images.transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32, order="C")
    return planes


def run_in_batches(run: Callable[[Pixels], list[Floats]], images: Pixels, size: int | None) -> list[Floats]:
    """Runs a network of a fixed batch size on any number of images; the last batch is filled up with black ones.

    Args:
        run: like `Runtime.run`, for exactly `size` images.
        images: (B, H, W, 3).
        size: the fixed batch size; None = any number is fine.
    """
    if size is None or size == len(images):
        return run(images)
    parts = []
    for first in range(0, len(images), size):
        part = images[first : first + size]
        count = len(part)
        if count < size:
            part = np.concatenate((part, np.zeros((size - count, *part.shape[1:]), np.uint8)))
        outputs = run(part)
        if ends_in_boxes(outputs):
            boxes, scores, labels, image = outputs
            real = image < count
            parts.append([boxes[real], scores[real], labels[real], image[real] + first])
        else:
            parts.append([output[:count] for output in outputs])
    return [np.concatenate(maps) for maps in zip(*parts, strict=True)]


def ends_in_boxes(outputs: Sequence[Floats]) -> bool:
    """Whether outputs are boxes, scores, labels and indices of the images, and not raw maps."""
    return outputs[0].ndim == 2


def relative_difference(expected: Floats, given: Floats) -> float:
    """Largest difference, relative to the largest value (at least 1); inf if shapes differ or a value is not finite."""
    if expected.shape != given.shape or not np.isfinite(given).all():
        return float("inf")
    return float(np.abs(expected - given).max() / max(float(np.abs(expected).max()), 1.0))
