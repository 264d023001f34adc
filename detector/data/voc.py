"""Pascal VOC: one XML for each image, in any folder, with or without the lists of ImageSets/Main."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from detector.data.dataset import DatasetBuilder
from detector.data.images import read_image_size
from detector.data.locate import ImageFinder
from detector.errors import InputError
from detector.files import Finder, decode_text, read_list

Corners = tuple[float, float, float, float]
_CLASS_FLAG = re.compile(r"(.*\S)\s+(?:-1|0|1)")
"""A line of a class list, such as `aeroplane_train.txt`: the image, and whether the class is in it."""


def list_voc_splits(root: Path) -> dict[str, Path]:
    """The lists of a VOC root by their names, without those of single classes."""
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    return {name: path for name, path in lists.items() if not _is_class_list(path)}


def _is_class_list(path: Path) -> bool:
    lines = read_list(path)
    return bool(lines) and "_" in path.stem and all(_CLASS_FLAG.fullmatch(line) for line in lines)


def fill_from_list(builder: DatasetBuilder, listing: Path, root: Path) -> None:
    """Adds the images of a list in ImageSets/Main, one a line, with or without a suffix.

    Coordinates are read as 0-based corners, which today's labelling tools write; the original VOC files count from 1,
    which shifts a box by one pixel. Objects marked "difficult" become crowd: they are not training targets, and
    missing them is not an error.
    """
    annotations = Finder(root / "Annotations")
    lines = read_list(listing)
    if lines and all(_CLASS_FLAG.fullmatch(line) for line in lines):
        lines = [_CLASS_FLAG.sub(r"\1", line) for line in lines]
    files: dict[Path, str] = {}
    for line in lines:
        found = annotations.find(f"{line}.xml") or annotations.find(f"{Path(line).stem}.xml")
        files.setdefault(found or root / "Annotations" / f"{line}.xml", Path(found or line).stem)
    if len(lines) > len(files):
        builder.report(str(listing), "duplicate_image", f"{len(lines) - len(files)} repeated lines", "image dropped")
    fill_from_files(builder, list(files), root)


def fill_from_files(builder: DatasetBuilder, files: Sequence[Path], root: Path) -> None:
    """Adds the images of annotation files."""
    images = ImageFinder(root)
    for path in files:
        tree = parse_xml(path)
        if isinstance(tree, str):
            builder.report(str(path), "unreadable_annotation", tree, "image dropped")
        elif tree.tag != "annotation":
            builder.report(str(path), "unreadable_annotation", f"<{tree.tag}>: is not VOC", "file dropped")
        else:
            _add(builder, images, path, tree)
    images.report(builder)


def parse_xml(path: Path) -> ElementTree.Element | str:
    """The root element, or why there is none."""
    try:
        content = path.read_bytes()
        declared = re.match(rb"""<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["']""", content)
        if declared and declared[1].lower() not in {b"utf-8", b"utf-16"}:
            text = content.decode(declared[1].decode())
        else:
            text = decode_text(content, str(path))
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))  # noqa: S314 (expat limits expansion)
    except OSError as error:
        return error.strerror or str(error)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return f"not valid XML: {error}"


def _add(builder: DatasetBuilder, images: ImageFinder, path: Path, tree: ElementTree.Element) -> None:
    image_path = images.find(path.stem, path, any_suffix=True) or images.find(tree.findtext("filename", ""), path)
    if image_path is None:
        return builder.report(str(path), "missing_image", images.describe(f"{path.stem}.*", path), "image dropped")
    size_hw = (_integer(tree.findtext("size/height")), _integer(tree.findtext("size/width")))
    if min(size_hw) <= 0:
        try:
            size_hw = read_image_size(image_path)
        except InputError as error:
            return builder.report(str(image_path), "unreadable_image", str(error), "image dropped")
    builder.add_image(image_path, size_hw=size_hw)
    for number, item in enumerate(tree.iter("object"), 1):
        builder.add_object(
            _box(item),
            item.findtext("name", "").strip(),
            crowd=item.findtext("difficult", "0").strip() == "1",
            where=f"{path}, object {number}",
        )
    return None


def _box(item: ElementTree.Element) -> Corners:
    """The box of an object; that around its polygon or rotated box where it has no other."""
    if item.find("bndbox") is None and (rotated := item.find("robndbox")) is not None:
        values = {key: number(rotated.findtext(key)) for key in ("cx", "cy", "w", "h", "angle")}
        if not all(map(math.isfinite, values.values())):
            return (math.nan,) * 4
        cosine, sine = abs(math.cos(values["angle"])), abs(math.sin(values["angle"]))
        w = (values["w"] * cosine + values["h"] * sine) / 2
        h = (values["w"] * sine + values["h"] * cosine) / 2
        return values["cx"] - w, values["cy"] - h, values["cx"] + w, values["cy"] + h
    if item.find("bndbox") is None and (polygon := item.find("polygon")) is not None:
        return box_around(_points(polygon))
    x1, y1, x2, y2 = (number(item.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    return x1, y1, x2, y2


def _points(polygon: ElementTree.Element) -> list[tuple[float, float]]:
    """`<pt><x/><y/></pt>` (LabelMe's old XML) or `<x1/><y1/><x2/><y2/>` (Roboflow)."""
    if polygon.find("pt") is not None:
        return [(number(point.findtext("x")), number(point.findtext("y"))) for point in polygon.iter("pt")]
    values: Mapping[str, float] = {element.tag: number(element.text) for element in polygon}
    keys = [tag[1:] for tag in values if tag.startswith("x")]
    return [(values[f"x{key}"], values.get(f"y{key}", math.nan)) for key in keys]


def box_around(points: Iterable[tuple[float, float]]) -> Corners:
    """The box around some points; NaN where there is none."""
    pairs = list(points)
    if not pairs or not all(math.isfinite(x + y) for x, y in pairs):
        return (math.nan,) * 4
    x, y = zip(*pairs, strict=True)
    return min(x), min(y), max(x), max(y)


def number(text: str | None) -> float:
    """The number; NaN if the text is not a number, so that the rule `not_finite` reports it."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _integer(text: str | None) -> int:
    value = number(text)
    return int(value) if value == value and abs(value) < 1e9 else 0
