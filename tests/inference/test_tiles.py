"""Tiles: windows cover the image, and each object is found once and whole, wherever the seams are."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from detector.errors import InputError
from detector.inference.tiles import merge_tiles, predict_tiled, tile_windows
from detector.postprocess import Thresholds
from detector.structures import Detections, Image


class Blobs:
    """Finds the rectangles of pure colours in an image exactly; red is class 0, green is class 1."""

    thresholds = Thresholds()

    def __init__(self, largest: int = 10_000) -> None:
        self.largest = largest  # finds nothing in larger images
        self.shapes: list[tuple[int, ...]] = []

    def predict_batch(self, images: list[Image]) -> list[Detections]:
        self.shapes += [image.shape for image in images]
        return [self.predict(image) for image in images]

    def predict(self, image: Image) -> Detections:
        boxes, labels = [], []
        for label in (0, 1):
            _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., label] > 128).astype(np.uint8))
            for x, y, width, height, _ in stats[1:]:
                if max(image.shape) <= self.largest:
                    boxes.append([x, y, x + width, y + height])
                    labels.append(label)
        scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(labels, np.int64))


def draw_image(height: int, width: int, boxes: list[tuple[int, int, int, int, int]]) -> Image:
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2, label in boxes:
        image[y1:y2, x1:x2, label] = 255
    return image


def as_rows(found: Detections) -> list[tuple[int, ...]]:
    return sorted((*map(int, box), int(label)) for box, label in zip(found.boxes_xyxy, found.labels, strict=True))


def test_windows_cover_every_pixel_with_the_overlap_asked_for() -> None:
    for height, width in ((100, 100), (101, 640), (333, 1000), (50, 900)):
        seen = np.zeros((height, width), int)
        windows = tile_windows(height, width, tile=100, overlap=0.2)
        for x1, y1, x2, y2 in windows:
            assert 0 <= x1 < x2 <= width
            assert x2 - x1 == min(100, width)
            assert y2 - y1 == min(100, height)
            seen[y1:y2, x1:x2] += 1
        assert seen.min() == 1
        columns = sorted({(x1, x2) for x1, _, x2, _ in windows})
        assert all(first[1] - second[0] >= 20 for first, second in itertools.pairwise(columns))


@pytest.mark.parametrize(("tile", "overlap"), [(16, 0.2), (100, 1.0), (100, -0.1)])
def test_impossible_tiles_are_refused(tile: int, overlap: float) -> None:
    with pytest.raises(InputError, match=r"--(tile|overlap) .*expected"):
        tile_windows(500, 500, tile=tile, overlap=overlap)


@pytest.mark.parametrize("largest", [10_000, 200], ids=["whole image helps", "pieces only"])
def test_objects_across_seams_are_found_once_and_whole(largest: int) -> None:
    boxes = [
        (10, 10, 40, 30, 0),  # inside one tile
        (150, 60, 230, 90, 0),  # cut by a vertical seam, whole in no single tile
        (60, 150, 90, 240, 1),  # ... by a horizontal one
        (140, 300, 380, 330, 0),  # over three tiles
        (330, 140, 480, 250, 1),  # over a corner of four
        (500, 400, 590, 490, 0),
    ]
    predictor = Blobs(largest)
    found = predict_tiled(predictor, draw_image(500, 600, boxes), tile=200, overlap=0.2)  # type: ignore[arg-type]
    expected = sorted(boxes)
    assert as_rows(found) == expected
    assert predictor.shapes[-1] == (500, 600, 3), "the whole image is predicted as well"


def test_joined_pieces_join_each_other() -> None:
    windows = [(x, y, x + 110, y + 110) for y in (0, 90) for x in (0, 90)]
    whole = np.array([10, 10, 190, 190], np.float32)
    found = []
    for x1, y1, x2, y2 in windows:
        piece = np.clip(whole, (x1, y1, x1, y1), (x2, y2, x2, y2)) - (x1, y1, x1, y1)
        found.append(Detections(piece[None].astype(np.float32), np.array([0.9], np.float32), np.array([0])))
    merged = merge_tiles(found, windows, (200, 200), nms_threshold=0.45)
    assert as_rows(merged) == [(10, 10, 190, 190, 0)]


def test_objects_of_random_images_are_found_as_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        free = np.ones((700, 900), bool)
        boxes = []
        for _ in range(25):
            width, height = rng.integers(5, 150, 2).tolist()
            x, y = int(rng.integers(0, 900 - width)), int(rng.integers(0, 700 - height))
            if free[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2].all():
                free[y : y + height, x : x + width] = False
                boxes.append((x, y, x + width, y + height, int(rng.integers(2))))
        found = predict_tiled(Blobs(), draw_image(700, 900, boxes), tile=256, overlap=0.2)  # type: ignore[arg-type]
        assert as_rows(found) == sorted(boxes)


def test_tiles_can_be_predicted_in_parallel() -> None:
    boxes = [(x, y, x + 8, y + 8, 0) for x in range(2, 590, 45) for y in range(2, 490, 45)]
    with ThreadPoolExecutor(2) as threads:
        found = predict_tiled(Blobs(), draw_image(500, 600, boxes), tile=200, threads=threads)  # type: ignore[arg-type]
    assert as_rows(found) == sorted(boxes)
    assert len(found) > Blobs.thresholds.max_detections, "max_detections applies to one tile"


def test_a_small_image_is_one_tile() -> None:
    predictor = Blobs()
    found = predict_tiled(predictor, draw_image(80, 60, [(5, 5, 20, 20, 1)]), tile=100)  # type: ignore[arg-type]
    assert as_rows(found) == [(5, 5, 20, 20, 1)]
    assert predictor.shapes == [(80, 60, 3)]


def test_neighbours_of_one_class_stay_apart() -> None:
    # two objects end to end at a seam: pieces of different heights are not joined
    boxes = [(100, 50, 158, 60, 0), (162, 20, 260, 120, 0)]
    found = predict_tiled(Blobs(), draw_image(200, 320, boxes), tile=160, overlap=0.2)  # type: ignore[arg-type]
    assert as_rows(found) == boxes


def test_nothing_found_is_an_empty_result() -> None:
    merged = merge_tiles([Detections(), Detections()], [(0, 0, 10, 10), (5, 0, 15, 10)], (10, 15), nms_threshold=0.5)
    assert merged.boxes_xyxy.shape == (0, 4)


def test_an_object_that_two_tiles_call_differently_is_one() -> None:
    class Undecided(Blobs):
        thresholds = Thresholds(multi_label=False)

        def predict(self, image: Image) -> Detections:
            found = Blobs.predict(self, image)
            labels = np.full_like(found.labels, max(image.shape) > 100)  # the whole image: class 1, a tile: class 0
            return Detections(found.boxes_xyxy, found.scores, labels)

    image = draw_image(100, 150, [(10, 10, 40, 40, 0)])
    assert as_rows(predict_tiled(Undecided(), image, tile=100)) == [(10, 10, 40, 40, 0)]  # type: ignore[arg-type]
