"""Class names of Darknet models: a text file with one name per line."""

from __future__ import annotations

from pathlib import Path

from detector.errors import InputError
from detector.files import read_class_names

# Darknet's coco.names uses other words for six of COCO's categories (those of Pascal VOC).
_COCO_WORDS = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
_COCO_CLASSES = 80


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a file; those of Darknet's coco.names become COCO's own, to match COCO's labels.

    Raises:
        InputError: see `read_class_names`.
    """
    names = read_class_names(path)
    if len(names) == _COCO_CLASSES and names[0] == "person":
        return tuple(_COCO_WORDS.get(name, name) for name in names)
    return names


def find_names(cfg_path: Path, num_classes: int) -> tuple[str, ...]:
    """The names for a cfg when none are given.

    Those of the .names file with the cfg's own stem; else those of the only *.names file of the right length beside
    it; else class0, class1, ...

    Raises:
        InputError: the cfg's own names are of another number, or several files fit and differ.
    """
    own = cfg_path.with_suffix(".names")
    if own.is_file():
        names = read_names(own)
        if len(names) != num_classes:
            raise InputError(f"{own}: has {len(names)} class names, {cfg_path} has {num_classes} classes; give --names")
        return names
    fitting = {path: read_names(path) for path in sorted(cfg_path.parent.glob("*.names"))}
    fitting = {path: names for path, names in fitting.items() if len(names) == num_classes}
    if len(set(fitting.values())) > 1:
        raise InputError(
            f"{cfg_path}: several files of {num_classes} class names are beside it ({', '.join(map(str, fitting))}); "
            "choose one with --names"
        )
    return next(iter(fitting.values()), tuple(f"class{index}" for index in range(num_classes)))
