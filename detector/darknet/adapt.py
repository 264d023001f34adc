"""A cfg for other classes: what people edit by hand to train a public model on their own data."""

from __future__ import annotations

from detector.darknet.cfg import format_cfg, parse_cfg
from detector.errors import InputError


def for_classes(cfg_text: str, num_classes: int, where: str) -> str:
    """The cfg with this number of classes in each [yolo] section, and as many filters before it as they need.

    Args:
        cfg_text: of a detector.
        num_classes: of the data.
        where: the file's name, for errors.

    Raises:
        InputError: it is not a cfg with [yolo] sections, each after a [convolutional] one.
    """
    sections = parse_cfg(cfg_text, where)
    changed: list[tuple[str, dict[str, object]]] = []
    for section in sections:
        options: dict[str, object] = {key: text for key, (text, _) in section.options.items()}
        if section.name == "yolo":
            options["classes"] = num_classes
            name, before = changed[-1]
            if name != "convolutional":
                raise InputError(f"{section.where}, line {section.line}: [yolo] has no [convolutional] before it")
            anchors = len(section.integers("mask")) or section.integer("num", 1)
            before["filters"] = anchors * (5 + num_classes)
        changed.append((section.name, options))
    if not any(name == "yolo" for name, _ in changed):
        raise InputError(f"{where}: has no [yolo] section; it is a classifier, not a detector")
    return format_cfg(changed)
