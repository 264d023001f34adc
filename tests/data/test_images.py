"""Images of every common kind, and broken ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.data.images import read_image, read_image_size
from detector.errors import InputError
from detector.files import list_images

RED = (200, 30, 30)


def red_image() -> np.ndarray:
    """40 wide, 20 high, red, with a green left third."""
    image = np.full((20, 40, 3), RED, np.uint8)
    image[:, :13] = (30, 200, 30)
    return image


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.png", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.jpg", "CMYK"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
    ],
)
def test_colours_arrive_as_rgb(name: str, mode: str, tmp_path: Path) -> None:
    Image.fromarray(red_image()).convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (20, 40, 3)
    assert image.dtype == np.uint8
    # JPEG, palettes and CMYK lose a little
    assert np.abs(image[10, 30].astype(int) - RED).max() < 30
    assert image[10, 3, 1] > 150


def test_grey_and_sixteen_bit(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 6), 77, np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[2, 2].tolist() == [77, 77, 77]
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((5, 6, 3), 257 * 99, np.uint16))
    assert read_image(tmp_path / "deep.png")[2, 2].tolist() == pytest.approx([99, 99, 99], abs=1)


@pytest.mark.parametrize(
    ("orientation", "size_hw", "green_at"), [(1, (20, 40), (10, 3)), (6, (40, 20), (3, 10)), (3, (20, 40), (10, 36))]
)
def test_exif_orientation(
    orientation: int, size_hw: tuple[int, int], green_at: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(red_image()).save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape[:2] == size_hw == read_image_size(path)
    assert image[green_at][1] > 150
    # Labels made for the stored orientation get the image in its stored orientation.
    assert read_image(path, expected_hw=(20, 40)).shape[:2] == (20, 40)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_a_truncated_file_is_an_error(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{name}: is not a readable image"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"no image", "not a readable image")])
def test_a_file_that_is_not_an_image(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="not a readable image"):
        read_image_size(tmp_path / "x.jpg")


def test_missing_file_and_wrong_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_image(tmp_path / "none.jpg")
    Image.fromarray(red_image()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is 40x20, but its annotation says 50x50"):
        read_image(tmp_path / "a.png", expected_hw=(50, 50))


def test_listing_is_sorted_and_has_only_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]
