"""Images in class folders, Darknet's crops, and mixed images with mixed labels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.config import ClassifyConfig, CropConfig, load_run_config
from detector.data.doctor import examine_folders
from detector.data.image_folder import (
    ClassSamples,
    centre_view,
    collate_classes,
    cutmix,
    open_image_folder,
    quarter,
    random_view,
)
from detector.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PLAIN = CropConfig(
    min_crop=64,
    max_crop=64,
    angle=0,
    aspect=1,
    hue=0,
    saturation=1,
    exposure=1,
    horizontal_flip=0,
    cutmix=0,
    mosaic=0,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        for index in range(3):
            path = tmp_path / "train" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((40, 60, 3), 100 * number + index, np.uint8))
    return tmp_path


def config(root: Path, *overrides: str) -> ClassifyConfig:
    settings = [f"data.root={root}", "model.num_classes=2", *overrides]
    found = load_run_config(ROOT / "configs/classify_tiny.yaml", settings)
    assert isinstance(found, ClassifyConfig)
    return found


def test_classes_are_the_folders_by_name(folder: Path) -> None:
    dataset = open_image_folder(str(folder), "train", num_classes=2)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset) == 6


@pytest.mark.parametrize(
    ("split", "num_classes", "message"),
    [
        ("train", 3, "has 2 class folders, model.num_classes is 3"),
        ("nothing", 2, "no such folder; expected one folder of images for each class"),
    ],
)
def test_a_wrong_folder_is_explained(folder: Path, split: str, num_classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_image_folder(str(folder), split, num_classes=num_classes)


def test_a_class_without_images_is_an_error(folder: Path) -> None:
    (folder / "train/emu").mkdir()
    with pytest.raises(InputError, match="emu"):
        open_image_folder(str(folder), "train", num_classes=3)


def test_the_doctor_reads_every_image(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"not an image")
    (problem,) = examine_folders(str(folder), ("train",), num_classes=2)
    assert problem.where.endswith("train/dog/1.png")
    assert problem.rule == "unreadable_image"
    (folder / "train/dog/1.png").unlink()
    assert examine_folders(str(folder), ("train",), num_classes=2) == []


def test_a_sample_is_a_function_of_seed_step_and_slot(folder: Path) -> None:
    dataset = open_image_folder(str(folder), "train", num_classes=2)
    samples = ClassSamples(dataset, config(folder, "augment.cutmix=0.5", "augment.mosaic=0.5"))
    batch = collate_classes([samples[(3, slot)] for slot in range(8)])
    again = collate_classes([samples[(3, slot)] for slot in range(8)])
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.images.equal(again.images)
    assert batch.targets.equal(again.targets)
    assert np.allclose(batch.targets.sum(dim=1), 1)
    assert ((batch.targets > 0) & (batch.targets < 1)).any(), "not one label was mixed"
    other = collate_classes([samples[(4, slot)] for slot in range(8)])
    assert not batch.images.equal(other.images)


def test_an_unreadable_image_is_named(folder: Path) -> None:
    broken = folder / "train/cat/0.png"
    broken.write_bytes(b"not an image")
    dataset = open_image_folder(str(folder), "train", num_classes=2)
    samples = ClassSamples(dataset, config(folder))
    with pytest.raises(InputError, match=r"cat/0.png"):
        [samples[(0, slot)] for slot in range(6)]


def test_an_evaluation_sees_the_centre() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 255
    assert centre_view(image, 64).shape == (64, 64, 3)
    assert (centre_view(image, 64) == 255).all()
    assert centre_view(image[:10, :20], 64).shape == (64, 64, 3), "smaller than the network"


def test_a_view_without_any_augmentation_keeps_the_scale() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    before = image.copy()
    view = random_view(image, 64, PLAIN, np.random.default_rng(1))
    # The conversion to HSV and back rounds.
    assert np.abs(view.astype(int) - image).max() <= 6
    assert (image == before).all(), "the argument was changed"


def test_a_wide_image_is_cropped_at_random_places() -> None:
    ramp = np.repeat(np.arange(0, 240, dtype=np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    rng = np.random.default_rng(0)
    centres = [int(random_view(ramp, 64, PLAIN, rng)[32, 32, 0]) for _ in range(40)]
    assert min(centres) < 60
    assert max(centres) > 180


def test_cutmix_shares_the_label_by_area() -> None:
    images = (np.zeros((100, 100, 3), np.uint8), np.full((100, 100, 3), 255, np.uint8))
    targets = (np.array([1, 0], np.float32), np.array([0, 1], np.float32))
    for seed in range(20):
        mixed, target = cutmix(images, targets, np.random.default_rng(seed))
        assert target[1] == pytest.approx((mixed[..., 0] == 255).mean())
        assert 0.09 <= target[1] <= 0.64
    assert not images[0].any(), "the argument was changed"


def test_mosaic_shares_the_label_by_area() -> None:
    images = tuple(np.full((100, 100, 3), value, np.uint8) for value in (10, 20, 30, 40))
    targets = tuple(np.eye(4, dtype=np.float32))
    mixed, target = quarter(images, targets, np.random.default_rng(0))
    shares = [(mixed[..., 0] == value).mean() for value in (10, 20, 30, 40)]
    assert np.allclose(target, shares)
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1)
