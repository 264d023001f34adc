"""Geometry and pixels checked by hand; arguments are not modified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.config import load_config
from detector.data.mosaic import mosaic
from detector.data.transforms import (
    CommonAugmentations,
    adjust_hsv,
    clip_objects,
    crop_resize,
    fit_sample,
    rand_scale,
    random_crop,
)
from detector.preprocess import fit_image
from detector.structures import Sample

AUGMENT = replace(
    load_config(Path(__file__).resolve().parents[2] / "configs/tiny.yaml").augment,
    horizontal_flip=0.0,
    vertical_flip=0.0,
    rotate90=0.0,
    blur=0.0,
    noise=0.0,
)


def sample(height: int = 40, width: int = 80, boxes: list[list[float]] | None = None) -> Sample:
    """A black image whose boxes are white."""
    boxes = [[20, 10, 40, 30]] if boxes is None else boxes
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in np.array(boxes, int).reshape(-1, 4):
        image[max(y1, 0) : y2, max(x1, 0) : x2] = 255
    count = len(boxes)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(count), np.zeros(count, np.bool_), "s")


def white_box(image: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_stretch_and_letterbox_by_hand() -> None:
    stretched = fit_sample(sample(), (64, 64), letterbox=False)
    assert stretched.boxes_xyxy.tolist() == [[16, 16, 32, 48]]
    assert white_box(stretched.image) == [16, 16, 32, 48]
    boxed = fit_sample(sample(), (64, 64), letterbox=True)  # scale .8, 16 px of grey above and below
    assert boxed.boxes_xyxy[0].tolist() == pytest.approx([16, 24, 32, 40], abs=1e-4)
    assert boxed.image[3, 3].tolist() == [128, 128, 128]
    assert boxed.image[20, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("size_hw", [(37, 53), (480, 640), (1, 1), (1000, 10)])
def test_fitting_can_be_undone(size_hw: tuple[int, int], letterbox: bool) -> None:
    height, width = size_hw
    image = np.zeros((*size_hw, 3), np.uint8)
    fitted, record = fit_image(image, (96, 64), letterbox=letterbox)
    assert fitted.shape == (96, 64, 3)
    whole = np.array([[0, 0, width, height]], np.float32)
    assert record.to_original(record.to_network(whole))[0].tolist() == pytest.approx(whole[0].tolist(), abs=1e-3)


def test_crop_inside_and_beyond_the_image() -> None:
    inside = crop_resize(sample(), np.array([10, 0, 50, 40]), (80, 80))
    assert inside.boxes_xyxy.tolist() == [[20, 20, 60, 60]]
    assert white_box(inside.image) == pytest.approx([20, 20, 60, 60], abs=1)
    beyond = crop_resize(sample(), np.array([-20, -10, 100, 50]), (60, 120))
    assert beyond.boxes_xyxy.tolist() == [[40, 20, 60, 40]]
    assert beyond.image[2, 2].tolist() == [32, 32, 32], "the mean colour: 1/8 of 255"
    nothing = crop_resize(sample(), np.array([200, 200, 240, 240]), (8, 8))
    assert nothing.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("letterbox", [False, True])
def test_boxes_follow_the_pixels_through_a_random_crop(seed: int, letterbox: bool) -> None:
    given = sample(200, 320, [[100, 80, 180, 140]])
    before = given.image.copy()
    result = random_crop(given, (96, 128), jitter=0.2, letterbox=letterbox, rng=np.random.default_rng(seed))
    assert result.image.shape == (96, 128, 3)
    assert result.boxes_xyxy[0].tolist() == pytest.approx(white_box(result.image), abs=1.5)
    assert np.array_equal(given.image, before)


def test_hardly_visible_objects_are_left_out() -> None:
    boxes = [[-18, 0, 2, 20], [-10, 0, 10, 20], [78.5, 0, 90, 20], [10, 10, 20, 20]]
    kept = clip_objects(sample(boxes=boxes))
    # 2 of 20 px visible: exactly a tenth, 2 px wide: kept; 1.5 px wide: left out
    assert kept.labels.tolist() == [0, 1, 3]
    assert kept.boxes_xyxy[1].tolist() == [0, 0, 10, 20]
    assert len(clip_objects(sample(boxes=[])).labels) == 0


def test_hsv_by_hand() -> None:
    red = np.full((2, 2, 3), (200, 100, 100), np.uint8)
    assert np.abs(adjust_hsv(red, hue=0, saturation=1, exposure=1).astype(int) - red).max() <= 2
    assert adjust_hsv(red, hue=0, saturation=1, exposure=0.5)[0, 0].tolist() == pytest.approx([100, 50, 50], abs=2)
    assert adjust_hsv(red, hue=0, saturation=0, exposure=1)[0, 0].tolist() == pytest.approx([200, 200, 200], abs=2)
    assert adjust_hsv(red, hue=1 / 3, saturation=1, exposure=1)[0, 0].tolist() == pytest.approx([100, 200, 100], abs=2)


def test_rand_scale_enlarges_as_often_as_it_shrinks() -> None:
    rng = np.random.default_rng(0)
    values = np.array([rand_scale(1.5, rng) for _ in range(2000)])
    assert values.min() >= 1 / 1.5
    assert values.max() <= 1.5
    assert (values > 1).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("horizontal_flip", [40, 10, 60, 30]), ("vertical_flip", [20, 10, 40, 30])],
)
def test_flips_move_the_boxes(option: str, expected: list[float]) -> None:
    pipeline = CommonAugmentations(replace(AUGMENT, **{option: 1.0}))  # type: ignore[arg-type]
    result = pipeline(sample(), np.random.default_rng(0))
    assert result.boxes_xyxy.tolist() == [expected]
    assert white_box(result.image) == expected


def test_boxes_follow_the_pixels_through_quarter_turns() -> None:
    pipeline = CommonAugmentations(replace(AUGMENT, rotate90=1.0))
    shapes = set()
    for seed in range(8):
        result = pipeline(sample(), np.random.default_rng(seed))
        assert result.boxes_xyxy[0].tolist() == white_box(result.image)
        shapes.add(result.image.shape[:2])
    assert shapes == {(40, 80), (80, 40)}


def test_pipeline_is_a_function_of_the_generator_and_keeps_labels() -> None:
    pipeline = CommonAugmentations(replace(AUGMENT, horizontal_flip=0.5, noise=0.5, blur=0.5))
    given = sample(boxes=[[0, 0, 10, 10], [30, 5, 60, 20], [70, 30, 80, 40]])
    first = [pipeline(given, np.random.default_rng(seed)) for seed in range(6)]
    again = [pipeline(given, np.random.default_rng(seed)) for seed in reversed(range(6))][::-1]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert a.labels.tolist() == [0, 1, 2]
    assert pipeline(sample(boxes=[]), np.random.default_rng(0)).boxes_xyxy.shape == (0, 4)


def test_transforms_draw_independently() -> None:
    pipeline = CommonAugmentations(replace(AUGMENT, horizontal_flip=0.5, vertical_flip=0.5))
    given = sample(boxes=[[20, 4, 40, 14]])
    drawn = [tuple(pipeline(given, np.random.default_rng(seed)).boxes_xyxy[0].tolist()) for seed in range(400)]
    shares = {box: drawn.count(box) / len(drawn) for box in set(drawn)}
    # unchanged, flipped left to right, flipped upside down, both: a quarter each; 400 draws spread by 2 %
    expected = [(20, 4, 40, 14), (40, 4, 60, 14), (20, 26, 40, 36), (40, 26, 60, 36)]
    assert [shares.get(box, 0.0) for box in expected] == pytest.approx([0.25] * 4, abs=0.08)


def test_mosaic_places_four_windows() -> None:
    parts = [sample(60, 60, [[5, 5, 55, 55]]) for _ in range(4)]
    result = mosaic(parts, np.random.default_rng(3))
    assert result.image.shape == (60, 60, 3)
    assert len(result.labels) == 4
    painted = np.zeros((60, 60), bool)
    for x1, y1, x2, y2 in result.boxes_xyxy.astype(int):
        painted[y1:y2, x1:x2] = True
    assert np.array_equal(painted, result.image[..., 0] > 0), "the boxes cover exactly the white pixels"
    with pytest.raises(ValueError, match="expected 4 samples"):
        mosaic(parts[:3], np.random.default_rng(0))
