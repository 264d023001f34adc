"""Reads COCO's JSON files quickly, without the fields that are not used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import msgspec

from detector.errors import InputError

LARGEST_SIDE = 2**31 - 1
"""Pixels; a larger number in a file cannot be a size or a position."""


class CocoImage(msgspec.Struct, gc=False):
    """An image; its values are checked when it is added to a data set."""

    id: Any
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: Any = None


class CocoAnnotation(msgspec.Struct, gc=False):
    """An object; its values are checked when it is added to a data set."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = 0


class CocoCategory(msgspec.Struct, gc=False):
    """A class."""

    id: Any
    name: Any


class CocoFile(msgspec.Struct):
    """An instances file, or an image_info file without annotations."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation] = []


class LabelledCocoFile(CocoFile, kw_only=True):
    """An instances file."""

    annotations: list[CocoAnnotation]


def read_coco_json(path: Path) -> CocoFile:
    """The content of a COCO file, without outlines and licences, which training does not need. Raises: InputError."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return _decode(content, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON: the file is empty") from error


def _decode(content: mmap, path: Path) -> CocoFile:
    """Decodes strictly and quickly; Python's own parser reads what the JSON standard does not allow (NaN)."""
    kind = CocoFile if path.stem.startswith("image_info") else LabelledCocoFile  # COCO's test sets have no annotations
    try:
        with memoryview(content) as view:
            return msgspec.json.decode(view, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: is not a COCO instances file: {error}") from error
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.convert(json.loads(content[:].decode("utf-8-sig")), type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: is not a COCO instances file: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from error


def coco_annotation(
    number: int, *, image: int, label: int, box_xyxy: Sequence[float], crowd: bool = False
) -> dict[str, Any]:
    """An object in COCO's format; numbers from 0 become ids from 1."""
    x1, y1, x2, y2 = box_xyxy
    return {
        "id": number + 1,
        "image_id": image + 1,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(crowd),
    }


def coco_categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Classes in COCO's format, with ids from 1."""
    return [{"id": index + 1, "name": name} for index, name in enumerate(class_names)]


def is_coco_box(box: Any) -> bool:
    """Whether a value is x, y, width, height as numbers that an image can have."""
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(value, (int, float)) and abs(value) <= LARGEST_SIDE for value in box)
    )
