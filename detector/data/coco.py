"""COCO instances JSON, with its sparse category ids and crowd regions; every value is checked when it is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detector.data.coco_file import (
    LARGEST_SIDE,
    CocoAnnotation,
    CocoCategory,
    CocoFile,
    CocoImage,
    is_coco_box,
    read_coco_json,
)
from detector.data.dataset import DatasetBuilder
from detector.data.images import read_image_size
from detector.data.locate import ImageFinder
from detector.errors import InputError

Key = int | str
"""An id: a whole number, or text that is not one."""
_TRUTH = {None: False, 0: False, 1: True, "": False, "0": False, "1": True}
"""What `iscrowd` may be; false and true are 0 and 1."""


def fill_from_coco(
    builder: DatasetBuilder, annotations: Path, root: Path, images_dir: Path | None = None
) -> list[int] | None:
    """Adds the images of an instances file; returns the file's id of each class.

    Ids may be whole numbers or text; the text "1" is the number 1. Categories of one name are one class. What cannot
    be used is reported with file, object, rule and value.

    Args:
        builder: what they are added to; without class names it gets the file's categories, by id.
        annotations: the JSON.
        root: the folder in which its images are looked for.
        images_dir: where they are looked for first; then `images/` beside the JSON, the folder of the JSON, and the one
            that COCO's own layout implies (annotations/instances_val2017.json -> val2017/).

    Raises:
        InputError: the file is missing or is not a COCO instances file, an id is not one or is used twice, the image
            folder is missing.
    """
    content = read_coco_json(annotations)
    finder = ImageFinder(root, *_image_folders(annotations, images_dir))
    names = _used_first(_category_names(content, annotations), content)
    if builder.class_names is None:
        builder.set_class_names(tuple(dict.fromkeys(names.values())))
    for name in sorted(name for name, count in Counter(names.values()).items() if count > 1):
        builder.report(str(annotations), "duplicate_category", f"several categories are called {name!r}", "merged")
    by_image: dict[Any, list[tuple[int, CocoAnnotation]]] = defaultdict(list)
    for number, item in enumerate(content.annotations):
        by_image[_as_key(item.image_id)].append((number, item))
    _require_distinct_images(content.images, annotations)
    for image in content.images:
        key = _as_key(image.id)
        where, objects = f"{annotations}, image {image.id}", by_image.pop(key, [])
        path = finder.find(_file_name(image), annotations)
        if path is None:
            value = finder.describe(_file_name(image) or "file name", annotations)
            builder.report(where, "missing_image", value, "image dropped")
            continue
        size_hw = _size(builder, image, path, where)
        if size_hw is None:
            continue
        assert key is not None, "checked before"
        builder.add_image(path, image_id=key, size_hw=size_hw)
        for number, item in objects:
            _add_object(builder, item, names, f"{where}, annotation {number if item.id is None else item.id}")
        objects.clear()
    for image_id, orphans in by_image.items():
        builder.report(
            str(annotations), "missing_image", f"{len(orphans)} annotations refer to image {image_id}", "object dropped"
        )
    finder.report(builder)
    return _ids_of(builder.class_names or (), names)


def _file_name(image: CocoImage) -> str:
    """The image's file; LVIS states only the address of COCO's."""
    return str(image.file_name or "/".join(str(image.coco_url or "").split("/")[-2:]))


def _image_folders(annotations: Path, images_dir: Path | None) -> list[Path]:
    if images_dir is not None:
        return [images_dir]
    folder = annotations.parent
    subset = annotations.stem.removeprefix("instances_").removeprefix("image_info_")
    names = dict.fromkeys([subset, subset.replace("test-dev", "test")])  # test-dev is a subset of test
    official = [parent / name for parent in (folder.parent, folder.parent / "images") for name in names]
    return [path for path in (folder / "images", *official, folder, folder.parent / "images") if path.is_dir()]


def _as_key(value: Any) -> Key | None:
    """An id as it is compared; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    text = str(value).strip()
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else value


def _number_first(key: Key) -> tuple[bool, int, str]:
    return isinstance(key, str), key if isinstance(key, int) else 0, str(key)


def _category_names(content: CocoFile, annotations: Path) -> dict[Key, str]:
    """The name of each category. Raises: InputError: an id or a name is not one, or an id is used twice."""
    names: dict[Key, str] = {}
    for number, category in enumerate(content.categories):
        key, where = _as_key(category.id), f"{annotations}, category {number + 1}"
        _require_category(category, key, where)
        assert key is not None
        if key in names:
            raise InputError(f"{where}: the id {category.id!r} is also that of {names[key]!r}; give each its own")
        names[key] = str(category.name)
    return names


def _used_first(names: Mapping[Key, str], content: CocoFile) -> dict[Key, str]:
    """The categories by id; of those with one name, the ones with objects first (Roboflow repeats a class as id 0)."""
    used = {_as_key(item.category_id) for item in content.annotations}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    unused = {key for key, name in names.items() if name in repeated and key not in used}
    return {key: names[key] for key in sorted(names, key=lambda key: (key in unused, _number_first(key)))}


def _require_category(category: CocoCategory, key: Key | None, where: str) -> None:
    if key is None:
        raise InputError(f"{where}: id: expected a whole number or text, got {category.id!r}")
    if not isinstance(category.name, (str, int, float)) or not str(category.name).strip():
        raise InputError(f"{where}: name: expected text, got {category.name!r}")


def _require_distinct_images(images: list[CocoImage], annotations: Path) -> None:
    """Raises: InputError: an id is not one, or two images share an id or a file."""
    files: dict[Key, str] = {}
    keys: dict[str, Key] = {}
    for number, image in enumerate(images):
        key, name = _as_key(image.id), _file_name(image)
        if key is None:
            raise InputError(
                f"{annotations}, image {number + 1}: id: expected a whole number or text, got {image.id!r}"
            )
        if key in files:
            raise InputError(
                f"{annotations}: {files[key]} and {name} have the same image id {image.id!r}; give each image its own"
            )
        if name in keys:
            raise InputError(f"{annotations}: {name} has the image ids {keys[name]!r} and {image.id!r}; keep one")
        files[key], keys[name] = name, key


def _size(builder: DatasetBuilder, image: CocoImage, path: Path, where: str) -> tuple[int, int] | None:
    """Height and width: the file's, or where it states none those of the image itself; None = reported."""
    sides = (image.height, image.width)
    if all(
        isinstance(side, (int, float)) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in sides
    ):
        return int(image.height), int(image.width)
    if not all(side is None or (isinstance(side, (int, float)) and side <= 0) for side in sides):
        value = f"its size is {image.width!r:.40} x {image.height!r:.40}"
        builder.report(where, "unreadable_annotation", value, "image dropped")
        return None
    try:
        return read_image_size(path)
    except InputError as error:
        builder.report(where, "unreadable_image", str(error), "image dropped")
        return None


def _add_object(builder: DatasetBuilder, item: CocoAnnotation, names: Mapping[Key, str], where: str) -> None:
    box = _as_list(item.bbox)
    if not is_coco_box(box):
        return builder.report(where, "not_finite", f"bbox {item.bbox!r:.80}", "object dropped")
    try:
        crowd = _TRUTH[item.iscrowd]
    except (KeyError, TypeError):
        return builder.report(where, "unreadable_annotation", f"iscrowd {item.iscrowd!r}", "object dropped")
    x, y, w, h = (float(value) for value in box)
    key = _as_key(item.category_id)
    name = names.get(key, f"category {item.category_id}") if key is not None else f"category {item.category_id}"
    return builder.add_object((x, y, x + w, y + h), name, crowd=crowd, where=where, area=_area(item.area))


def _as_list(box: Any) -> Any:
    """Imglab writes the box as a mapping."""
    if isinstance(box, Mapping) and box.keys() >= {"x", "y"}:
        return [box["x"], box["y"], box.get("width", box.get("w")), box.get("height", box.get("h"))]
    return box


def _area(value: Any) -> float | None:
    """The stated area; None where it is not a positive number."""
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return area if 0 < area < float("inf") else None


def _ids_of(class_names: tuple[str, ...], names: Mapping[Key, str]) -> list[int] | None:
    """The file's id of each class, for result files; None where its ids are not numbers.

    A class that the file does not know gets an id that no category has.
    """
    if not all(isinstance(key, int) for key in names):
        return None
    by_name: dict[str, int] = {}
    for key, name in names.items():  # of equal names the first one
        by_name.setdefault(name, int(key))
    lowest = min((0, *by_name.values()))
    return [by_name.get(name, lowest - 1 - index) for index, name in enumerate(class_names)]
