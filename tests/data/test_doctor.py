"""The doctor finds problems and grades them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.doctor import examine, report_text
from detector.errors import InputError


def make_coco(root: Path, split: str, images: list[int], boxes: list[list[float]]) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in images:
        noise = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{number}.png"), noise)
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 50, "height": 40} for n in images],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": n + 1, "image_id": images[0], "category_id": 1, "bbox": box, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
    }
    (root / f"{split}.json").write_text(json.dumps(content))


GOOD = [[float(n), 2.0, 10.0 + n, 12.0] for n in range(10)]


def test_a_clean_data_set(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [1, 2], GOOD)
    make_coco(tmp_path, "val", [3], GOOD)
    report = examine(tmp_path, size_hw=(40, 50), anchors=[(15, 12)])
    assert report.exit_code() == 0
    train = report.splits[0]
    assert (train.images, train.objects, train.empty_images) == (2, {"cat": 10, "dog": 0}, 1)
    assert train.recall["given anchors"][0] == 1.0
    assert len(train.fitted_anchors) == 1, "as many as were given: six for a neck with two scales"
    assert "nothing found" in report_text(report)


def test_warnings_for_labels_and_shared_images(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [1, 2], [*GOOD, [5.0, 5.0, 0.0, 9.0]])
    make_coco(tmp_path, "val", [2, 3], GOOD)
    report = examine(tmp_path)
    assert report.exit_code() == 1
    text = report_text(report)
    assert "train.json, image 1, annotation 11: zero_size: 0x9 px (object dropped)" in text
    assert "train and val share 1 images, such as 2.png" in text


def test_a_split_inside_another_is_only_noted(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [1], GOOD)
    make_coco(tmp_path, "trainval", [1, 2], GOOD)
    report = examine(tmp_path)
    assert report.exit_code() == 0
    assert report.notes == ["train is part of trainval (1 images)"]


def test_errors_for_files(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", [1, 2, 3], GOOD)
    (tmp_path / "images/2.png").write_bytes((tmp_path / "images/2.png").read_bytes()[:500])
    shutil.copy(tmp_path / "images/1.png", tmp_path / "images/3.png")
    report = examine(tmp_path / "train.json")
    assert report.exit_code() == 2
    assert sorted(problem.rule for problem in report.splits[0].problems) == ["duplicate_image", "unreadable_image"]
    assert examine(tmp_path / "train.json", read_images=False).exit_code() == 0
    (tmp_path / "images/3.png").unlink()
    assert "missing_image" in report_text(examine(tmp_path / "train.json"))


def test_nothing_to_examine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set recognised"):
        examine(tmp_path)
    with pytest.raises(InputError, match="no such data set"):
        examine(tmp_path / "none.json")


def test_bccd(shared: Path) -> None:
    report = examine(shared / "data/bccd")
    assert report.exit_code() == 1
    problems = {(split.name, problem.rule) for split in report.splits for problem in split.problems}
    assert problems == {("train", "zero_size"), ("val", "zero_size"), ("trainval", "zero_size")}
    assert report.notes == ["train is part of trainval (205 images)", "val is part of trainval (87 images)"]


def test_a_split_that_cannot_be_trained_on_is_an_error(tmp_path: Path) -> None:
    """The labels' folder has another name, so not one label file is found."""
    make_yolo(tmp_path, labels="label")
    report = examine(tmp_path / "data.yaml")
    assert report.exit_code() == 2
    assert [problem.rule for problem in report.splits[0].problems] == ["missing_labels", "no_objects"]
    assert f"expected at {tmp_path}/labels/0.txt" in report.splits[0].problems[0].value


def test_label_files_and_images_without_each_other_and_left_out_files_are_errors(tmp_path: Path) -> None:
    make_yolo(tmp_path, count=4)
    (tmp_path / "labels/3.txt").rename(tmp_path / "labels/other.txt")
    (tmp_path / "images/a.heic").touch()
    report = examine(tmp_path / "data.yaml")
    assert report.exit_code() == 2
    rules = sorted(problem.rule for problem in report.splits[0].problems)
    assert rules == ["label_without_image", "left_out", "missing_labels"]


def make_yolo(root: Path, *, count: int = 2, labels: str = "labels") -> None:
    (root / "images").mkdir()
    (root / labels).mkdir()
    for number in range(count):
        cv2.imwrite(str(root / f"images/{number}.png"), np.full((40, 50, 3), number, np.uint8))
        (root / labels / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images\n")
