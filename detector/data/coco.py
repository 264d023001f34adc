"""COCO instances JSON, with its sparse category ids and crowd regions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from detector.data.dataset import DatasetBuilder, DetectionDataset, is_coco_box
from detector.errors import InputError, read_text


def load_coco(
    annotations: Path, *, images_dir: Path | None, class_names: tuple[str, ...] | None, policy: str
) -> DetectionDataset:
    """Reads an instances file.

    Args:
        annotations: the JSON.
        images_dir: where the pictures are; None = `images/` beside the JSON, or the folder that COCO's own layout
            implies (annotations/instances_val2017.json -> val2017/).
        class_names: the classes in the order of the labels; None = the file's categories by id.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: the file is missing or is no COCO instances file, the pictures' folder is missing, or no image is
            usable.
    """
    content = read_coco_json(annotations)
    folder = images_dir or _find_images_dir(annotations)
    names = {item["id"]: str(item["name"]) for item in content["categories"]}
    if class_names is None:
        class_names = tuple(names[key] for key in sorted(names))
    builder = DatasetBuilder(str(annotations), class_names, policy)
    by_image: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, item in enumerate(content["annotations"]):
        by_image[item.get("image_id")].append((number, item))
    present = {path.name for path in folder.iterdir()}
    for image in content["images"]:
        where, objects = f"{annotations}, image {image['id']}", by_image.pop(image["id"], [])
        if image["file_name"] not in present and not (folder / image["file_name"]).is_file():
            builder.report(where, "missing_image", str(folder / image["file_name"]), "image dropped")
            continue
        if not all(isinstance(image[side], (int, float)) and image[side] >= 1 for side in ("height", "width")):
            size = f"{image['width']!r} x {image['height']!r}"
            builder.report(where, "unreadable_annotation", f"its size is {size}", "image dropped")
            continue
        builder.add_image(
            folder / image["file_name"], image_id=image["id"], size_hw=(int(image["height"]), int(image["width"]))
        )
        for number, item in objects:
            _add_object(builder, item, names, f"{where}, annotation {item.get('id', number)}")
    for image_id, orphans in by_image.items():
        builder.report(
            str(annotations), "missing_image", f"{len(orphans)} annotations name image {image_id}", "object dropped"
        )
    return builder.build(coco_json=annotations)


def read_coco_json(path: Path) -> dict[str, Any]:
    """The checked content of a COCO file with images, annotations and categories. Raises: InputError."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: no valid JSON: {error}") from error
    if isinstance(content, dict) and path.stem.startswith("image_info"):
        content.setdefault("annotations", [])  # COCO's test sets have none
    for key, needed in (
        ("images", ("id", "file_name", "height", "width")),
        ("annotations", ()),
        ("categories", ("id", "name")),
    ):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f"{path}: no COCO instances file: the list {key!r} is missing")
        for number, item in enumerate(items):
            lacking = [name for name in needed if name not in item] if isinstance(item, dict) else ["(no object)"]
            if lacking:
                raise InputError(f"{path}: {key}[{number}] lacks {', '.join(lacking)}")
    return dict(content)


def _add_object(builder: DatasetBuilder, item: dict[str, Any], names: dict[Any, str], where: str) -> None:
    if not is_coco_box(item.get("bbox")):
        return builder.report(where, "not_finite", f"bbox {item.get('bbox')!r}", "object dropped")
    x, y, w, h = (float(value) for value in item["bbox"])
    category = item.get("category_id")
    name = names.get(category, f"category {category}")
    return builder.add_object((x, y, x + w, y + h), name, crowd=bool(item.get("iscrowd", 0)), where=where)


def _find_images_dir(annotations: Path) -> Path:
    official = annotations.parent.parent / annotations.stem.removeprefix("instances_").removeprefix("image_info_")
    test_dev = official.with_name(official.name.replace("test-dev", "test"))  # a part of the same pictures
    candidates = list(dict.fromkeys([annotations.parent / "images", official, test_dev]))
    for folder in candidates:
        if folder.is_dir():
            return folder
    tried = " or ".join(str(folder) for folder in candidates)
    raise InputError(f"{annotations}: its pictures were expected in {tried}; give their folder with --images")
