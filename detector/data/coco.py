"""COCO instances JSON, with its sparse category ids and crowd regions."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from detector.data.coco_file import CocoAnnotation, is_coco_box, read_coco_json
from detector.data.dataset import DatasetBuilder, DetectionDataset
from detector.errors import InputError


def load_coco(
    annotations: Path, *, images_dir: Path | None, class_names: tuple[str, ...] | None, policy: str
) -> DetectionDataset:
    """Reads an instances file.

    Args:
        annotations: the JSON.
        images_dir: where the images are; None = `images/` beside the JSON, or the folder that COCO's own layout
            implies (annotations/instances_val2017.json -> val2017/).
        class_names: the classes in the order of the labels; None = the file's categories by id.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: the file is missing or is not a COCO instances file, the image folder is missing, or no image is
            usable.
    """
    content = read_coco_json(annotations)
    folder = images_dir or _find_images_dir(annotations)
    names = {item.id: str(item.name) for item in content.categories}
    if class_names is None:
        class_names = tuple(names[key] for key in sorted(names))
    builder = DatasetBuilder(str(annotations), class_names, policy)
    by_image: dict[Any, list[tuple[int, CocoAnnotation]]] = defaultdict(list)
    for number, item in enumerate(content.annotations):
        by_image[item.image_id].append((number, item))
    present = {entry.name for entry in os.scandir(folder)}
    for image in content.images:
        where, objects = f"{annotations}, image {image.id}", by_image.pop(image.id, [])
        if image.file_name not in present and not (folder / str(image.file_name)).is_file():
            builder.report(where, "missing_image", str(folder / str(image.file_name)), "image dropped")
            continue
        if not all(isinstance(side, (int, float)) and side >= 1 for side in (image.height, image.width)):
            size = f"{image.width!r} x {image.height!r}"
            builder.report(where, "unreadable_annotation", f"its size is {size}", "image dropped")
            continue
        builder.add_image(folder / image.file_name, image_id=image.id, size_hw=(int(image.height), int(image.width)))
        for number, item in objects:
            _add_object(builder, item, names, f"{where}, annotation {number if item.id is None else item.id}")
        objects.clear()
    for image_id, orphans in by_image.items():
        builder.report(
            str(annotations), "missing_image", f"{len(orphans)} annotations refer to image {image_id}", "object dropped"
        )
    return builder.build(coco_json=annotations)


def _add_object(builder: DatasetBuilder, item: CocoAnnotation, names: dict[Any, str], where: str) -> None:
    if not is_coco_box(item.bbox):
        return builder.report(where, "not_finite", f"bbox {item.bbox!r}", "object dropped")
    x, y, w, h = (float(value) for value in item.bbox)
    name = names.get(item.category_id, f"category {item.category_id}")
    return builder.add_object((x, y, x + w, y + h), name, crowd=bool(item.iscrowd), where=where)


def _find_images_dir(annotations: Path) -> Path:
    official = annotations.parent.parent / annotations.stem.removeprefix("instances_").removeprefix("image_info_")
    test_dev = official.with_name(official.name.replace("test-dev", "test"))  # test-dev is a subset of test
    candidates = list(dict.fromkeys([annotations.parent / "images", official, test_dev]))
    for folder in candidates:
        if folder.is_dir():
            return folder
    tried = " or ".join(str(folder) for folder in candidates)
    raise InputError(f"{annotations}: expected its images in {tried}; give the image folder with --images")
