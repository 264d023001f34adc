"""COCO, VOC and YOLO readers: the same objects from each, and one set of rules for bad labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.open import list_splits, open_dataset
from detector.errors import InputError

CLASSES = ("cat", "dog")
GOOD = [("dog", 10.0, 20.0, 50.0, 60.0), ("cat", 0.0, 0.0, 100.0, 80.0)]  # in a 100x80 image
Writer = Callable[[Path, list[tuple[str, float, float, float, float]]], Path]


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((80, 100, 3), 90, np.uint8))


def write_coco(root: Path, objects: list[tuple[str, float, float, float, float]]) -> Path:
    write_image(root / "images" / "a.jpg")
    ids = {"cat": 17, "dog": 90, "bird": 3}  # sparse, not in the order of the names
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": ids[name], "name": name} for name in ("dog", "cat")],
        "annotations": [
            {"id": 7 + n, "image_id": 5, "category_id": ids[name], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for n, (name, x1, y1, x2, y2) in enumerate(objects)
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


def write_voc(root: Path, objects: list[tuple[str, float, float, float, float]]) -> Path:
    write_image(root / "JPEGImages" / "a.jpg")
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    size = "<size><width>100</width><height>80</height></size>"
    (root / "Annotations/a.xml").write_text(f"<annotation><filename>a.jpg</filename>{size}{items}</annotation>")
    return root


def write_yolo(root: Path, objects: list[tuple[str, float, float, float, float]]) -> Path:
    write_image(root / "images" / "train" / "a.jpg")
    (root / "labels/train").mkdir(parents=True)
    ids = {"cat": 0, "dog": 1, "bird": 2}
    (root / "labels/train/a.txt").write_text(
        "".join(
            f"{ids[name]} {(x1 + x2) / 200} {(y1 + y2) / 160} {(x2 - x1) / 100} {(y2 - y1) / 80}\n"
            for name, x1, y1, x2, y2 in objects
        )
    )
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
    return root / "data.yaml"


WRITERS = pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])


@WRITERS
def test_the_same_sample_from_every_format(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    dataset = open_dataset(path, None if path.suffix == ".json" else "train", class_names=CLASSES)
    sample = dataset.read(0)
    assert sample.image.shape == (80, 100, 3)
    assert sample.labels.tolist() == [1, 0]
    assert sample.boxes_xyxy == pytest.approx(np.array([box for _, *box in GOOD]), abs=1e-4)
    assert dataset.problems == []


BAD = [
    (("dog", 30.0, 30.0, 30.0, 50.0), "zero_size"),
    (("dog", 200.0, 10.0, 250.0, 30.0), "outside"),
    (("dog", float("nan"), 10.0, 20.0, 30.0), "not_finite"),
    (("bird", 10.0, 10.0, 20.0, 30.0), "unknown_class"),
    (GOOD[0], "duplicate"),
]


@WRITERS
@pytest.mark.parametrize(("bad", "rule"), BAD, ids=[rule for _, rule in BAD])
def test_a_bad_label_is_reported_and_the_others_stay(write: Writer, bad: tuple, rule: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    path = write(tmp_path, [*GOOD, bad])
    dataset = open_dataset(path, None if path.suffix == ".json" else "train", class_names=CLASSES)
    assert len(dataset.labels) == 2
    (problem,) = dataset.problems
    assert problem.rule == rule
    assert problem.action == "object dropped"
    place = {"coco": "annotation 9", "voc": "object 3", "yolo": "line 3"}[write.__name__.removeprefix("write_")]
    assert place in problem.where


@WRITERS
@pytest.mark.parametrize(("policy", "left", "action"), [("clip", 3, "clipped"), ("drop", 2, "object dropped")])
def test_policies_for_a_box_partly_outside(write: Writer, policy: str, left: int, action: str, tmp_path: Path) -> None:
    path = write(tmp_path, [*GOOD, ("cat", 60.0, 50.0, 130.0, 70.0)])
    split = None if path.suffix == ".json" else "train"
    dataset = open_dataset(path, split, class_names=CLASSES, policy=policy)
    assert len(dataset.labels) == left
    assert [problem.action for problem in dataset.problems] == [action]
    if policy == "clip":
        assert dataset.boxes_xyxy[2].tolist() == pytest.approx([60, 50, 100, 70], abs=1e-4)
    with pytest.raises(InputError, match=r"1 partly_outside; the first: .*partly_outside"):
        open_dataset(path, split, class_names=CLASSES, policy="fail")


@WRITERS
def test_an_image_without_its_file_is_dropped(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    next(tmp_path.rglob("a.jpg")).unlink()
    if write is write_yolo:
        (tmp_path / "list.txt").write_text(f"{tmp_path}/images/train/a.jpg\n")
        path.write_text("names: [cat, dog]\ntrain: list.txt\n")
    with pytest.raises(InputError, match=r"no image with a readable annotation .1 missing_image"):
        open_dataset(path, None if path.suffix == ".json" else "train", class_names=CLASSES)


@WRITERS
def test_classes_that_the_model_does_not_know(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"none of its objects has a class of the model \(car\)"):
        open_dataset(path, None if path.suffix == ".json" else "train", class_names=("car",))


def test_coco_crowd_ids_and_ground_truth(tmp_path: Path) -> None:
    path = write_coco(tmp_path, GOOD)
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"][0]["id"] = 0
    path.write_text(json.dumps(content))
    dataset = open_dataset(path)
    assert dataset.class_names == ("cat", "dog"), "by category id"
    assert dataset.crowd.tolist() == [False, True]
    truth, category_ids, image_ids = dataset.ground_truth()
    assert category_ids == [17, 90]
    assert image_ids == [5]
    assert [item["id"] for item in truth["annotations"]] == [1, 2], "0 means unmatched in pycocotools"
    assert truth["annotations"][0]["bbox"] == [10, 20, 40, 40]


def test_voc_difficult_is_crowd_and_ground_truth_is_coco(tmp_path: Path) -> None:
    root = write_voc(tmp_path, GOOD)
    xml = root / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<name>cat</name>", "<name>cat</name><difficult>1</difficult>"))
    dataset = open_dataset(root, "train")
    assert dataset.crowd.tolist() == [False, True]
    truth, category_ids, image_ids = dataset.ground_truth()
    assert (category_ids, image_ids) == ([1, 2], [1])
    assert [(item["category_id"], item["bbox"], item["iscrowd"]) for item in truth["annotations"]] == [
        (2, [10, 20, 40, 40], 0),
        (1, [0, 0, 100, 80], 1),
    ]


def test_darknet_data_file(tmp_path: Path) -> None:
    write_yolo(tmp_path, GOOD)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "valid.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "my.data").write_text("classes = 2\n# comment\nvalid = valid.txt\nnames = names.txt\n")
    dataset = open_dataset(tmp_path / "my.data", "val")
    assert dataset.class_names == CLASSES
    assert dataset.labels.tolist() == [1, 0]
    assert list_splits(tmp_path / "my.data") == ["valid"]
    (tmp_path / "my.data").write_text("valid\n")
    with pytest.raises(InputError, match="line 1: expected key = value"):
        open_dataset(tmp_path / "my.data", "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a COCO instances file: Expected `object`, got `array`"),
        ('{"annotations": [], "categories": []}', "missing required field `images`"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"1 missing_image"),
        ('{"images": 3, "annotations": [], "categories": []}', r"Expected `array`, got `int` - at `\$.images`"),
        ('{"shapes": 3, "_via_img_metadata": {}}', "no image with a readable annotation"),
        ('[{"annotations": [{"rectanglelabels": ["cat"]}]}]', "x.json: Label Studio's own JSON"),
        ('{"_via_img_metadata": {}}', r"x.json: a VIA project \(export it as COCO\)"),
    ],
)
def test_a_file_that_is_not_coco(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path / "x.json")


def test_a_missing_data_set_and_a_wrong_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data set"):
        open_dataset(tmp_path / "none")
    root = write_voc(tmp_path / "voc", GOOD)
    with pytest.raises(InputError, match="no split 'test'; expected one of train"):
        open_dataset(root, "test")
    (root / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(InputError, match="1 unreadable_annotation"):
        open_dataset(root, "train", class_names=CLASSES)


def test_yolo_line_that_is_not_a_label(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, GOOD)
    labels = tmp_path / "labels/train/a.txt"
    labels.write_text(labels.read_text() + "0 0.5 0.5\n1.5 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n")
    dataset = open_dataset(path, "train")
    assert [(p.rule, p.where.rsplit(" ", 1)[1]) for p in dataset.problems] == [
        ("unreadable_annotation", "3"),
        ("unreadable_annotation", "4"),
        ("unknown_class", "5"),
    ]


def test_bccd_as_published(shared: Path) -> None:
    counts = {split: open_dataset(shared / "data/bccd", split) for split in ("train", "val", "trainval", "test")}
    assert {split: len(dataset) for split, dataset in counts.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
        "test": 72,
    }
    assert sum(len(counts[split].labels) for split in ("trainval", "test")) == 4888 - 2
    assert [p.rule for p in counts["trainval"].problems] == ["zero_size", "zero_size"]


def test_coco_subset(shared: Path) -> None:
    dataset = open_dataset(shared / "data/coco_val126/instances.json")
    assert (len(dataset), len(dataset.labels), int(dataset.crowd.sum()), len(dataset.class_names)) == (126, 886, 7, 80)


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], [1, 2, float("nan"), 4], [1, 2, 10**400, 4], "x"])
def test_an_annotation_without_a_box_does_not_disturb_an_evaluation(bbox: object, tmp_path: Path) -> None:
    path = write_coco(tmp_path, GOOD)
    content = json.loads(path.read_text())
    content["annotations"].append({"id": 99, "image_id": 5, "category_id": 17, "bbox": bbox})
    content["annotations"].append({"id": 98, "category_id": 17, "bbox": [1, 2, 3, 4]})
    path.write_text(json.dumps(content))
    dataset = open_dataset(path)
    assert [problem.rule for problem in dataset.problems] == ["not_finite", "missing_image"]
    truth, _, _ = dataset.ground_truth()
    assert len(truth["annotations"]) == 2


def test_a_coco_file_with_numbers_that_nothing_can_hold(tmp_path: Path) -> None:
    path = write_coco(tmp_path, GOOD)
    content = json.loads(path.read_text())
    content["annotations"][0]["area"] = 10**400
    content["images"].append({"id": 6, "file_name": "b.jpg", "width": 100, "height": 10**400})
    write_image(tmp_path / "images/b.jpg")
    path.write_text(json.dumps(content))
    dataset = open_dataset(path)
    assert (len(dataset), len(dataset.labels)) == (1, 2), "an area that cannot be is the box's own"
    assert [problem.rule for problem in dataset.problems] == ["unreadable_annotation"]


@pytest.mark.parametrize("names", ["{1: cat, 2: dog}", "[]", "null", "3"])
def test_incomplete_yolo_names_are_refused(names: str, tmp_path: Path) -> None:
    path = write_yolo(tmp_path, GOOD)
    path.write_text(f"names: {names}\ntrain: images/train\n")
    with pytest.raises(InputError, match="names: expected a list, or a mapping from 0"):
        open_dataset(path, "train")


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8-sig", "café"), ("utf-16", "café"), ("utf-16-le", "cat"), ("cp1252", "café"), ("gbk", "狗")],
)
def test_class_names_in_other_encodings(encoding: str, name: str, tmp_path: Path) -> None:
    path = write_yolo(tmp_path, GOOD)
    path.write_bytes(f"names: [{name}, dog]\ntrain: images/train\n".encode(encoding))
    assert open_dataset(path, "train").class_names == (name, "dog")


def test_a_file_that_is_not_text_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_bytes(b"names: [a\0b, \xff\xfe\x81]\n")
    with pytest.raises(InputError, match="is not text; save it as UTF-8"):
        open_dataset(tmp_path / "data.yaml", "train")


def test_class_names_are_text_and_distinct(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, GOOD)
    path.write_text("names: [yes, 007, null, 12:30, 2.50]\ntrain: images/train\n")
    assert open_dataset(path, "train").class_names == ("yes", "007", "null", "12:30", "2.50")
    path.write_text("names: [cat, cat]\ntrain: images/train\n")
    with pytest.raises(InputError, match="the class name 'cat' appears twice"):
        open_dataset(path, "train")
    path.write_text("a: &a [x]\nnames: *a\ntrain: images/train\n")
    with pytest.raises(InputError, match=r"the alias \*a is not supported; write the value out"):
        open_dataset(path, "train")


def test_a_list_is_relative_to_its_file_before_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, label in (("a", "0"), ("b", "1")):
        folder = tmp_path / name
        write_yolo(folder, GOOD)
        (folder / "list.txt").write_text("images/train/a.jpg\n")
        (folder / "labels/train/a.txt").write_text(f"{label} 0.5 0.5 0.5 0.5\n")
        (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt\n")
    monkeypatch.chdir(tmp_path / "b")
    assert open_dataset("../a/data.yaml", "train").labels.tolist() == [0], "not those of the folder of the same layout"
