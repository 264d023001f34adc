"""YOLO text labels: `class cx cy w h` as shares of the image, listed by a data.yaml or a Darknet .data file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from detector.config import read_yaml
from detector.data.dataset import DatasetBuilder, DetectionDataset
from detector.data.images import IMAGE_SUFFIXES, list_images, read_image_size
from detector.errors import InputError, read_text

_DARKNET_SPLITS = {"val": "valid"}
_IMAGE_FOLDERS = {"images", "JPEGImages"}
"""Folders of images that have a folder `labels` beside them."""
_LISTS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}
_NOT_IMAGES = {".txt", ".json", ".xml", ".yaml", ".yml", ".csv", ".md", ".cache", ".names", ".data", ".cfg"}


def list_yolo_splits(path: Path) -> list[str]:
    """The splits that a data.yaml or .data file names."""
    _, splits = _read_index(path)
    return list(splits)


def load_yolo(path: Path, split: str, *, class_names: tuple[str, ...] | None, policy: str) -> DetectionDataset:
    """Reads one split.

    Args:
        path: data.yaml (`names`, `train`, `val`, ..., optional `path`) or .data (`names`, `train`, `valid`).
        split: a key of that file; `val` also finds Darknet's `valid`.
        class_names: the classes in the order of the labels; None = the file's.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: the file or the split is missing or has no readable image.
    """
    file_names, splits = _read_index(path)
    source = splits.get(split) or splits.get(_DARKNET_SPLITS.get(split, ""))
    if source is None:
        raise InputError(f"{path}: no split {split!r}; expected one of {', '.join(splits) or 'none'}")
    builder = DatasetBuilder(f"{path} ({split})", class_names or file_names, policy)
    seen: set[Path] = set()
    unlabelled: list[Path] = []
    for image_path in _list_split_images(source, path, builder):
        if image_path in seen:
            builder.report(str(image_path), "duplicate_image", "appears twice in the list", "image dropped")
            continue
        seen.add(image_path)
        if not _add(builder, image_path, file_names):
            unlabelled.append(image_path)
    _report_unlabelled(builder, unlabelled, len(seen))
    return builder.build()


def _read_index(path: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Class names, and for each split the folders or lists that make it up."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".data":
        return _read_darknet_data(path)
    content = read_yaml(path)
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{path}: expected a mapping with names: and train:/val:")
    names = content["names"]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: names: expected a list, or a mapping from 0, 1, 2, ... without gaps, got {names!r}")
    root = path.parent / str(content.get("path") or "")
    splits = {}
    for key in ("train", "val", "test"):
        value = content.get(key)
        if value:
            splits[key] = [root / str(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(str(name) for name in names), splits


def _read_darknet_data(path: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
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
    names_file = _beside(path, pairs["names"])
    if not names_file.is_file():
        raise InputError(f"{path}: its names file {names_file} does not exist")
    names = tuple(line.strip() for line in read_text(names_file).splitlines() if line.strip())
    return names, {key: [_beside(path, pairs[key])] for key in ("train", "valid", "test") if key in pairs}


def _beside(path: Path, target: str) -> Path:
    """A path that the file `path` names: relative to that file, or else, as in Darknet, to the working folder."""
    beside = path.parent / target
    return beside if beside.exists() or not Path(target).exists() else Path(target)


def _list_split_images(sources: list[Path], index: Path, builder: DatasetBuilder) -> list[Path]:
    images: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = list_images(source)
            _report_left_out(builder, source, found)
            images += found
        elif source.suffix == ".txt" and source.is_file():
            lines = read_text(source).splitlines()
            images += [_beside(source, line.strip()) for line in lines if line.strip()]
        else:
            raise InputError(f"{index}: expected a folder or a list of images (.txt), but {source} is neither")
    return images


def _report_left_out(builder: DatasetBuilder, folder: Path, images: list[Path]) -> None:
    """Reports files of a folder of images that are not read, and label files without an image."""
    stems = {image.stem for image in images}
    suffixes = Counter(
        path.suffix.lower()
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() not in {*IMAGE_SUFFIXES, *_NOT_IMAGES}
    )
    for suffix, count in suffixes.items():
        value = f"{count} files {suffix or 'without a suffix'}; images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        builder.report(str(folder), "left_out", value, "files not read")
    for labels in {_label_folder(folder), folder}:
        for path in sorted(labels.glob("*.txt")) if labels.is_dir() else []:
            if path.stem not in stems and path.name not in _LISTS:
                builder.report(str(path), "label_without_image", f"no image {path.stem}.* in {folder}", "file not read")


def _label_folder(folder: Path) -> Path:
    """.../images/train -> .../labels/train (the last folder with the name of one of images); else the folder itself."""
    parts = list(folder.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] in _IMAGE_FOLDERS:
            parts[position] = "labels"
            return Path(*parts)
    return folder


def _label_path(image_path: Path) -> Path:
    """The label file in the folder `labels` that belongs to the image's folder; else the .txt beside the image."""
    candidate = _label_folder(image_path.parent) / f"{image_path.stem}.txt"
    return candidate if candidate.is_file() else image_path.with_suffix(".txt")


def _report_unlabelled(builder: DatasetBuilder, unlabelled: list[Path], num_images: int) -> None:
    """Images without a label file have no objects; where most have one, each is reported, and where none has, that."""
    if unlabelled and len(unlabelled) == num_images:
        expected = _label_folder(unlabelled[0].parent) / f"{unlabelled[0].stem}.txt"
        value = f"none of {num_images} images has a label file; the first was expected at {expected}"
        builder.report(str(unlabelled[0]), "missing_labels", value, "images without objects")
    elif 2 * len(unlabelled) < num_images:
        for image in unlabelled:
            builder.report(str(image), "missing_labels", "no label file; most images have one", "image without objects")


def _add(builder: DatasetBuilder, image_path: Path, file_names: tuple[str, ...]) -> bool:
    """Adds an image with its objects; whether it has a label file, or none is wanted of it."""
    if not image_path.is_file() or image_path.suffix.lower() not in IMAGE_SUFFIXES:
        builder.report(str(image_path), "missing_image", "no such image", "image dropped")
        return True
    try:
        height, width = read_image_size(image_path)
    except InputError as error:
        builder.report(str(image_path), "unreadable_image", str(error), "image dropped")
        return True
    builder.add_image(image_path, image_id=image_path.stem, size_hw=(height, width))
    labels = _label_path(image_path)
    if not labels.is_file():
        return False
    try:
        text = read_text(labels)
    except InputError as error:
        builder.report(str(labels), "unreadable_annotation", str(error), "objects dropped")
        return True
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            _add_line(builder, line, f"{labels}, line {number}", file_names, (height, width))
    return True


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
