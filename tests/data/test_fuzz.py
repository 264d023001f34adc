"""Whatever a text file holds, a reader returns or says in one line what is wrong; FUZZ_EXAMPLES sets for how long."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.config import load_config
from detector.darknet import build_darknet
from detector.data.open import find_layout, open_dataset
from detector.errors import InputError
from detector.files import read_class_names, read_list

pytestmark = pytest.mark.filterwarnings("ignore")
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), deadline=None, suppress_health_check=list(HealthCheck)
)
NUMBERS = st.sampled_from(["0", "1", "0.5", "-1", "1e309", "nan", "inf", "٣", "1_0", "0x1", "", "9" * 400, "1,2", "a"])
WORDS = NUMBERS | st.text(max_size=8) | st.sampled_from(["a.jpg", "../a.jpg", "images/a.jpg", "\\", '"', "%00"])
LINES = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=6).map("\n".join)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gbk", "cp1252"])
TEXT_FILES = st.binary(max_size=60) | st.builds(lambda text, name: text.encode(name, "replace"), LINES, ENCODINGS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def read_all(path: Path) -> None:
    """Opens every split of a data set and reads its images."""
    with suppress(InputError):
        for split in find_layout(path).splits:
            dataset = open_dataset(path, split)
            for index in range(len(dataset)):
                dataset.read(index)
            dataset.ground_truth()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("yolo/images/a.jpg", "coco/images/a.jpg", "voc/JPEGImages/a.jpg", "loose/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((32, 48, 3), np.uint8))
    for name in ("yolo/labels", "voc/Annotations", "voc/ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    return folder


@fuzzed
@given(labels=TEXT_FILES, names=TEXT_FILES, listing=TEXT_FILES)
def test_yolo(root: Path, labels: bytes, names: bytes, listing: bytes) -> None:
    folder = root / "yolo"
    (folder / "labels/a.txt").write_bytes(labels)
    (folder / "set.names").write_bytes(names)
    (folder / "list.txt").write_bytes(listing)
    (folder / "set.data").write_text("names = set.names\ntrain = images\nvalid = list.txt\n")
    read_all(folder / "set.data")
    (folder / "data.yaml").write_bytes(b"train: images\nnames: " + names)
    read_all(folder / "data.yaml")


def changes_of(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """Few of them, so that each is often the first thing that is wrong."""
    return st.dictionaries(st.sampled_from(keys), VALUES, max_size=2)


@fuzzed
@given(
    image=changes_of("id", "file_name", "height", "width", "coco_url"),
    item=changes_of("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    category=changes_of("id", "name"),
    whole=st.sampled_from([True, True, True, False]),
)
def test_coco(root: Path, image: dict[str, Any], item: dict[str, Any], category: dict[str, Any], whole: bool) -> None:
    complete = {"id": 1, "file_name": "a.jpg", "height": 32, "width": 48}
    images = [{**complete, **image} if whole else image]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **item}]
    categories = [{"id": 1, "name": "cat", **category}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco/set.json").write_text(json.dumps(content))
    read_all(root / "coco/set.json")


@fuzzed
@given(name=WORDS, corners=st.lists(NUMBERS, min_size=4, max_size=4), size=NUMBERS, listing=TEXT_FILES, raw=TEXT_FILES)
def test_voc(root: Path, name: str, corners: list[str], size: str, listing: bytes, raw: bytes) -> None:
    folder = root / "voc"
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=True))
    content = f"<annotation><size><width>{size}</width><height>{size}</height></size><object><name>{name}</name>"
    (folder / "Annotations/a.xml").write_text(
        f"{content}<bndbox>{box}</bndbox></object></annotation>", "utf-8", "replace"
    )
    (folder / "Annotations/b.xml").write_bytes(raw)
    (folder / "ImageSets/Main/train.txt").write_bytes(b"a\nb\n" + listing)
    read_all(folder)


@fuzzed
@given(shape=VALUES, fields=st.dictionaries(st.sampled_from(["imagePath", "imageHeight", "imageWidth"]), VALUES))
def test_labelme(root: Path, shape: Any, fields: dict[str, Any]) -> None:
    shapes = [shape, {"label": shape, "points": shape}, {"label": "cat", "points": [[1, 1], [9, 9]]}]
    (root / "loose/a.json").write_text(json.dumps({"shapes": shapes, **fields}))
    read_all(root / "loose")


@fuzzed
@given(rows=LINES)
def test_csv(root: Path, rows: str) -> None:
    lines = "\n".join(",".join(line.split(" ")) for line in rows.splitlines())
    (root / "loose/set.csv").write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,48,32,cat,1,1,9,9\n" + lines, "utf-8", "replace"
    )
    read_all(root / "loose/set.csv")


@fuzzed
@given(content=TEXT_FILES)
@pytest.mark.parametrize("read", [read_list, read_class_names, load_config])
def test_texts(root: Path, read: Callable[[Path], object], content: bytes) -> None:
    (root / "text.yaml").write_bytes(content)
    with suppress(InputError):
        read(root / "text.yaml")


VALID_CFG = {
    "net": {"height": "32", "width": "32", "learning_rate": "0.001"},
    "convolutional": {"filters": "18", "size": "3", "stride": "32", "pad": "1", "activation": "linear"},
    "yolo": {"mask": "0,1,2", "anchors": "8,8,16,16,24,24", "classes": "1", "num": "3", "scale_x_y": "1.05"},
}
SECTIONS = st.sampled_from(["maxpool", "route", "shortcut", "upsample", "softmax", "x", *VALID_CFG])
PLACES = [(name, key) for name, options in VALID_CFG.items() for key in options]
KEYS = st.sampled_from(["layers", "from", "groups", *(key for _, key in PLACES)])


@fuzzed
@given(
    changed=st.lists(st.tuples(st.sampled_from(PLACES), NUMBERS), max_size=2),
    added=st.lists(st.tuples(SECTIONS, st.dictionaries(KEYS, NUMBERS, max_size=4)), max_size=3),
    tail=LINES,
)
def test_cfg(changed: list[tuple[tuple[str, str], str]], added: list[tuple[str, dict[str, str]]], tail: str) -> None:
    valid = {name: dict(options) for name, options in VALID_CFG.items()}
    for (name, key), value in changed:
        valid[name][key] = value
    texts = [
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items())
        for name, options in (*valid.items(), *added)
    ]
    for content in ("".join(texts[: len(valid)]), "".join(texts), "".join(texts) + tail):
        with suppress(InputError):
            build_darknet(content, "x.cfg")


def test_the_valid_cfg_is_valid() -> None:
    content = "".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items())
        for name, options in VALID_CFG.items()
    )
    assert len(build_darknet(content, "x.cfg").yolo_sections) == 1
