"""Images of every common kind, and broken ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.data.doctor import examine
from detector.data.images import read_image, read_image_size
from detector.data.open import open_dataset
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


def photo(path: Path) -> bytes:
    """A JPEG without a part of one colour; returns its content."""
    blurred = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8), (0, 0), 2)
    Image.fromarray(blurred).save(path, quality=90)
    return path.read_bytes()


@pytest.mark.parametrize("lost", [1, 2, 8])
def test_a_jpeg_that_lacks_only_its_end_is_whole(lost: int, tmp_path: Path) -> None:
    content = photo(tmp_path / "a.jpg")
    whole = read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content[:-lost])
    assert np.array_equal(read_image(tmp_path / "a.jpg")[:78], whole[:78])


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_without_its_lower_half_is_an_error_whatever_its_end(end: bytes, tmp_path: Path) -> None:
    content = photo(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2] + end)
    with pytest.raises(InputError, match=r"not a readable image: its last \d\d of 96 rows are missing; fetch it again"):
        read_image(tmp_path / "a.jpg")


def test_an_image_of_one_colour_is_whole(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("a.png", np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),  # 12 bits
        ("a.png", np.array([[0, 512, 1023]], np.uint16), [0, 128, 255]),  # 10 bits
        ("a.png", np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        ("a.png", np.array([[0, 100, 255]], np.uint16), [0, 100, 255]),  # 8 bits in 16
        ("a.tif", np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        ("a.tif", np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        ("a.tif", np.array([[-1000, 0, 1000]], np.float32), [0, 128, 255]),
        ("a.tif", np.array([[0, float("nan"), 1]], np.float32), [0, 0, 255]),
        ("a.tif", np.array([[0, 50000, 100000]], np.int32), [0, 128, 255]),
    ],
)
def test_values_of_more_than_eight_bits_are_scaled(
    name: str, values: np.ndarray, expected: list[int], tmp_path: Path
) -> None:
    assert cv2.imwrite(str(tmp_path / name), np.repeat(values, 4, axis=0))
    image = read_image(tmp_path / name)
    assert image.shape == (4, 3, 3)
    assert image[1, :, 2].tolist() == pytest.approx(expected, abs=1)


def test_there_is_one_limit_on_pixels_for_every_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.data.images.MAX_PIXELS", 40 * 30)
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        Image.fromarray(np.zeros((31, 40, 3), np.uint8)).save(tmp_path / name)
        for read in (read_image, read_image_size):
            with pytest.raises(InputError, match=r"has 40x31 pixels, .*set DETECTOR_MAX_PIXELS to read it"):
                read(tmp_path / name)


def test_a_pipe_is_not_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list_images(tmp_path) == []
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("turned", [False, True])
def test_an_exif_turn_is_followed_where_the_labels_follow_it(turned: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    entries = []
    for number, orientation in enumerate((3, 6)):
        exif[0x0112] = orientation
        Image.fromarray(red_image()).save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
        size = (20, 40) if turned and orientation == 6 else (40, 20)
        entries.append({"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]})
    (tmp_path / "set.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    dataset = open_dataset(tmp_path)
    green_right = bool(dataset.read(0).image[10, 36, 1] > 150)
    assert green_right == turned, "the half turn is applied where the quarter turn is"
    notes = examine(tmp_path).notes
    expected = "as a viewer shows them" if turned else "as they are stored, as the stated sizes say"
    assert any(f"2 images have an EXIF orientation, read {expected}; of 1 of them" in note for note in notes)
