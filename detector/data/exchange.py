"""Labels of other tools: LabelMe's JSON, CVAT's XML "for images", and the CSV of TensorFlow's examples."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.data.dataset import DatasetBuilder
from detector.data.images import read_image_size
from detector.data.locate import ImageFinder
from detector.data.voc import Corners, box_around, number, parse_xml
from detector.errors import InputError
from detector.files import read_text

CSV_COLUMNS = {"filename", "class", "xmin", "ymin", "xmax", "ymax"}


def fill_from_labelme(builder: DatasetBuilder, files: Sequence[Path], root: Path) -> None:
    """Adds images with one LabelMe JSON each; polygons and circles become the boxes around them."""
    images = ImageFinder(root)
    for path in files:
        try:
            content = json.loads(read_text(path))
            shapes, name = content["shapes"], str(content.get("imagePath") or "")
            size_hw = (content.get("imageHeight"), content.get("imageWidth"))
        except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            builder.report(str(path), "unreadable_annotation", f"not a LabelMe JSON: {error}", "image dropped")
            continue
        image = images.find(path.stem, path, any_suffix=True) or images.find(name, path)
        if not _add_image(builder, image, size_hw, images.describe(name or f"{path.stem}.*", path), path):
            continue
        for position, shape in enumerate(shapes if isinstance(shapes, list) else [], 1):
            where = f"{path}, shape {position}"
            fields = shape if isinstance(shape, Mapping) else {}
            builder.add_object(_shape_box(fields), str(fields.get("label") or "").strip(), crowd=False, where=where)
    images.report(builder)


def _shape_box(shape: Mapping[str, Any]) -> Corners:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        return (math.nan,) * 4
    if shape.get("shape_type") == "circle" and len(points) == 2:  # the centre, and a point on the circle
        (x, y), radius = points[0], math.dist(*points)
        return x - radius, y - radius, x + radius, y + radius
    return box_around(points)


def fill_from_cvat(builder: DatasetBuilder, files: Sequence[Path], root: Path) -> None:
    """Adds the images of CVAT's annotations.xml; polygons become the boxes around them."""
    images = ImageFinder(root)
    for path in files:
        tree = parse_xml(path)
        if isinstance(tree, str):
            builder.report(str(path), "unreadable_annotation", tree, "images dropped")
            continue
        for element in tree.iter("image"):
            name = element.get("name", "")
            size_hw = (number(element.get("height")), number(element.get("width")))
            if not _add_image(builder, images.find(name, path), size_hw, images.describe(name, path), path):
                continue
            for position, item in enumerate(element, 1):
                box = _cvat_box(item.attrib)
                if box is not None:
                    where = f"{path}, image {name}, object {position}"
                    builder.add_object(box, item.get("label", "").strip(), crowd=False, where=where)
    images.report(builder)


def _cvat_box(item: Mapping[str, str]) -> Corners | None:
    """The box of a CVAT object; None for a mask, a tag or a skeleton."""
    if "points" in item:
        pairs = [pair.split(",") for pair in item["points"].split(";") if pair.strip()]
        return box_around((number(pair[0]), number(pair[1]) if len(pair) > 1 else math.nan) for pair in pairs)
    if "xtl" in item:
        return (number(item["xtl"]), number(item.get("ytl")), number(item.get("xbr")), number(item.get("ybr")))
    return None


def is_box_csv(path: Path) -> bool:
    """Whether a CSV has the columns of boxes."""
    try:
        header = read_text(path).splitlines()[:1]
    except InputError:
        return False
    return bool(header) and {column.strip() for column in header[0].split(",")} >= CSV_COLUMNS


def fill_from_csv(builder: DatasetBuilder, files: Sequence[Path], root: Path) -> None:
    """Adds the images of a CSV with a line for each object: filename, width, height, class, xmin, ymin, xmax, ymax."""
    images = ImageFinder(root)
    for path in files:
        rows: dict[str, list[tuple[int, dict[str | Any, str | Any]]]] = {}
        for line, row in enumerate(csv.DictReader(read_text(path).splitlines(), skipinitialspace=True), 2):
            rows.setdefault(str(row.get("filename") or ""), []).append((line, row))
        for name, objects in rows.items():
            size_hw = (number(objects[0][1].get("height")), number(objects[0][1].get("width")))
            if not _add_image(builder, images.find(name, path), size_hw, images.describe(name, path), path):
                continue
            for line, row in objects:
                x1, y1, x2, y2 = (number(row.get(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
                class_name = str(row.get("class") or "").strip()
                builder.add_object((x1, y1, x2, y2), class_name, crowd=False, where=f"{path}, line {line}")
    images.report(builder)


def _add_image(
    builder: DatasetBuilder, image: Path | None, stated_hw: Iterable[Any], missing: str, label_file: Path
) -> bool:
    """Adds an image by the size that its labels state, or else its own; False = reported."""
    if image is None:
        builder.report(str(label_file), "missing_image", missing, "image dropped")
        return False
    height, width = (int(side) if isinstance(side, (int, float)) and 0 < side < 10**9 else 0 for side in stated_hw)
    try:
        builder.add_image(image, size_hw=(height, width) if height and width else read_image_size(image))
    except InputError as error:
        builder.report(str(image), "unreadable_image", str(error), "image dropped")
        return False
    return True
