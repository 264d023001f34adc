"""Reading for training: reduced decoding, the cache, the partners of a mosaic, many paths in little memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.config import DetectConfig
from detector.data.images import decode_image, read_bytes
from detector.data.mosaic import mosaic
from detector.data.paths import PathTable
from detector.data.sampler import PARTNER_WINDOW, image_index, partner_indices
from detector.data.samples import ImageCache, TrainingSamples, decode_reduction
from detector.errors import InputError
from detector.structures import Sample
from detector.train.detection import open_split


def sample(value: int = 0, side: int = 4) -> Sample:
    none = np.zeros(0, np.int64)
    return Sample(
        np.full((side, side, 3), value, np.uint8), np.zeros((0, 4), np.float32), none, none.astype(bool), value
    )


@pytest.mark.parametrize(
    ("image_hw", "needed_hw", "reduction", "reason"),
    [
        ((480, 640), (416, 416), 1, "hardly larger"),
        ((831, 832), (416, 416), 1, "half of the height would be too little"),
        ((832, 832), (416, 416), 2, "exactly half"),
        ((3000, 4000), (416, 416), 4, "a photograph"),
        ((9000, 9000), (416, 416), 8, "8 is the largest reduction"),
        ((100, 100), (416, 416), 1, "smaller than needed"),
    ],
)
def test_how_far_an_image_may_be_reduced(
    image_hw: tuple[int, int], needed_hw: tuple[float, float], reduction: int, reason: str
) -> None:
    assert decode_reduction(image_hw, needed_hw) == reduction, reason


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding_shows_the_same_image(tmp_path: Path, suffix: str, reduction: int) -> None:
    height, width = 200, 301
    rows, columns = np.mgrid[:height, :width]
    image = np.stack((rows, columns * 255 // width, np.full_like(rows, 40)), axis=-1).astype(np.uint8)
    path = tmp_path / f"x{suffix}"
    cv2.imwrite(str(path), image[..., ::-1])
    content = read_bytes(path)
    small = decode_image(content, "x", expected_hw=(height, width), reduction=reduction)
    assert abs(small.shape[0] - height / reduction) < 1
    assert abs(small.shape[1] - width / reduction) < 1
    expected = cv2.resize(image, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 2
    with pytest.raises(InputError, match="is 301x200, but its annotation says 301x180"):
        decode_image(content, "x", expected_hw=(180, 301), reduction=reduction)


def test_boxes_of_a_reduced_image_fit_it(tiny: Callable[..., DetectConfig]) -> None:
    dataset = open_split(tiny(), "train")
    whole, half = (dataset.decode(0, dataset.read_bytes(0), reduction=reduction) for reduction in (1, 2))
    assert half.image.shape[0] == whole.image.shape[0] // 2
    assert np.allclose(half.boxes_xyxy * 2, whole.boxes_xyxy)


def test_the_cache_forgets_the_oldest() -> None:
    cache = ImageCache(max_bytes=3 * 48)  # 4 * 4 * 3 bytes each
    for key in range(3):
        cache.put((key, 1), sample(key))
    assert cache.get((0, 1)) is not None, "just used, so it is no longer the oldest"
    cache.put((3, 1), sample(3))
    assert cache.get((1, 1)) is None
    assert [key for key in range(4) if cache.get((key, 1))] == [0, 2, 3]
    assert cache.num_bytes == 3 * 48
    cache.put((9, 1), sample(9, side=100))
    assert cache.num_bytes == 0, "larger than the whole cache: not kept, and the others are evicted"


def test_the_cache_changes_no_sample(tiny: Callable[..., DetectConfig]) -> None:
    options = ["augment.mosaic=0.5", "augment.noise=0.5"]
    with_cache, without = (tiny([*options, f"data.cache_mb={size}"]) for size in (64, 0))
    dataset = open_split(with_cache, "train")
    first, second = TrainingSamples(dataset, with_cache), TrainingSamples(dataset, without)
    for step in range(6):
        for slot in range(4):
            one, two = first[(step, slot)], second[(step, slot)]
            assert one.image.tobytes() == two.image.tobytes()
            assert np.array_equal(one.boxes_xyxy, two.boxes_xyxy)


def test_mosaic_partners_are_close_in_the_order() -> None:
    rng = np.random.default_rng(0)
    order = [image_index(seed=5, position=position, num_images=1000) for position in range(1000)]
    for position in (0, 3, 500):
        partners = partner_indices(seed=5, position=position, num_images=1000, count=50, rng=rng)
        distances = [abs(position - order.index(partner)) for partner in partners]
        assert all(1 <= distance <= PARTNER_WINDOW for distance in distances)


def test_a_mosaic_is_recoloured_window_by_window() -> None:
    parts = [sample(value, side=40) for value in (10, 20, 30, 40)]
    plain = mosaic(parts, np.random.default_rng(0))
    areas: list[int] = []

    def recolour(image: np.ndarray) -> np.ndarray:
        areas.append(image.shape[0] * image.shape[1])
        return image + np.uint8(1)

    changed = mosaic(parts, np.random.default_rng(0), recolour)
    assert np.array_equal(changed.image, plain.image + 1)
    assert sum(areas) == 40 * 40, "hidden pixels are not computed"
    assert all((part.image == value).all() for part, value in zip(parts, (10, 20, 30, 40), strict=True))


def test_a_path_table_is_a_sequence_of_paths(tmp_path: Path) -> None:
    paths = [Path("/a/b.jpg"), tmp_path / "ü ñ.png", Path("relative.jpg"), Path()]
    table = PathTable(paths)
    assert list(table) == paths
    assert (len(table), table[-1], table[1:3]) == (4, paths[-1], paths[1:3])
    with pytest.raises(IndexError):
        table[4]
    assert list(pickle.loads(pickle.dumps(table))) == paths, "worker processes may be spawned"
    assert list(PathTable([])) == []


def test_batches_need_no_copy_for_channels_last(tiny: Callable[..., DetectConfig]) -> None:
    from detector.data.collate import collate

    batch = collate([sample(1), sample(2)])
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[1].unique().tolist() == [2]
