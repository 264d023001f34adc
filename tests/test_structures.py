"""Containers check themselves; fitting can be undone."""

import numpy as np
import pytest
import torch

from detector.structures import Batch, Detections, ImageFit, Sample

IMAGE = np.zeros((4, 6, 3), np.uint8)
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


def test_sample_refuses_what_does_not_fit() -> None:
    labels, crowd = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    Sample(IMAGE, NO_BOXES, labels, crowd, "a")
    with pytest.raises(ValueError, match=r"Sample.image: expected uint8 .* float64"):
        Sample(IMAGE / 1, NO_BOXES, labels, crowd, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"boxes_xyxy: expected float32 \(0, 4\)"):
        Sample(IMAGE, np.zeros((1, 4), np.float32), labels, crowd, "a")
    with pytest.raises(ValueError, match="labels: expected int64"):
        Sample(IMAGE, NO_BOXES, labels.astype(np.int32), crowd, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="crowd"):
        Sample(IMAGE, NO_BOXES, labels, np.zeros(2, np.bool_), "a")


def test_batch_and_detections_refuse_what_does_not_fit() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 images, but 0 box lists"):
        Batch(images, [], [], [])
    with pytest.raises(ValueError, match="expected uint8"):
        Batch(images.float(), [torch.zeros(0, 4)], [torch.zeros(0)], ["a"])
    with pytest.raises(ValueError, match="boxes_xyxy"):
        Detections(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64))
    assert len(Detections()) == 0
