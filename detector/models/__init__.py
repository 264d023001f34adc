"""The networks, and how a config names them."""

from __future__ import annotations

from collections.abc import Callable

from detector.config import ModelConfig
from detector.errors import InputError
from detector.models.classifier import Classifier
from detector.models.cspdarknet import CSPDarknet53
from detector.models.csppeleenet import CSPPeleeNet
from detector.models.cspresnet import CSPResNet, cspresnet50, cspresnext50
from detector.models.detector import Detector
from detector.models.efm import ExactFusionModel
from detector.models.layers import init_weights
from detector.models.yolo_head import YoloHead

Backbone = CSPPeleeNet | CSPDarknet53 | CSPResNet
Neck = ExactFusionModel


def _csppeleenet(config: ModelConfig) -> CSPPeleeNet:
    if config.gamma is None:
        raise InputError("model.gamma: csppeleenet needs a share between 0 and 1 (the paper's is 0.5), got null")
    return CSPPeleeNet(gamma=config.gamma, activation=config.activation)


def _without_gamma(config: ModelConfig) -> None:
    if config.gamma is not None:
        raise InputError(f"model.gamma: {config.backbone} has no gamma; expected null, got {config.gamma}")


def _cspdarknet53(config: ModelConfig) -> CSPDarknet53:
    _without_gamma(config)
    return CSPDarknet53(activation=config.activation)


def _cspresnet50(config: ModelConfig) -> CSPResNet:
    _without_gamma(config)
    return cspresnet50(activation=config.activation)


def _cspresnext50(config: ModelConfig) -> CSPResNet:
    _without_gamma(config)
    return cspresnext50(activation=config.activation)


def _efm(config: ModelConfig, backbone: Backbone) -> ExactFusionModel:
    return ExactFusionModel(
        in_channels=backbone.out_channels,
        in_strides=backbone.strides,
        attention=config.attention,
        activation=config.activation,
    )


BACKBONES: dict[str, Callable[[ModelConfig], Backbone]] = {
    "csppeleenet": _csppeleenet,
    "cspdarknet53": _cspdarknet53,
    "cspresnet50": _cspresnet50,
    "cspresnext50": _cspresnext50,
}
NECKS: dict[str, Callable[[ModelConfig, Backbone], Neck]] = {"efm": _efm}


def build_backbone(config: ModelConfig) -> Backbone:
    """The backbone that `config` names, not initialised. Raises: InputError for an unknown name or a wrong gamma."""
    if config.backbone not in BACKBONES:
        raise InputError(f"model.backbone: expected one of {', '.join(BACKBONES)}, got {config.backbone!r}")
    return BACKBONES[config.backbone](config)


def build_detector(config: ModelConfig) -> Detector:
    """A detector with freshly drawn weights: images (B, 3, H, W) -> raw maps (B, A*(5+C), H/s, W/s), s = 8, 16, 32.

    Consumes torch's global generator.

    Raises:
        InputError: a name that is not in BACKBONES or NECKS, or options that do not fit it.
    """
    if config.neck not in NECKS:
        raise InputError(f"model.neck: expected one of {', '.join(NECKS)}, got {config.neck!r}")
    backbone = build_backbone(config)
    neck = NECKS[config.neck](config, backbone)
    if len(neck.strides) != len(config.scale_xy):
        raise InputError(f"model.scale_xy: {config.neck} has {len(neck.strides)} scales, got {len(config.scale_xy)}")
    head = YoloHead(
        in_channels=neck.out_channels, anchors_per_scale=config.anchors_per_scale, num_classes=config.num_classes
    )
    detector = Detector(backbone=backbone, neck=neck, head=head, strides=neck.strides)
    init_weights(detector)
    head.init_prior()
    return detector


def build_classifier(config: ModelConfig, num_classes: int) -> Classifier:
    """A classifier on the backbone that `config` names, with freshly drawn weights."""
    backbone = build_backbone(config)
    classifier = Classifier(backbone=backbone, in_channels=backbone.out_channels[-1], num_classes=num_classes)
    init_weights(classifier)
    return classifier
