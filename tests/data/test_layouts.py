"""Data sets as people have them: every layout gives the same two images with a cat and two dogs."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.doctor import examine
from detector.data.open import find_layout, list_splits, open_dataset
from detector.errors import InputError

WIDTH, HEIGHT = 64, 48
BOXES = {"a": [("cat", 4, 6, 24, 30), ("dog", 30, 10, 60, 44)], "b": [("dog", 10, 4, 40, 40)]}
NAMES = ("cat", "dog")
Build = Callable[[Path], Path]


def image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(
        path.suffix if path.suffix.isascii() else ".jpg", np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    )
    assert encoded
    path.write_bytes(content.tobytes())


def images(folder: Path) -> None:
    for number, name in enumerate(BOXES):
        image(folder / f"{name}.jpg", 50 * number)


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding=encoding)
    return path


def coco(path: Path, folder: str = "") -> Path:
    entries = [
        {"id": n, "file_name": f"{folder}{name}.jpg", "width": WIDTH, "height": HEIGHT} for n, name in enumerate(BOXES)
    ]
    annotations = [
        {"id": 10 * n + k, "image_id": n, "category_id": NAMES.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for n, objects in enumerate(BOXES.values())
        for k, (name, x1, y1, x2, y2) in enumerate(objects)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(NAMES)]
    return text(path, json.dumps({"images": entries, "annotations": annotations, "categories": categories}))


def voc(folder: Path, filename: str = "") -> None:
    for stem, objects in BOXES.items():
        items = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for name, x1, y1, x2, y2 in objects
        )
        text(
            folder / f"{stem}.xml", f"<annotation><filename>{filename or stem + '.jpg'}</filename>{items}</annotation>"
        )


def yolo(folder: Path, encoding: str = "utf-8") -> None:
    for stem, objects in BOXES.items():
        lines = [
            f"{NAMES.index(name)} {(x1 + x2) / 128} {(y1 + y2) / 96} {(x2 - x1) / 64} {(y2 - y1) / 48}"
            for name, x1, y1, x2, y2 in objects
        ]
        text(folder / f"{stem}.txt", "\n".join(lines), encoding)


def roboflow_coco(root: Path) -> Path:
    for split in ("train", "valid"):
        images(root / split)
        coco(root / split / "_annotations.coco.json")
    return root


def cvat_coco(root: Path) -> Path:
    images(root / "images/default")
    coco(root / "annotations/instances_default.json")
    return root


def label_studio_coco(root: Path) -> Path:
    images(root / "images")
    coco(root / "result.json", folder="images\\")
    return root


def coco_of_another_machine(root: Path) -> Path:
    images(root / "pictures")
    return coco(root / "labels.json", folder="/content/drive/My%20Drive/set/pictures/")


def voc_with_lists(root: Path) -> Path:
    images(root / "JPEGImages")
    voc(root / "Annotations", filename="stale.jpg")
    text(root / "ImageSets/Main/train.txt", "a.jpg\nb.jpg\n")
    text(root / "ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
    return root


def voc_beside_images(root: Path) -> Path:
    images(root)
    voc(root)
    return root


def voc_in_any_folder(root: Path) -> Path:
    images(root / "images")
    voc(root / "annots")
    return root


def roboflow_yolo(root: Path) -> Path:
    images(root / "train/images")
    yolo(root / "train/labels")
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    return root


def yolo_of_another_machine(root: Path) -> Path:
    images(root / "images/train")
    yolo(root / "labels/train", encoding="utf-8-sig")
    text(root / "data.yaml", "path: /content/set\ntrain: /content/set/images/train\nnames: {'0': cat, '1': dog}\n")
    return root


def yolo_with_list(root: Path) -> Path:
    images(root / "JPEGImages")
    yolo(root / "labels", encoding="utf-16")
    text(root / "train.txt", 'D:\\set\\JPEGImages\\a.jpg\r\n"JPEGImages/b.JPG"\r\n')
    text(root / "set.names", "cat\ndog\n")
    return text(root / "set.data", "classes = 2\nnames = set.names\ntrain = train.txt\n")


def cvat_yolo(root: Path) -> Path:
    images(root / "obj_train_data")
    yolo(root / "obj_train_data")
    text(root / "obj.names", "cat\ndog\n")
    text(root / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    text(root / "obj.data", "classes = 2\nnames = data/obj.names\ntrain = data/train.txt\nbackup = backup/\n")
    return root


def labelimg_yolo(root: Path) -> Path:
    images(root)
    yolo(root)
    text(root / "classes.txt", "cat\ndog\n")
    return root


def loose_yolo(root: Path) -> Path:
    images(root / "images/train/camera1")
    yolo(root / "labels/train/camera1")
    text(root / "labels/classes.txt", "cat\ndog\n")
    return root


def labelme(root: Path) -> Path:
    for stem, objects in BOXES.items():
        image(root / f"{stem}.jpg")
        shapes = [
            {"label": name, "shape_type": "rectangle", "points": [[x2, y2], [x1, y1]]}
            for name, x1, y1, x2, y2 in objects
        ]
        content = {"shapes": shapes, "imagePath": f"..\\{stem}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        text(root / f"{stem}.json", json.dumps(content))
    return root


def cvat_xml(root: Path) -> Path:
    images(root / "images")
    (cat, dog), (second,) = BOXES["a"], BOXES["b"]
    rows = "".join(
        f'<image id="{n}" name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}">{content}</image>'
        for n, (name, content) in enumerate(
            {
                "a": '<box label="{}" xtl="{}" ytl="{}" xbr="{}" ybr="{}"/>'.format(*cat)
                + '<polygon label="{0}" points="{1},{2};{3},{2};{3},{4}"/>'.format(*dog)
                + '<tag label="night"/>',
                "b": '<box label="{}" xtl="{}" ytl="{}" xbr="{}" ybr="{}"/>'.format(*second),
            }.items()
        )
    )
    text(root / "annotations.xml", f"<?xml version='1.0' encoding='utf-8'?><annotations>{rows}</annotations>")
    return root


def csv_table(root: Path) -> Path:
    images(root / "images")
    rows = [f"{stem}.jpg,{WIDTH},{HEIGHT},{','.join(map(str, row))}" for stem, boxes in BOXES.items() for row in boxes]
    text(root / "train_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "\n".join(rows))
    return root


LAYOUTS = [
    *(roboflow_coco, cvat_coco, label_studio_coco, coco_of_another_machine, voc_with_lists, voc_beside_images),
    *(voc_in_any_folder, roboflow_yolo, yolo_of_another_machine, yolo_with_list, cvat_yolo, labelimg_yolo, loose_yolo),
    *(labelme, cvat_xml, csv_table),
]


@pytest.mark.parametrize("build", LAYOUTS)
def test_every_layout_is_read(build: Build, tmp_path: Path) -> None:
    path = build(tmp_path)
    split = next((name for name in ("train", "valid") if name in list_splits(path)), None)
    dataset = open_dataset(path, split)
    assert dataset.class_names == NAMES
    assert [one.name for one in dataset.paths] == ["a.jpg", "b.jpg"]
    assert [NAMES[label] for label in dataset.labels] == ["cat", "dog", "dog"]
    expected = np.array([box for boxes in BOXES.values() for _, *box in boxes])
    assert dataset.boxes_xyxy == pytest.approx(expected, abs=1e-3)
    assert {problem.rule for problem in dataset.problems} <= {"found_elsewhere"}


def test_a_folder_in_two_formats_says_which_was_read(tmp_path: Path) -> None:
    voc_beside_images(tmp_path)
    labelme(tmp_path)
    layout = find_layout(tmp_path)
    assert (layout.format, layout.others) == ("LabelMe JSON", ("VOC XML",))
    assert examine(tmp_path, read_images=False).notes == [
        "read as LabelMe JSON; there are also VOC XML: give the file or folder to choose"
    ]


def test_what_is_not_a_data_set_says_what_is_there(tmp_path: Path) -> None:
    for number in range(7):
        text(tmp_path / f"notes/{number}.md", "x")
    with pytest.raises(InputError, match=r"it has 7 files: notes/0.md, .*notes/4.md, \.\.\.$"):
        open_dataset(tmp_path)


def test_equal_stems_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for name in ("x", "y"):
        image(tmp_path / f"images/{name}/1.jpg")
        text(tmp_path / f"labels/{name}/1.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "names: [cat]\ntrain: images\n")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.image_ids == ["x/1.jpg", "y/1.jpg"]
    assert len(dataset.labels) == 2


def test_one_label_file_for_two_images_is_reported(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        image(tmp_path / f"images/a.{suffix}")
    text(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "names: [cat]\ntrain: images\n")
    (problem,) = open_dataset(tmp_path, "train").problems
    assert (problem.rule, problem.value) == ("shared_labels", "belongs to a.jpg and a.png")


def test_names_as_a_mac_writes_them(tmp_path: Path) -> None:
    image(tmp_path / unicodedata.normalize("NFD", "über.jpg"))
    content = {
        "images": [{"id": 1, "file_name": unicodedata.normalize("NFC", "über.jpg")}],
        "annotations": [],
        "categories": [],
    }
    text(tmp_path / "set.json", json.dumps(content))
    assert len(open_dataset(tmp_path)) == 1


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    images(tmp_path)
    yolo(tmp_path)
    for suffix in (".jpg", ".txt"):
        (tmp_path / f"a{suffix}").rename(tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode()))
    assert len(open_dataset(tmp_path).labels) == 3


def test_images_of_another_split_are_never_taken(tmp_path: Path) -> None:
    images(tmp_path / "images/val")
    voc(tmp_path / "annotations/train")
    with pytest.raises(InputError, match="2 missing_image"):
        open_dataset(tmp_path)


def test_polygons_and_rotated_boxes_of_voc(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    rotated = "<robndbox><cx>20</cx><cy>20</cy><w>10</w><h>4</h><angle>1.5707963</angle></robndbox>"
    polygon = "<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>5</x3><y3>8</y3></polygon>"
    objects = "".join(f"<object><name>cat</name>{shape}</object>" for shape in (rotated, polygon))
    text(tmp_path / "a.xml", f"<annotation>{objects}</annotation>")
    assert open_dataset(tmp_path).boxes_xyxy == pytest.approx(np.array([[18, 15, 22, 25], [1, 2, 9, 8]]), abs=1e-4)


def test_an_xml_in_a_declared_encoding(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    content = f"<?xml version='1.0' encoding='GBK'?><annotation><object><name>猫</name>{box}</object></annotation>"
    text(tmp_path / "a.xml", content, encoding="gbk")
    assert open_dataset(tmp_path).class_names == ("猫",)


def test_parts_are_chosen_by_content(tmp_path: Path) -> None:
    for number in range(40):
        image(tmp_path / f"images/{number:02d}.png", number)
        text(tmp_path / f"labels/{number:02d}.txt", "0 0.5 0.5 0.5 0.5")
    image(tmp_path / "images/copy.png", 7)
    text(tmp_path / "labels/copy.txt", "0 0.5 0.5 0.5 0.5")
    first, second = (open_dataset(tmp_path, part) for part in ("all[:80%]", "all[80%:]"))
    assert len(first) + len(second) == len(first.labels) + len(second.labels) == 41
    assert 25 <= len(first) <= 38
    stems = {path.stem for path in first.paths}
    assert ("07" in stems) == ("copy" in stems)
    with pytest.raises(InputError, match=r"expected a part such as all\[:80%\] or all\[80%:\]"):
        open_dataset(tmp_path, "all[90:10]")


def test_left_out_files_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "c.heic", "._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg"):
        text(tmp_path / "images" / name, "")
    for name in ("a.jpg", "b.jfif"):
        image(tmp_path / "images/x.jpg")
        (tmp_path / "images/x.jpg").rename(tmp_path / "images" / name.replace("jfif", "JFIF"))
        text(tmp_path / f"labels/{name[0]}.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "names: [cat]\ntrain: images\n")
    dataset = open_dataset(tmp_path, "train")
    assert [path.name for path in dataset.paths] == ["a.jpg", "b.JFIF"]
    assert [(problem.rule, problem.value.split(";")[0]) for problem in dataset.problems] == [
        ("left_out", "1 files .heic")
    ]
