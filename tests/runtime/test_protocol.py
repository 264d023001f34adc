"""What all runtimes share: batches of a fixed size, planes of floats."""

from __future__ import annotations

import numpy as np
import pytest

from detector.runtime.protocol import run_in_batches, to_planes
from detector.structures import Floats, Image


def test_a_fixed_batch_is_padded_and_cut_off() -> None:
    sizes = []

    def run(images: Image) -> list[Floats]:
        sizes.append(len(images))
        return [images.mean(axis=(1, 2, 3), dtype=np.float32)]

    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    (output,) = run_in_batches(run, images, 2)
    assert output.tolist() == [0, 1, 2, 3, 4]
    assert sizes == [2, 2, 2]
    assert run_in_batches(run, images, None)[0].tolist() == [0, 1, 2, 3, 4]


def test_boxes_of_a_fixed_batch_keep_their_images() -> None:
    def run(images: Image) -> list[Floats]:
        """Finds as many boxes in an image as the value of its first pixel."""
        counts = images[:, 0, 0, 0].astype(int)
        image = np.repeat(np.arange(len(images)), counts)
        rows = np.arange(len(image), dtype=np.float32)
        return [np.stack([rows] * 4, axis=1), rows, image, image]

    images = np.array([2, 0, 3], np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    for size in (1, 2, 3, 4):
        boxes, scores, labels, image = run_in_batches(run, images, size)
        assert image.tolist() == [0, 0, 2, 2, 2], size
        assert len(boxes) == len(scores) == len(labels) == 5


def test_planes_are_contiguous_and_scaled() -> None:
    planes = to_planes(np.array([[[[0, 51, 255]]]], np.uint8))
    assert planes[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert planes.flags["C_CONTIGUOUS"]
    assert planes.dtype == np.float32
