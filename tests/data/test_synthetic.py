"""The synthetic data set is the same for the same seed, and its labels match what is visible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.config import SyntheticConfig
from detector.data.open import open_dataset
from detector.data.synthetic import Shape, draw_background, draw_shapes, ensure_synthetic_dataset
from detector.errors import InputError

SMALL = SyntheticConfig(num_train=3, num_val=2, image_hw=(64, 80))


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".mp4"}


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert ensure_synthetic_dataset(tmp_path / name, SMALL, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["train_00000.jpg"] != contents(tmp_path / "c")["train_00000.jpg"]
    assert not ensure_synthetic_dataset(tmp_path / "a", SMALL, seed=5), "drawn again without need"
    assert ensure_synthetic_dataset(tmp_path / "a", replace(SMALL, num_train=4), seed=5), (
        "another size is another data set"
    )
    assert len(open_dataset(tmp_path / "a" / "train.json")) == 4
    assert (tmp_path / "a" / "video.mp4").stat().st_size > 1000


def test_other_peoples_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("mine")
    with pytest.raises(InputError, match="is not empty and not the synthetic data set"):
        ensure_synthetic_dataset(tmp_path, SMALL)
    assert (tmp_path / "train.json").read_text() == "mine"


def test_labels_are_valid_in_every_reader(tmp_path: Path) -> None:
    ensure_synthetic_dataset(tmp_path, replace(SMALL, num_train=20))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.problems == []
    assert dataset.class_names == ("circle", "square", "triangle")


def test_boxes_hold_what_is_visible() -> None:
    ground = np.zeros((100, 100, 3), np.uint8)
    square = Shape(1, (50.0, 50.0), 20 * 2**0.5, np.pi / 4, (255, 255, 255))
    _, boxes, labels = draw_shapes(ground, [square])
    assert np.abs(boxes[0] - [30, 30, 71, 71]).max() <= 1
    cover = Shape(1, (60.0, 50.0), 20 * 2**0.5, np.pi / 4, (0, 200, 0))
    _, boxes, labels = draw_shapes(ground, [square, cover])
    assert labels.tolist() == [1], "a quarter visible: no label"
    outside = Shape(0, (-100.0, -100.0), 10.0, 0.0, (9, 9, 9))
    assert draw_shapes(ground, [outside])[1].shape == (0, 4)


def test_backgrounds_have_texture() -> None:
    assert draw_background((50, 60), np.random.default_rng(0)).std() > 5
