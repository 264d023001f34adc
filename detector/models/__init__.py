"""The networks, and how a config names them."""

from __future__ import annotations

from collections.abc import Callable

from detector.config import BackboneConfig, ModelConfig
from detector.errors import InputError
from detector.models.classifier import Classifier
from detector.models.contract import Backbone, Neck
from detector.models.cspdarknet import CSPDarknet53, Darknet53
from detector.models.csppeleenet import CSPPeleeNet
from detector.models.cspresnet import cspresnet50, cspresnext50
from detector.models.densenet import cspdensenet201_elastic, densenet201_elastic
from detector.models.detector import Detector
from detector.models.efm import ExactFusionModel
from detector.models.fusion import ContextEnhancement, GlobalFusionModel
from detector.models.layers import init_weights
from detector.models.mobilenet import CSPMobileNetV2, efficientnet_b0, mobilenet_v2
from detector.models.peleenet import PeleeNet
from detector.models.prn import PartialResidualNeck
from detector.models.pyramid import PathAggregation, PeleeNetYolo, TinyPyramid, Yolov3Pyramid
from detector.models.reference import (
    DarknetReference,
    cspdensenet_reference,
    cspdensenetb_reference,
    csppeleenet_reference,
    csppeleenetb_reference,
)
from detector.models.resnet import CSPResNet10, ResNet10, resnet50, resnext50
from detector.models.yolo_head import YoloHead


def _csppeleenet(config: BackboneConfig) -> Backbone:
    if config.gamma is None:
        raise InputError("model.gamma: csppeleenet needs a share between 0 and 1 (the paper's is 0.5), got null")
    if config.fusion is None:
        raise InputError("model.fusion: csppeleenet needs csp (the paper's), first or last, got null")
    return CSPPeleeNet(
        gamma=config.gamma,
        fusion=config.fusion,
        activation=config.activation,
        squeeze_excite=config.squeeze_excite,
    )


def _peleenet(variant: str) -> Callable[[BackboneConfig], Backbone]:
    def build(config: BackboneConfig) -> Backbone:
        _refuse(config, "gamma", "fusion")
        return PeleeNet(variant=variant, activation=config.activation, squeeze_excite=config.squeeze_excite)

    return build


def _darknet_reference(variant: str) -> Callable[[BackboneConfig], Backbone]:
    def build(config: BackboneConfig) -> Backbone:
        _refuse(config, "gamma", "fusion", "squeeze_excite")
        return DarknetReference(variant=variant, activation=config.activation)

    return build


def _plain(make: Callable[..., Backbone]) -> Callable[[BackboneConfig], Backbone]:
    """For networks whose activation is their only option."""

    def build(config: BackboneConfig) -> Backbone:
        _refuse(config, "gamma", "fusion", "squeeze_excite")
        return make(activation=config.activation)

    return build


def _refuse(config: BackboneConfig, *options: str) -> None:
    given = [option for option in options if getattr(config, option)]
    if given:
        settings = " ".join(f"model.{name}={'false' if name == 'squeeze_excite' else 'null'}" for name in given)
        raise InputError(f"model.{given[0]}: {config.backbone} has no {' and no '.join(given)}; set {settings}")


BACKBONES: dict[str, Callable[[BackboneConfig], Backbone]] = {
    "csppeleenet": _csppeleenet,
    "peleenet": _peleenet("dense"),
    "sparsepeleenet": _peleenet("sparse"),
    "peleenext": _peleenet("grouped"),
    "csppeleenet_reference": _plain(csppeleenet_reference),
    "csppeleenetb_reference": _plain(csppeleenetb_reference),
    "cspdensenet_reference": _plain(cspdensenet_reference),
    "cspdensenetb_reference": _plain(cspdensenetb_reference),
    "darknet_reference": _darknet_reference("classifier"),
    "darknet_tiny": _darknet_reference("tiny"),
    "darknet_tiny_prn": _darknet_reference("tiny_prn"),
    "darknet53": _plain(Darknet53),
    "cspdarknet53": _plain(CSPDarknet53),
    "resnet10": _plain(ResNet10),
    "cspresnet10": _plain(CSPResNet10),
    "resnet50": _plain(resnet50),
    "cspresnet50": _plain(cspresnet50),
    "resnext50": _plain(resnext50),
    "cspresnext50": _plain(cspresnext50),
    "densenet201_elastic": _plain(densenet201_elastic),
    "cspdensenet201_elastic": _plain(cspdensenet201_elastic),
    "mobilenet_v2": _plain(mobilenet_v2),
    "cspmobilenet_v2": _plain(CSPMobileNetV2),
    "efficientnet_b0": _plain(efficientnet_b0),
}


def _efm(config: ModelConfig, channels: tuple[int, ...]) -> Neck:
    return ExactFusionModel(in_channels=channels, attention=config.attention, activation=config.activation)


def _cem(config: ModelConfig, channels: tuple[int, ...]) -> Neck:
    return ContextEnhancement(in_channels=channels, attention=config.attention, activation=config.activation)


def _without_attention(
    make: Callable[[tuple[int, ...], str], Neck],
) -> Callable[[ModelConfig, tuple[int, ...]], Neck]:
    def build(config: ModelConfig, channels: tuple[int, ...]) -> Neck:
        if config.attention != "none":
            raise InputError(f"model.attention: {config.neck} cannot attend; set model.attention=none")
        return make(channels, config.activation)

    return build


def _yolov3(widths: tuple[int, int, int], *, spp: bool = False) -> Callable[[tuple[int, ...], str], Neck]:
    def make(channels: tuple[int, ...], activation: str) -> Neck:
        return Yolov3Pyramid(in_channels=channels, widths=widths, spp=spp, activation=activation)

    return make


NECKS: dict[str, Callable[[ModelConfig, tuple[int, ...]], Neck]] = {
    "efm": _efm,
    "efm_spp": _without_attention(
        lambda channels, activation: ExactFusionModel(in_channels=channels, spp=True, activation=activation)
    ),
    "gfm": _without_attention(
        lambda channels, activation: GlobalFusionModel(in_channels=channels, activation=activation)
    ),
    "cem": _cem,
    "prn": _without_attention(
        lambda channels, activation: PartialResidualNeck(in_channels=channels, scales=2, activation=activation)
    ),
    "prn_3l": _without_attention(
        lambda channels, activation: PartialResidualNeck(in_channels=channels, scales=3, activation=activation)
    ),
    "fpn": _without_attention(_yolov3((32, 64, 128))),  # YOLOv3's at a quarter of its width, for small backbones
    "yolov3": _without_attention(_yolov3((128, 256, 512))),
    "yolov3_spp": _without_attention(_yolov3((128, 256, 512), spp=True)),
    "panet_spp": _without_attention(
        lambda channels, activation: PathAggregation(in_channels=channels, activation=activation)
    ),
    "yolov3_tiny": _without_attention(
        lambda channels, activation: TinyPyramid(in_channels=channels, activation=activation)
    ),
    "peleenet_yolo": _without_attention(
        lambda channels, activation: PeleeNetYolo(in_channels=channels, activation=activation)
    ),
}
LEVELS = (4, 8, 16, 32)
"""The strides that every neck expects of its backbone."""


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `config` names, not initialised. Raises: InputError for an unknown name or a wrong option."""
    if config.backbone not in BACKBONES:
        raise InputError(f"model.backbone: expected one of {', '.join(BACKBONES)}, got {config.backbone!r}")
    return BACKBONES[config.backbone](config)


def build_detector(config: ModelConfig) -> Detector:
    """A detector with freshly drawn weights: images (B, 3, H, W) -> raw maps (B, A*(5+C), H/s, W/s), fine to coarse.

    The strides s are 8, 16, 32, or 16, 32 for the necks with two scales. Consumes torch's global generator.

    Raises:
        InputError: a name that is not in BACKBONES or NECKS, or options that do not fit it.
    """
    if config.neck not in NECKS:
        raise InputError(f"model.neck: expected one of {', '.join(NECKS)}, got {config.neck!r}")
    backbone = build_backbone(config)
    if backbone.strides != LEVELS:
        raise InputError(
            f"model.backbone: {config.backbone} is for classification, its maps have the strides {backbone.strides}; "
            f"a detector needs {LEVELS}"
        )
    neck = NECKS[config.neck](config, backbone.out_channels)
    if len(neck.strides) != len(config.scale_xy):
        count = len(neck.strides)
        raise InputError(
            f"model.scale_xy: {config.neck} has {count} scales, got {len(config.scale_xy)}; set model.scale_xy="
            f"[{', '.join(['1.0'] * count)}] and model.anchors to {3 * count} (width, height) pairs, or another "
            f"multiple of {count}"
        )
    head = YoloHead(
        in_channels=neck.out_channels, anchors_per_scale=config.anchors_per_scale, num_classes=config.num_classes
    )
    detector = Detector(backbone=backbone, neck=neck, head=head, strides=neck.strides)
    init_weights(detector)
    head.init_prior()
    return detector


def build_classifier(config: BackboneConfig, num_classes: int) -> Classifier:
    """A classifier on the backbone that `config` names, with freshly drawn weights."""
    backbone = build_backbone(config)
    classifier = Classifier(backbone=backbone, in_channels=backbone.out_channels[-1], num_classes=num_classes)
    init_weights(classifier)
    return classifier
