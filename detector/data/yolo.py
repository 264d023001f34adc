"""YOLO text labels: `class cx cy w h` as shares of the image, with or without a data.yaml or a Darknet .data file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detector.config import read_texts
from detector.data.dataset import DatasetBuilder
from detector.data.images import read_image_size
from detector.data.splits import group_by_split
from detector.errors import InputError
from detector.files import (
    SHOWN_SUFFIXES,
    Finder,
    is_file,
    is_image_name,
    list_files,
    list_images,
    read_class_names,
    read_list,
    read_text,
    require_distinct,
)

_IMAGE_FOLDERS = {"images", "JPEGImages"}
"""Folders of images that have a folder `labels` beside them."""
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_LISTS = {*_NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt"}
_NOT_IMAGES = {".txt", ".json", ".xml", ".yaml", ".yml", ".csv", ".md", ".cache", ".names", ".data", ".cfg", ".labels"}
Index = tuple[tuple[str, ...], dict[str, list[Path]]]
"""Class names, and for each split the folders, lists or images that make it up."""


def read_index(path: Path) -> Index:
    """What a data.yaml or .data file says. Raises: InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return _read_darknet_data(path) if path.suffix == ".data" else _read_data_yaml(path)


def has_names(path: Path) -> bool:
    """Whether a YAML file is a data.yaml."""
    try:
        content = read_texts(path)
    except InputError:
        return False
    return isinstance(content, dict) and "names" in content and bool({"train", "val", "test"} & content.keys())


def _read_data_yaml(path: Path) -> Index:
    content = read_texts(path)
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{path}: expected a mapping with names: and train:/val:")
    names = content["names"]
    if isinstance(names, dict):
        numbers = [str(index) for index in range(len(names))]
        names = [names[key] for key in numbers] if set(names) == set(numbers) else names
    if isinstance(names, str) and names:
        names_file = Finder(path.parent).find(names)
        names = list(read_class_names(names_file)) if names_file else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: names: expected a list, or a mapping from 0, 1, 2, ... without gaps, got {names!r}")
    root = Finder(path.parent).find(content.get("path") or ".") or path.parent
    splits = {}
    for key in ("train", "val", "valid", "test"):
        value = content.get(key)
        if value:
            finder = Finder(root, path.parent)
            splits[key] = [_source(finder, item) for item in (value if isinstance(value, list) else [value])]
    return require_distinct(names, str(path)), splits


def _source(finder: Finder, name: str) -> Path:
    return finder.find(name) or finder.folders[0] / name


def _read_darknet_data(path: Path) -> Index:
    pairs = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"{path}, line {number}: expected key = value, got {text!r}")
        pairs[key.strip()] = value.strip()
    if "names" not in pairs:
        raise InputError(f"{path}: expected a line names = FILE")
    finder = _beside(path)
    names_file = finder.find(pairs["names"])
    if names_file is None:
        raise InputError(f"{path}: its names file {path.parent / pairs['names']} does not exist")
    splits = {key: [_source(finder, pairs[key])] for key in ("train", "valid", "test") if pairs.get(key)}
    return read_class_names(names_file), splits


def _beside(path: Path) -> Finder:
    """Names in a file start from its own folder, or else, as in Darknet, from the working folder."""
    return Finder(path.parent, Path())


def find_loose(root: Path, files: Sequence[Path]) -> Index | None:
    """A folder with images and label files but without an index; None where it is not one."""
    images = [path for path in files if is_image_name(path)]
    if not images or not any(_is_label_file(path) for path in files if path.suffix == ".txt"):
        return None
    names_file = next((path for name in _NAME_FILES for path in files if path.name == name), None)
    names_file = names_file or next((path for path in files if path.suffix == ".names"), None)
    names = read_class_names(names_file) if names_file else _numbered(files)
    lists = {path.stem: [path] for path in files if path.name in _LISTS - set(_NAME_FILES) and path.parent == root}
    return names, lists or group_by_split(images, root)


def _is_label_file(path: Path) -> bool:
    if path.name in _LISTS:
        return False
    try:
        lines = [line.replace(",", " ").split() for line in read_text(path).splitlines()[:5] if line.strip()]
        return bool(lines) and all(len(line) >= 5 and line[0].isdigit() and float(line[1]) >= 0 for line in lines)
    except (InputError, ValueError):
        return False


def _numbered(files: Sequence[Path]) -> tuple[str, ...]:
    """class0, class1, ... as many as the label files use."""
    keys = [0]
    for path in files:
        if path.suffix == ".txt" and _is_label_file(path):
            keys += [int(line.split()[0]) for line in read_text(path).splitlines() if line.split()[:1] != []]
    return tuple(f"class{index}" for index in range(max(keys) + 1))


def fill(builder: DatasetBuilder, index: Path, names: tuple[str, ...], sources: Sequence[Path]) -> None:
    """Adds the images of a split.

    Args:
        builder: what they are added to.
        index: the file or folder that names the sources.
        names: its class names.
        sources: folders of images, lists of images (.txt), or images.

    Raises:
        InputError: a source is missing.
    """
    owners: dict[Path, Path] = {}
    unlabelled: list[Path] = []
    images = _list_images(sources, index, builder)
    for image_path, count in Counter(images).items():
        if count > 1:
            builder.report(str(image_path), "duplicate_image", f"is listed {count} times", "read once")
        labels = _label_file(image_path)
        if labels is not None and labels in owners:
            value = f"belongs to {owners[labels].name} and {image_path.name}"
            builder.report(str(labels), "shared_labels", value, "both get its objects")
        if labels is not None:
            owners[labels] = image_path
        elif _exists(image_path):
            unlabelled.append(image_path)
        _add(builder, image_path, labels, names)
    _report_unlabelled(builder, unlabelled, len(set(images)))


def _list_images(sources: Sequence[Path], index: Path, builder: DatasetBuilder) -> list[Path]:
    images: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = list_images(source)
            _report_left_out(builder, source, found)
            images += found
        elif source.suffix == ".txt" and source.is_file():
            finder = _beside(source)
            images += [finder.find(line) or source.parent / line for line in read_list(source)]
            if finder.elsewhere:
                name, path = next(iter(finder.elsewhere.items()))
                value = f"{len(finder.elsewhere)} paths lead to other folders, such as {name}; found as {path}"
                builder.report(str(source), "found_elsewhere", value, "read there")
        elif is_image_name(source) and source.is_file():
            images.append(source)
        else:
            raise InputError(f"{index}: expected a folder or a list of images (.txt), but {source} is neither")
    return images


def _report_left_out(builder: DatasetBuilder, folder: Path, images: list[Path]) -> None:
    """Reports files of a folder of images that are not read, and label files without an image."""
    files = list_files(folder)
    suffixes = Counter(
        path.suffix.lower() for path in files if not is_image_name(path) and path.suffix.lower() not in _NOT_IMAGES
    )
    for suffix, count in suffixes.items():
        value = f"{count} files {suffix or 'without a suffix'}; expected {SHOWN_SUFFIXES}"
        builder.report(str(folder), "left_out", value, "files not read")
    stems = {image.stem for image in images}
    for labels in {_label_folders(folder)[0], folder}:
        for path in list_files(labels):
            if path.suffix == ".txt" and path.stem not in stems and path.name not in _LISTS:
                builder.report(str(path), "label_without_image", f"no image {path.stem}.* in {folder}", "file not read")


def _label_folders(folder: Path) -> list[Path]:
    """Where the labels of a folder of images may be, the likeliest first.

    .../images/train -> .../labels/train (the last folder with the name of one of images), the folder itself, `labels`
    in it or beside it.
    """
    parts = list(folder.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] in _IMAGE_FOLDERS:
            return [Path(*parts[:position], "labels", *parts[position + 1 :]), folder, folder / "labels"]
    return [folder, folder / "labels", folder.parent / "labels"]


def _label_file(image_path: Path) -> Path | None:
    """The label file of an image."""
    candidates = [folder / f"{image_path.stem}.txt" for folder in _label_folders(image_path.parent)]
    return next((path for path in candidates if is_file(path)), None)


def _report_unlabelled(builder: DatasetBuilder, unlabelled: list[Path], num_images: int) -> None:
    """Images without a label file have no objects; where most have one, each is reported, and where none has, that."""
    if unlabelled and len(unlabelled) == num_images:
        expected = _label_folders(unlabelled[0].parent)[0] / f"{unlabelled[0].stem}.txt"
        value = f"none of {num_images} images has a label file; the first was expected at {expected}"
        builder.report(str(unlabelled[0]), "missing_labels", value, "images without objects")
    elif 2 * len(unlabelled) < num_images:
        for image in unlabelled:
            builder.report(str(image), "missing_labels", "no label file; most images have one", "image without objects")


def _exists(image_path: Path) -> bool:
    return is_file(image_path) and is_image_name(image_path)


def _add(builder: DatasetBuilder, image_path: Path, labels: Path | None, names: tuple[str, ...]) -> None:
    """Adds an image with its objects."""
    if not _exists(image_path):
        return builder.report(str(image_path), "missing_image", "no such image", "image dropped")
    try:
        height, width = read_image_size(image_path)
    except InputError as error:
        return builder.report(str(image_path), "unreadable_image", str(error), "image dropped")
    builder.add_image(image_path, size_hw=(height, width))
    if labels is None:
        return None
    try:
        text = read_text(labels)
    except InputError as error:
        return builder.report(str(labels), "unreadable_annotation", str(error), "objects dropped")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            _add_line(builder, line, f"{labels}, line {number}", names, (height, width))
    return None


def _add_line(
    builder: DatasetBuilder, line: str, where: str, file_names: tuple[str, ...], size_hw: tuple[int, int]
) -> None:
    try:
        key, *shares = (float(value) for value in line.replace(",", " ").split())
        cx, cy, w, h = _box_of(line, shares)
        if not key.is_integer():
            raise ValueError(line)
    except (ValueError, OverflowError):
        return builder.report(where, "unreadable_annotation", f"{line.strip()[:60]!r}", "object dropped")
    name = file_names[int(key)] if 0 <= key < len(file_names) else f"class {int(key)}"
    height, width = size_hw
    box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    return builder.add_object(box, name, crowd=False, where=where)


def _box_of(line: str, shares: list[float]) -> tuple[float, float, float, float]:
    """Centre, width and height of an object as shares of the image.

    A line holds the box alone, the box and a confidence, the box and keypoints (x, y, visibility 0, 1 or 2 each), or
    the corners of a polygon, whose bounding box is meant.

    Raises:
        ValueError: something else.
    """
    rest = line.replace(",", " ").split()[5:]
    has_keypoints = len(rest) % 3 == 0 and all(visibility in {"0", "1", "2"} for visibility in rest[2::3])
    if len(shares) >= 4 and (len(rest) <= 1 or has_keypoints):
        return shares[0], shares[1], shares[2], shares[3]
    if len(shares) < 6 or len(shares) % 2:
        raise ValueError(line)
    x, y = shares[::2], shares[1::2]
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)
