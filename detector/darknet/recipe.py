"""The training settings in a cfg: its [net] and [yolo] sections as an experiment config.

Keys missing from the cfg have Darknet's defaults. Settings that Darknet does not have (workers, evaluation) have this
program's defaults. Every field can be overridden as with a YAML file.
"""

from __future__ import annotations

import logging
from typing import Any

from detector.darknet.cfg import Section
from detector.darknet.network import DarknetNetwork
from detector.errors import InputError

_LOG = logging.getLogger(__name__)
# Keys that change Darknet's training but not ours -> the values that have no effect.
_UNUSED_KEYS = {
    "angle": ("0",),
    "cutmix": ("0",),
    "mixup": ("0",),
    "resize": ("0", "1"),
    "focal_loss": ("0",),
    "objectness_smooth": ("0",),
    "max_delta": (),
    "uc_normalizer": (),
    "truth_thresh": ("1", "1.0"),
    "iou_thresh_kind": ("iou",),
}
_BOX_LOSSES = {"mse", "giou", "diou", "ciou"}


def experiment_tree(network: DarknetNetwork, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The sections of a `DetectConfig` as a tree; fields that a cfg does not have get their defaults.

    Raises:
        InputError: the cfg trains in a way that this program does not support; the error names the line.
    """
    net = network.net
    if not network.yolo_sections:
        raise InputError(f"{net.where}: has no [yolo] section; classifiers cannot be trained from a cfg")
    yolo = network.yolo_sections[-1].section
    _warn_of_unused_keys(net)
    for each in network.yolo_sections:
        _warn_of_unused_keys(each.section)
    _, height, width = network.size_chw
    return {
        "model": {"darknet_cfg": network.cfg_text, "class_names": list(class_names)},
        "preprocess": {
            "size_hw": [height, width],
            "letterbox": bool(net.integer("letter_box", 0)),
            "align_corners": False,  # Darknet trains on images that OpenCV resized
        },
        "data": {"root": ""},
        "augment": _augment(net, yolo, max(height, width)),
        "loss": _loss(yolo, net),
        "train": _train(net),
        "evaluate": {"every": 1000},
    }


def _warn_of_unused_keys(section: Section) -> None:
    """Warns of training keys that have no counterpart here and are ignored."""
    for key, neutral in _UNUSED_KEYS.items():
        if key in section and section.text(key, "") not in neutral:
            _, line = section.options[key]
            _LOG.warning("%s, line %d: %s is not used in training here", section.where, line, key)


def _augment(net: Section, yolo: Section, long_side: int) -> dict[str, Any]:
    multi_scale = None
    if yolo.number("random", 0):
        # Darknet: size * rand_scale(1.4), then up to the next multiple of 32 (train_detector)
        low, high = (32 * (int(long_side * factor / 32) + 1) for factor in (1 / 1.4, 1.4))
        multi_scale = {"min_size": low, "max_size": high, "every": 10}
    return {
        "jitter": yolo.number("jitter", 0.2),
        "hue": net.number("hue", 0),
        "saturation": max(net.number("saturation", 1), 1.0),
        "exposure": max(net.number("exposure", 1), 1.0),
        "horizontal_flip": 0.5 * net.integer("flip", 1),
        "mosaic": 0.5 * min(net.integer("mosaic", 0), 1),
        "multi_scale": multi_scale,
    }


def _loss(yolo: Section, net: Section) -> dict[str, Any]:
    box = yolo.text("iou_loss", "mse")
    if box not in _BOX_LOSSES:
        raise yolo.error("iou_loss", f"expected one of {', '.join(sorted(_BOX_LOSSES))}")
    return {
        "box": box,
        # today's default of .75 also scales mse; Darknet of 2019 did not
        "box_weight": yolo.number("iou_normalizer", 1.0 if box == "mse" else 0.75),
        "objectness_weight": yolo.number("obj_normalizer", 1),
        "class_weight": yolo.number("cls_normalizer", 1),
        "ignore_threshold": yolo.number("ignore_thresh", 0.5),
        "match_threshold": yolo.number("iou_thresh", 1),
        "label_smoothing": yolo.number("label_smooth_eps", net.number("label_smooth_eps", 0)),
    }


def _train(net: Section) -> dict[str, Any]:
    policy = net.text("policy", "constant")
    if policy not in {"steps", "constant"}:
        raise net.error("policy", "expected steps or constant for a detector")
    return {
        "max_steps": net.integer("max_batches", 500_000, minimum=1, maximum=1 << 31),
        "batch_size": net.integer("batch", 64, minimum=1),
        "subdivisions": net.integer("subdivisions", 1, minimum=1),
        "learning_rate": net.number("learning_rate", 0.001),
        "burn_in": net.integer("burn_in", 0, maximum=1 << 31),
        "policy": {
            "name": "steps",
            "steps": [int(step) for step in net.numbers("steps")] if policy == "steps" else [],
            "scales": net.numbers("scales") if policy == "steps" else [],
        },
        "momentum": net.number("momentum", 0.9),
        "weight_decay": net.number("decay", 0.0001),
        "save_every": 100,
    }
