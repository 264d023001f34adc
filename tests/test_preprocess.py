"""Images are fitted to the network, and boxes come back to where they were."""

from __future__ import annotations

import numpy as np

from detector.preprocess import ImageFit

NO_BOXES = np.zeros((0, 4), np.float32)


def test_letterbox_there_by_hand_and_back() -> None:
    record = ImageFit((100, 200), (0.5, 0.25), (10.0, 20.0))
    boxes = np.array([[20, 40, 60, 80]], np.float32)
    network = record.to_network(boxes)
    assert network.tolist() == [[20, 30, 40, 40]]
    assert record.to_original(network).tolist() == boxes.tolist()
    assert boxes.tolist() == [[20, 40, 60, 80]]


def test_original_boxes_are_clipped_to_the_image() -> None:
    record = ImageFit((100, 200), (1.0, 1.0), (0.0, 0.0))
    assert record.to_original(np.array([[-5, -5, 300, 300]], np.float32)).tolist() == [[0, 0, 200, 100]]
    assert record.to_original(NO_BOXES).shape == (0, 4)
