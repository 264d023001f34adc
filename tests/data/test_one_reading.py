"""Training, reports and evaluation read the same labels: predictions equal to them are perfect in any data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data import open_dataset
from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluate.detection import score
from detector.structures import Detections

WIDTH, HEIGHT = 64, 48
NAMES = ("cat", "dog")
IDS = st.sampled_from([[1, 2], [7, 3], ["1", "2"], ["cat-id", "dog-id"], [1, "2"], [0, 90]])
FALSE, TRUE = [0, False, None, "0", ""], [1, True, "1"]


def perfect(dataset: DetectionDataset) -> dict[str, Any]:
    """The metrics of predictions that equal the labels."""
    results = []
    for index in range(len(dataset)):
        boxes, labels = dataset.targets(index)
        results.append((index, Detections(boxes, np.full(len(labels), 0.9, np.float32), labels)))
    return score(dataset, results).compute()


def assert_perfect(dataset: DetectionDataset) -> None:
    metrics = perfect(dataset)
    if (~dataset.crowd).any():
        # pycocotools divides by a sum with a tiny number in it
        found = [metrics["ap"], metrics["ar100"], *(row["ap"] for row in metrics["per_class"].values())]
        assert [value for value in found if value is not None] == pytest.approx([1] * (len(found) - found.count(None)))
        assert sum(row["objects"] for row in metrics["per_class"].values()) == (~dataset.crowd).sum()
    else:
        assert metrics["ap"] is None


def images(folder: Path, count: int) -> None:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


corner = st.tuples(st.floats(-20, WIDTH), st.floats(-20, HEIGHT))
box = st.tuples(corner, st.tuples(st.floats(0.1, 90), st.floats(0.1, 90))).map(lambda pair: [*pair[0], *pair[1]])
objects = st.lists(st.tuples(st.integers(0, 1), box, st.booleans()), max_size=5)
no_limits = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@no_limits
@given(
    content=st.lists(objects, min_size=1, max_size=3),
    ids=IDS,
    image_ids=st.sampled_from([[1, 2, 3], [0, 5, 9], ["1", 2, "3"], ["a", "b", "c"]]),
    texts=st.booleans(),
    values=st.data(),
)
def test_coco(
    content: list[Any], ids: list[Any], image_ids: list[Any], texts: bool, values: st.DataObject, tmp_path_factory: Any
) -> None:
    root = tmp_path_factory.mktemp("coco")
    images(root / "images", len(content))
    annotations = []
    for image_id, rows in zip(image_ids, content, strict=False):
        for label, xywh, is_crowd in rows:
            annotations.append(
                {
                    "image_id": str(image_id) if texts else image_id,
                    "category_id": str(ids[label]) if texts else ids[label],
                    "bbox": xywh,
                    "iscrowd": values.draw(st.sampled_from(TRUE if is_crowd else FALSE)),
                    "area": values.draw(st.sampled_from([None, 0, 12.5, "12.5", "large", xywh[2] * xywh[3]])),
                }
            )
    entries = [
        {"id": image_id, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        for number, (image_id, _) in enumerate(zip(image_ids, content, strict=False))
    ]
    categories = [{"id": key, "name": name} for key, name in zip(ids, NAMES, strict=True)]
    (root / "set.json").write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    )
    dataset = open_dataset(root / "set.json")
    assert set(dataset.class_names) == set(NAMES)
    assert_perfect(dataset)


@no_limits
@given(content=st.lists(objects, min_size=1, max_size=3), polygons=st.booleans())
def test_yolo(content: list[Any], polygons: bool, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("yolo")
    images(root / "images", len(content))
    (root / "labels").mkdir()
    for number, rows in enumerate(content):
        lines = []
        for label, (x, y, w, h), _ in rows:
            shares = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
            if polygons:
                x1, y1, x2, y2 = x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT
                shares = [x1, y1, x2, y1, x2, y2, x1, y2]
            lines.append(" ".join([str(label), *(f"{share:.6f}" for share in shares)]))
        (root / f"labels/{number}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    assert_perfect(open_dataset(root / "data.yaml", "train"))


@no_limits
@given(content=st.lists(objects, min_size=1, max_size=3))
def test_voc(content: list[Any], tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("voc")
    images(root / "JPEGImages", len(content))
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(str(number) for number in range(len(content))))
    for number, rows in enumerate(content):
        xml = "".join(
            f"<object><name>{NAMES[label]}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{x}</xmin>"
            f"<ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h), hard in rows
        )
        (root / f"Annotations/{number}.xml").write_text(f"<annotation>{xml}</annotation>")
    assert_perfect(open_dataset(root, "train", class_names=NAMES))


def coco(tmp_path: Path, **changes: Any) -> Path:
    """Two images, a cat and two dogs, with changed lists."""
    images(tmp_path / "images", 2)
    content: dict[str, Any] = {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 24]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [30, 10, 30, 34]},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [10, 4, 30, 36]},
        ],
    }
    (tmp_path / "set.json").write_text(json.dumps({**content, **changes}))
    return tmp_path / "set.json"


def image(key: object, name: str) -> dict[str, object]:
    return {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [image(1, "0.png"), image(1, "1.png")]}, "0.png and 1.png have the same image id 1"),
        ({"images": [image(1, "0.png"), image("1", "1.png")]}, "0.png and 1.png have the same image id '1'"),
        ({"images": [image(1, "0.png"), image(2, "0.png")]}, "0.png has the image ids 1 and 2; keep one"),
        ({"images": [image(None, "0.png")]}, "image 1: id: expected a whole number or text, got None"),
        ({"images": [image(1.5, "0.png")]}, "image 1: id: expected a whole number or text, got 1.5"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": "1", "name": "b"}]},
            "category 2: the id '1' is also that of 'a'",
        ),
        ({"categories": [{"id": True, "name": "a"}]}, "category 1: id: expected a whole number or text, got True"),
        ({"categories": [{"id": 1, "name": None}]}, "category 1: name: expected text, got None"),
    ],
)
def test_identities_are_never_merged_silently(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(coco(tmp_path, **changes))


def test_categories_of_one_name_are_one_class_and_reported(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    dataset = open_dataset(coco(tmp_path, categories=categories))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (1, 2), "the cat without objects is not the one in result files"
    assert [problem.rule for problem in dataset.problems] == ["duplicate_category"]
    assert_perfect(dataset)


@pytest.mark.parametrize("value", [2, "yes", [], 0.5])
def test_a_crowd_flag_that_is_neither_true_nor_false_is_reported(tmp_path: Path, value: object) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 24], "iscrowd": value}
    dataset = open_dataset(coco(tmp_path, annotations=[annotation]))
    assert [problem.rule for problem in dataset.problems] == ["unreadable_annotation"]
    assert len(dataset.labels) == 0


def test_a_size_that_the_file_does_not_state_is_read_from_the_image(tmp_path: Path) -> None:
    entries = [{"id": 1, "file_name": "0.png", "width": -1, "height": -1}, image(2, "1.png")]
    dataset = open_dataset(coco(tmp_path, images=entries))
    assert dataset.sizes_hw.tolist() == [[HEIGHT, WIDTH]] * 2
    assert len(dataset.labels) == 3
