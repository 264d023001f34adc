"""Builds the network and the decoder of any model section of a config: native or from a Darknet cfg."""

from __future__ import annotations

import numpy as np
from torch import nn

from detector.anchors import split_anchors
from detector.config import ClassifierConfig, DarknetModelConfig, ModelConfig, StoredModel
from detector.darknet import DarknetNetwork, build_darknet
from detector.darknet.cfg import Section
from detector.errors import InputError
from detector.models.build import build_classifier, build_detector
from detector.models.layers import init_weights
from detector.postprocess import Decoder

DetectorModel = ModelConfig | DarknetModelConfig


def build_network(model: StoredModel) -> nn.Module:
    """A network with freshly drawn weights: images (B, 3, H, W) -> raw maps, or logits (B, C). Raises: InputError."""
    if isinstance(model, ModelConfig):
        return build_detector(model)
    if isinstance(model, ClassifierConfig):
        return build_classifier(model)
    network = build_darknet(model.darknet_cfg, "the stored cfg")
    require_detector(network, len(model.class_names), "the stored cfg")
    init_weights(network)
    return network


def build_decoder(model: DetectorModel, network: nn.Module) -> Decoder:
    """How to read the raw maps of `network`, which `build_network(model)` made."""
    if isinstance(model, ModelConfig):
        strides: tuple[int, ...] = network.strides  # type: ignore[assignment]
        anchors_wh = split_anchors(model.anchors, len(strides)).numpy()
        return Decoder(tuple(anchors_wh), strides, scale_xy=(1.0,) * len(strides))
    assert isinstance(network, DarknetNetwork)
    yolos = network.yolo_sections
    return Decoder(
        anchors_wh=tuple(np.array(yolo.anchors_wh, np.float32) for yolo in yolos),
        strides=network.strides,
        scale_xy=tuple(yolo.scale_xy for yolo in yolos),
        new_coords=yolos[0].new_coords,
        nms_beta=_nms_beta(yolos[0].section),
    )


def require_detector(network: DarknetNetwork, num_classes: int, where: str) -> None:
    """Raises: InputError unless the network has [yolo] sections, all alike, for this number of classes."""
    yolos = network.yolo_sections
    if not yolos:
        raise InputError(f"{where}: has no [yolo] section; it is a classifier, not a detector")
    if any(yolo.num_classes != num_classes for yolo in yolos):
        raise InputError(f"{where}: has classes={yolos[0].num_classes}, but {num_classes} class names are given")
    if len({yolo.new_coords for yolo in yolos}) > 1:
        raise InputError(f"{where}: new_coords differs between its [yolo] sections")


def _nms_beta(section: Section) -> float | None:
    kind = section.text("nms_kind", "default")
    if kind not in {"default", "greedynms", "diounms"}:
        raise section.error("nms_kind", "expected default, greedynms or diounms")
    return None if kind == "default" else section.number("beta_nms", 0.6)
