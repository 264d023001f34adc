"""YOLO text labels: `class cx cy w h` as shares of the image, listed by a data.yaml or a Darknet .data file."""

from __future__ import annotations

from pathlib import Path

from detector.config import read_yaml
from detector.data.dataset import DatasetBuilder, DetectionDataset
from detector.data.images import IMAGE_SUFFIXES, list_images, read_image_size
from detector.errors import InputError, read_text

_DARKNET_SPLITS = {"val": "valid"}


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
    for image_path in _list_split_images(source, path):
        if image_path in seen:
            builder.report(str(image_path), "duplicate_image", "appears twice in the list", "image dropped")
            continue
        seen.add(image_path)
        _add(builder, image_path, file_names)
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
    """Darknet's paths are relative to the working folder; paths relative to the file are found as well."""
    return Path(target) if Path(target).exists() else path.parent / target


def _list_split_images(sources: list[Path], index: Path) -> list[Path]:
    images: list[Path] = []
    for source in sources:
        if source.is_dir():
            images += list_images(source)
        elif source.suffix == ".txt" and source.is_file():
            lines = read_text(source).splitlines()
            images += [_beside(source, line.strip()) for line in lines if line.strip()]
        else:
            raise InputError(f"{index}: expected a folder or a list of images (.txt), but {source} is neither")
    return images


def _label_path(image_path: Path) -> Path:
    """.../images/a.jpg -> .../labels/a.txt (the last folder named images); else the .txt beside the image."""
    parts = list(image_path.parts)
    if "images" in parts:
        position = len(parts) - 1 - parts[::-1].index("images")
        parts[position] = "labels"
        candidate = Path(*parts).with_suffix(".txt")
        if candidate.is_file():
            return candidate
    return image_path.with_suffix(".txt")


def _add(builder: DatasetBuilder, image_path: Path, file_names: tuple[str, ...]) -> None:
    if not image_path.is_file() or image_path.suffix.lower() not in IMAGE_SUFFIXES:
        return builder.report(str(image_path), "missing_image", "no such image", "image dropped")
    try:
        height, width = read_image_size(image_path)
    except InputError as error:
        return builder.report(str(image_path), "unreadable_image", str(error), "image dropped")
    builder.add_image(image_path, image_id=image_path.stem, size_hw=(height, width))
    labels = _label_path(image_path)
    if not labels.is_file():
        return None  # an image without a label file has no objects
    for number, line in enumerate(labels.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            _add_line(builder, line, f"{labels}, line {number}", file_names, (height, width))
    return None


def _add_line(
    builder: DatasetBuilder, line: str, where: str, file_names: tuple[str, ...], size_hw: tuple[int, int]
) -> None:
    try:
        key, cx, cy, w, h = (float(value) for value in line.split())
        if not key.is_integer():
            raise ValueError(line)
    except (ValueError, OverflowError):
        return builder.report(where, "unreadable_annotation", f"{line.strip()[:60]!r}", "object dropped")
    name = file_names[int(key)] if 0 <= key < len(file_names) else f"class {int(key)}"
    height, width = size_hw
    box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    return builder.add_object(box, name, crowd=False, where=where)
