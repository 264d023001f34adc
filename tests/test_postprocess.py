"""From raw maps to detections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from detector.postprocess import (
    FEW_CANDIDATES,
    FEW_TOGETHER,
    Candidates,
    Decoder,
    Thresholds,
    _suppress,
    best_class_only,
    postprocess,
)
from detector.structures import Detections

DECODER = Decoder((np.array([[16.0, 16.0]], np.float32),), (8,), (1.0,))


def empty_map(batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 7, 4, 4), -12.0)  # one anchor, two classes


def put(raw: torch.Tensor, image: int, row: int, column: int, objectness: float, classes: list[float]) -> None:
    raw[image, :4, row, column] = 0
    raw[image, 4:, row, column] = torch.logit(torch.tensor([objectness, *classes]))


def run(raw: torch.Tensor, **options: float) -> list:  # type: ignore[type-arg]
    return postprocess([raw.numpy()], DECODER, Thresholds(**options))  # type: ignore[arg-type]


def test_decodes_one_box_by_hand() -> None:
    raw = empty_map(2)
    put(raw, 1, 2, 1, 0.8, [0.9, 0.1])
    first, second = run(raw)
    assert len(first) == 0
    assert second.boxes_xyxy.tolist() == [[4, 12, 20, 28]]  # centre (12, 20)
    assert second.scores.tolist() == pytest.approx([0.72])
    assert second.labels.tolist() == [0]


def test_each_scale_and_anchor_has_its_own_size() -> None:
    decoder = Decoder((np.array([[8, 8], [16, 8]], np.float32), np.array([[32, 64]], np.float32)), (8, 16), (1.0, 1.5))
    fine, coarse = torch.full((1, 12, 4, 4), -12.0), torch.full((1, 6, 2, 2), -12.0)
    for raw, anchor, row, column in ((fine, 1, 1, 3), (coarse, 0, 0, 1)):
        raw[0, 6 * anchor : 6 * anchor + 4, row, column] = 0
        raw[0, 6 * anchor + 4 : 6 * anchor + 6, row, column] = 9.0 + anchor
    (found,) = postprocess([fine.numpy(), coarse.numpy()], decoder, Thresholds())
    assert found.boxes_xyxy.tolist() == [[20, 8, 36, 16], [8, -24, 40, 40]]  # centres (28, 12), (24, 8)
    assert found.anchors is not None
    assert found.anchors.tolist() == [1, 2]


def test_a_place_may_have_two_classes_and_best_comes_first() -> None:
    raw = empty_map()
    put(raw, 0, 1, 1, 0.9, [0.5, 0.8])
    (found,) = run(raw)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.72, 0.45])


def test_nms_is_per_class_and_keeps_the_better() -> None:
    raw = empty_map()
    put(raw, 0, 1, 1, 0.9, [0.9, 0.01])
    put(raw, 0, 1, 2, 0.8, [0.9, 0.01])  # 8 px to the right: IoU 1/3
    put(raw, 0, 2, 1, 0.7, [0.01, 0.9])  # another class
    (kept,) = run(raw, nms_threshold=0.3)
    assert kept.labels.tolist() == [0, 1]
    (all_three,) = run(raw, nms_threshold=0.35)
    assert len(all_three) == 3


def test_threshold_and_top_k() -> None:
    raw = empty_map()
    for column in range(4):
        put(raw, 0, 0, column, 0.5 + 0.1 * column, [0.9, 0.01])
    (found,) = run(raw, nms_threshold=1.0, max_detections=2)
    assert found.scores.tolist() == pytest.approx([0.72, 0.63])
    (strict,) = run(raw, nms_threshold=1.0, score_threshold=0.7)
    assert len(strict) == 1


def test_nothing_found_is_an_empty_result() -> None:
    (found,) = run(empty_map())
    assert found.boxes_xyxy.shape == (0, 4)
    assert len(found) == 0


def test_extreme_values_do_not_fail(caplog: pytest.LogCaptureFixture) -> None:
    raw = torch.full((1, 7, 4, 4), -1e30)
    raw[0, 4:, 1, 1] = 1e30  # certain of both classes, size zero
    first, second = run(raw, nms_threshold=0.9)[0].scores.tolist()
    assert first == second == 1
    raw[0, :4, 2, 2] = torch.tensor([0.0, 0.0, 1e30, 1e30])  # and one larger than any image
    raw[0, 4:, 2, 2] = 1e30
    put(raw, 0, 3, 3, 0.9, [0.9, 0.9])
    found = run(raw)[0]
    assert np.isfinite(found.boxes_xyxy).all()
    assert len(found) == 6, "suppression still separates the others"
    raw[0, 0, 0, 0] = float("nan")  # a box at x = NaN
    raw[0, 4:, 0, 0] = 1e30
    with caplog.at_level("WARNING"):
        found = run(raw)[0]
    assert len(found) == 6, "a NaN box does not remove the others"
    assert np.isfinite(found.boxes_xyxy).all()
    assert "2 boxes are not numbers and were dropped" in caplog.text


def test_the_threshold_is_exact_and_a_score_at_it_is_dropped() -> None:
    raw = empty_map()
    raw[0, :4, 1, 1] = 0
    raw[0, 4:, 1, 1] = torch.tensor([0.0, 100.0, -100.0])  # objectness one half, sure of its class
    assert [len(run(raw, score_threshold=threshold)[0]) for threshold in (0.4999, 0.5, 0.5001)] == [1, 0, 0]
    assert len(run(raw, score_threshold=0.0)[0]) == 2 * 16, "every class of every place scores above 0"
    assert len(run(raw, score_threshold=1.0)[0]) == 0


def test_suppression_by_distance_spares_boxes_whose_centres_are_apart() -> None:
    raw = empty_map()
    put(raw, 0, 1, 1, 0.9, [0.9, 0.01])
    put(raw, 0, 1, 2, 0.8, [0.9, 0.01])  # 8 px to the right: IoU 1/3, d / c = 64 / 832, to the power of 0.6 0.215
    by_distance = replace(DECODER, nms_beta=0.6)
    (spared,) = postprocess([raw.numpy()], by_distance, Thresholds(nms_threshold=0.12))
    assert len(spared) == 2
    (kept,) = postprocess([raw.numpy()], by_distance, Thresholds(nms_threshold=0.11))
    assert kept.scores.tolist() == pytest.approx([0.81])


@pytest.mark.parametrize("count", [0, 1, 50, FEW_CANDIDATES, FEW_CANDIDATES + 1, 4000])
def test_suppression_equals_torchvision(count: int) -> None:
    found = random_candidates(count)
    assert count < 50 or found.boxes_xyxy.min() < -60, "the classes' regions must be apart on both sides"
    boxes, scores = torch.from_numpy(found.boxes_xyxy), torch.from_numpy(found.scores)
    kept: list[int] = []
    for label in range(4):
        rows = np.flatnonzero(found.labels == label)
        kept += rows[nms(boxes[rows], scores[rows], 0.45).numpy()].tolist()
    assert _suppress(found, 0.45, None).tolist() == sorted(kept, key=lambda row: -found.scores[row])


@pytest.mark.parametrize("count", [2, FEW_TOGETHER, FEW_TOGETHER + 1, 400])
def test_suppression_by_distance_is_greedy_and_per_class(count: int) -> None:
    found = random_candidates(count)
    kept: list[int] = []
    for row in np.argsort(-found.scores).tolist():
        rivals = [other for other in kept if found.labels[other] == found.labels[row]]
        if all(distance_iou(found.boxes_xyxy[row], found.boxes_xyxy[other]) <= 0.3 for other in rivals):
            kept.append(row)
    assert _suppress(found, 0.3, 0.6).tolist() == kept
    assert count < 10 or len(kept) < count


def test_the_best_candidates_are_kept_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = empty_map()
    for column in range(4):
        put(raw, 0, 0, column, 0.5 + 0.1 * column, [0.9, 0.01])
    monkeypatch.setattr("detector.postprocess.MAX_CANDIDATES", 2)
    assert run(raw)[0].scores.tolist() == pytest.approx([0.72, 0.63])


def test_the_first_of_equals_comes_first() -> None:
    for count in (50, FEW_CANDIDATES + 1):
        row = np.arange(count)
        corner = np.stack((20.0 * row, np.zeros(count)), axis=1)
        boxes = np.concatenate((corner, corner + 10), axis=1).astype(np.float32)
        found = Candidates(boxes, np.full(count, 0.5, np.float32), row % 3, np.zeros((4, count), np.int64))
        assert _suppress(found, 0.45, None).tolist() == row.tolist()


def test_darknet_lists_places_by_their_last_class() -> None:
    raw = empty_map(2)
    put(raw, 0, 1, 1, 0.9, [0.9, 0.9])
    put(raw, 1, 0, 0, 0.9, [0.9, 0.5])
    put(raw, 1, 3, 3, 0.9, [0.8, 0.6])  # worse in the first class, better in the second: listed first
    put(raw, 1, 0, 3, 0.9, [0.004, 0.001])  # scores too low to exist in Darknet: all of these come last, tied
    put(raw, 1, 3, 0, 0.9, [0.003, 0.001])
    one, two = postprocess([raw.numpy()], DECODER, Thresholds(0.002, 0.45, 9), darknet_ranks=True)
    assert one.darknet_ranks is not None
    assert two.darknet_ranks is not None
    assert one.darknet_ranks.tolist() == [0, 0]
    assert two.labels.tolist() == [0, 0, 1, 1, 0, 0]
    assert two.darknet_ranks.tolist() == [1, 0, 0, 1, 2, 2]


def random_candidates(count: int) -> Candidates:
    """Boxes of four classes around 30 places, in no order, some outside the image."""
    rng = np.random.default_rng(count)
    corner = rng.uniform(-130, 70, (30, 2))[rng.integers(0, 30, count)] + rng.normal(0, 5, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(5, 60, (count, 2))), axis=1).astype(np.float32)
    where = np.zeros((4, count), np.int64)
    return Candidates(boxes, rng.random(count).astype(np.float32), rng.integers(0, 4, count), where)


def distance_iou(first: np.ndarray, second: np.ndarray) -> float:
    width = max(min(first[2], second[2]) - max(first[0], second[0]), 0)
    height = max(min(first[3], second[3]) - max(first[1], second[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    hull = max(first[2], second[2]) - min(first[0], second[0]), max(first[3], second[3]) - min(first[1], second[1])
    apart = (first[0] + first[2] - second[0] - second[2]) / 2, (first[1] + first[3] - second[1] - second[3]) / 2
    share = (apart[0] ** 2 + apart[1] ** 2) / (hull[0] ** 2 + hull[1] ** 2)
    return float(width * height / (sum(areas) - width * height) - share**0.6)


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int64))


def test_an_object_has_one_box_of_its_best_class() -> None:
    found = detections(
        ([0, 0, 10, 10], 0.9, 2),
        ([0, 0, 10, 10], 0.8, 0),  # the same place
        ([0, 0, 10, 8], 0.7, 1),  # IoU 0.8
        ([0, 4, 10, 14], 0.6, 0),  # IoU 0.43, another object
        ([50, 50, 60, 60], 0.5, 1),
    )
    kept = best_class_only(found, 0.45)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert kept.labels.tolist() == [2, 0, 1]


def test_one_box_for_an_object_leaves_each_class_as_it_was_suppressed() -> None:
    found = detections(
        ([0, 0, 10, 10], 0.9, 2), ([0, 0, 10, 8], 0.8, 2), ([0, 0, 10, 10], 0.7, 1), ([0, 0, 10, 10], 0.6, 0)
    )
    assert best_class_only(found, nms_threshold=0.9).scores.tolist() == pytest.approx([0.9, 0.8])


def test_the_limit_counts_objects() -> None:
    raw = empty_map()
    put(raw, 0, 0, 0, 0.9, [0.9, 0.8])
    put(raw, 0, 3, 3, 0.5, [0.9, 0.8])
    (found,) = run(raw, max_detections=2, multi_label=False)
    assert found.scores.tolist() == pytest.approx([0.81, 0.45])
    assert found.labels.tolist() == [0, 0]
