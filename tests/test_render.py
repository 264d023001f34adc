"""Drawing."""

from itertools import pairwise

import numpy as np
import pytest

from detector.render import _text_mask, class_color, draw, tile
from detector.structures import Detections

NAMES = ("cat", "dog")


def detections(*boxes: list[float]) -> Detections:
    count = len(boxes)
    scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.arange(count) % 2)


def test_draws_a_frame_in_the_class_color_on_a_copy() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    result = draw(image, detections([20, 30, 60, 80]), NAMES)
    assert image.max() == 0
    assert np.abs(result[60, 20].astype(int) - class_color(0)).max() < 80, "anti-aliased"
    assert result[55, 40].max() == 0, "the inside stays empty"


@pytest.mark.parametrize("box", [[0, 0, 99, 99], [-20, -20, 300, 300], [95, 95, 99, 99], [50, 50, 50, 50]])
def test_captions_stay_inside(box: list[float]) -> None:
    """As much of the caption is filled as where there is room for it on all sides."""

    def filled(around: list[float]) -> int:
        result = draw(np.zeros((100, 200, 3), np.uint8), detections(around), NAMES)
        rows = (np.abs(result.astype(int) - class_color(0)).max(axis=2) < 60).sum(axis=1)
        return int((rows > 30).sum())  # rows that a caption fills; a frame's sides are narrow

    assert filled(box) >= filled([50, 60, 51, 61]) > 5


def test_nothing_to_draw() -> None:
    image = np.full((10, 12, 3), 7, np.uint8)
    assert np.array_equal(draw(image, Detections(), NAMES), image)


def test_neighbouring_colors_differ() -> None:
    colors = [np.array(class_color(label)) for label in range(20)]
    assert min(np.abs(a - b).max() for a, b in pairwise(colors)) > 60


def test_tile_keeps_aspects() -> None:
    grid = tile([np.zeros((50, 100, 3), np.uint8)] * 3, columns=2, cell_hw=(40, 40), gap=2)
    assert grid.shape == (2 * 42 + 2, 2 * 42 + 2, 3)
    assert grid[22, 22].max() == 0
    assert grid[5, 22].min() == 255, "the space above the image is white"
    assert grid[64, 64].min() == 255, "the fourth cell is empty"
    assert tile([], columns=2, cell_hw=(4, 4)).min() == 255


@pytest.mark.parametrize("name", ["猫", "собака", "größe", "مرحبا"])
def test_names_in_any_script_are_drawn(name: str) -> None:
    found = Detections(np.array([[10, 40, 60, 60]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    blank, named, marks = (
        draw(np.zeros((80, 200, 3), np.uint8), found, [text], scores=False) for text in (" ", name, "?" * len(name))
    )
    assert not np.array_equal(named, blank)
    assert not np.array_equal(named, marks)


def test_a_letter_that_no_font_has_is_shown_by_its_code() -> None:
    unknown = "\U000f1234"  # of the area for private use
    assert _text_mask(unknown, 1.0).shape == _text_mask(f"U+{ord(unknown):04X}", 1.0).shape
