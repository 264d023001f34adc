"""Class names of Darknet models: a text file with one name per line."""

from __future__ import annotations

from pathlib import Path

from detector.errors import InputError, read_text

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
        InputError: the file is missing or empty.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of class names")
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: has no class names; expected one per line")
    if len(names) == _COCO_CLASSES and names[0] == "person":
        names = [_COCO_WORDS.get(name, name) for name in names]
    return tuple(names)


def find_names(cfg_path: Path, num_classes: int) -> tuple[str, ...]:
    """The names for a cfg when none are given: a *.names file with as many names beside it, else class0, class1, ..."""
    for path in sorted(cfg_path.parent.glob("*.names")):
        names = read_names(path)
        if len(names) == num_classes:
            return names
    return tuple(f"class{index}" for index in range(num_classes))
