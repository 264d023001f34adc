"""Containers check themselves."""

import numpy as np
import pytest
import torch

from detector.data.batch import Batch
from detector.structures import Detections, Sample

IMAGE = np.zeros((4, 6, 3), np.uint8)
NO_BOXES = np.zeros((0, 4), np.float32)


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
    with pytest.raises(ValueError, match=r"Batch.image_ids: expected 1, got 0"):
        Batch(images, torch.zeros(1, 0, 4), torch.zeros(1, 0), [])
    with pytest.raises(ValueError, match="expected uint8"):
        Batch(images.float(), torch.zeros(1, 0, 4), torch.zeros(1, 0), ["a"])
    with pytest.raises(ValueError, match=r"Batch.labels: expected int64 \(1, M\), got torch.float32 \(1, 2\)"):
        Batch(images, torch.zeros(1, 2, 4), torch.zeros(1, 2), ["a"])
    with pytest.raises(ValueError, match=r"boxes_xyxy: expected float32 \(1, 2, 4\), got torch.float32 \(1, 5, 3\)"):
        Batch(images, torch.zeros(1, 5, 3), torch.zeros(1, 2, dtype=torch.int64), ["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": np.zeros((1, 4), np.float32)}, r"boxes_xyxy: expected float32 \(2, 4\)"),
        ({"labels": np.zeros(2, np.float32)}, "labels: expected int64"),
        ({"scores": np.zeros(2)}, "scores: expected float32"),
        ({"scores": np.array([0.1, 0.9], np.float32)}, "expected the best first"),
        ({"anchors": np.zeros(3, np.int64)}, r"anchors: expected \(2,\), got \(3,\)"),
    ],
)
def test_detections_refuse_what_does_not_fit(changes: dict[str, np.ndarray], message: str) -> None:
    whole = {
        "boxes_xyxy": np.zeros((2, 4), np.float32),
        "scores": np.array([0.9, 0.1], np.float32),
        "labels": np.zeros(2, np.int64),
    }
    assert len(Detections(**whole)) == 2
    assert len(Detections()) == 0
    with pytest.raises(ValueError, match=message):
        Detections(**{**whole, **changes})
