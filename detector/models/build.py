"""Builds networks from the model section of a config: which name is which class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from detector.config import (
    BackboneConfig,
    ClassifierConfig,
    ContextConfig,
    CSPDarknet53Config,
    CSPPeleeNetConfig,
    ExactFusionConfig,
    ModelConfig,
    NeckConfig,
    PeleeNetConfig,
    TimmBackboneConfig,
)
from detector.errors import InputError
from detector.models.classifier import Classifier
from detector.models.cspdarknet import CSPDarknet53, Darknet53
from detector.models.csppeleenet import CSPPeleeNet
from detector.models.cspresnet import cspresnet50, cspresnext50
from detector.models.densenet import cspdensenet201_elastic, densenet201_elastic
from detector.models.detector import Detector
from detector.models.efm import ExactFusionModel
from detector.models.fusion import ContextEnhancement, GlobalFusionModel
from detector.models.interface import Backbone, Neck
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
from detector.models.timm_backbone import PREFIX, TimmBackbone
from detector.models.yolo_head import YoloHead


def _csppeleenet(config: BackboneConfig, activation: str) -> Backbone:
    assert isinstance(config, CSPPeleeNetConfig)
    return CSPPeleeNet(
        gamma=config.gamma,
        fusion=config.fusion,
        activation=activation,
        squeeze_excite=config.squeeze_excite,
        width=config.width,
    )


def _cspdarknet53(config: BackboneConfig, activation: str) -> Backbone:
    standardize = isinstance(config, CSPDarknet53Config) and config.standardize
    return CSPDarknet53(activation=activation, standardize=standardize)


def _peleenet(variant: str) -> Callable[[BackboneConfig, str], Backbone]:
    def build(config: BackboneConfig, activation: str) -> Backbone:
        assert isinstance(config, PeleeNetConfig)
        return PeleeNet(variant=variant, activation=activation, squeeze_excite=config.squeeze_excite)

    return build


def _plain(make: Callable[..., Backbone]) -> Callable[[BackboneConfig, str], Backbone]:
    """For networks whose config has no options."""

    def build(_config: BackboneConfig, activation: str) -> Backbone:
        return make(activation=activation)

    return build


BACKBONES: dict[str, Callable[[BackboneConfig, str], Backbone]] = {
    "csppeleenet": _csppeleenet,
    "peleenet": _peleenet("dense"),
    "sparsepeleenet": _peleenet("sparse"),
    "peleenext": _peleenet("grouped"),
    "csppeleenet_reference": _plain(csppeleenet_reference),
    "csppeleenetb_reference": _plain(csppeleenetb_reference),
    "cspdensenet_reference": _plain(cspdensenet_reference),
    "cspdensenetb_reference": _plain(cspdensenetb_reference),
    "darknet_reference": _plain(partial(DarknetReference, variant="classifier")),
    "darknet_tiny": _plain(partial(DarknetReference, variant="tiny")),
    "darknet_tiny_prn": _plain(partial(DarknetReference, variant="tiny_prn")),
    "darknet53": _plain(Darknet53),
    "cspdarknet53": _cspdarknet53,
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


MakeNeck = Callable[[NeckConfig, tuple[int, ...], str], Neck]


def _efm(config: NeckConfig, channels: tuple[int, ...], activation: str) -> Neck:
    assert isinstance(config, ExactFusionConfig)
    return ExactFusionModel(in_channels=channels, attention=config.attention, width=config.width, activation=activation)


def _cem(config: NeckConfig, channels: tuple[int, ...], activation: str) -> Neck:
    assert isinstance(config, ContextConfig)
    return ContextEnhancement(in_channels=channels, attention=config.attention, activation=activation)


def _plain_neck(make: Callable[..., Neck]) -> MakeNeck:
    """For necks whose config has no options."""

    def build(_config: NeckConfig, channels: tuple[int, ...], activation: str) -> Neck:
        return make(in_channels=channels, activation=activation)

    return build


NECKS: dict[str, MakeNeck] = {
    "efm": _efm,
    "efm_spp": _plain_neck(partial(ExactFusionModel, spp=True)),
    "gfm": _plain_neck(GlobalFusionModel),
    "cem": _cem,
    "prn": _plain_neck(partial(PartialResidualNeck, scales=2)),
    "prn_3l": _plain_neck(partial(PartialResidualNeck, scales=3)),
    "fpn": _plain_neck(partial(Yolov3Pyramid, widths=(32, 64, 128))),  # YOLOv3's neck at a quarter of its width
    "yolov3": _plain_neck(partial(Yolov3Pyramid, widths=(128, 256, 512))),
    "yolov3_spp": _plain_neck(partial(Yolov3Pyramid, widths=(128, 256, 512), spp=True)),
    "panet_spp": _plain_neck(PathAggregation),
    "yolov3_tiny": _plain_neck(TinyPyramid),
    "peleenet_yolo": _plain_neck(PeleeNetYolo),
}
LEVELS = (4, 8, 16, 32)
"""The strides that every neck expects of its backbone."""


def build_backbone(config: BackboneConfig, activation: str) -> Backbone:
    """The backbone that `config` names, not initialised. Raises: InputError for an unknown name."""
    if isinstance(config, TimmBackboneConfig):
        return TimmBackbone(config.name.removeprefix(PREFIX))
    if config.name not in BACKBONES:
        raise InputError(
            f"model.backbone.name: expected one of {', '.join(BACKBONES)}, or timm/NAME, got {config.name!r}"
        )
    return BACKBONES[config.name](config, activation)


def build_detector(config: ModelConfig) -> Detector:
    """A detector with random initial weights: images (B, 3, H, W) -> raw maps (B, A*(5+C), H/s, W/s), fine to coarse.

    The strides s are 8, 16, 32, or 16, 32 for the necks with two scales. Uses torch's global random generator.

    Raises:
        InputError: a name that is not in BACKBONES or NECKS, or parts or anchors that do not fit together.
    """
    if config.neck.name not in NECKS:
        raise InputError(f"model.neck.name: expected one of {', '.join(NECKS)}, got {config.neck.name!r}")
    backbone = build_backbone(config.backbone, config.activation)
    if backbone.strides != LEVELS:
        raise InputError(
            f"model.backbone.name: {config.backbone.name} is for classification: its maps have strides "
            f"{backbone.strides}; choose a backbone with strides {LEVELS}"
        )
    neck = NECKS[config.neck.name](config.neck, backbone.out_channels, config.activation)
    num_scales = len(neck.strides)
    if len(config.anchors) % num_scales:
        raise InputError(
            f"model.anchors: {config.neck.name} has {num_scales} scales, so it needs {3 * num_scales} (width, height) "
            f"pairs or another multiple of {num_scales}, got {len(config.anchors)}"
        )
    head = YoloHead(
        in_channels=neck.out_channels,
        anchors_per_scale=len(config.anchors) // num_scales,
        num_classes=config.num_classes,
    )
    detector = Detector(backbone=backbone, neck=neck, head=head, strides=neck.strides)
    init_weights(detector)
    head.init_prior()
    return detector


def build_classifier(config: ClassifierConfig) -> Classifier:
    """A classifier with random initial weights: images (B, 3, H, W) -> logits (B, num_classes). Raises: InputError."""
    backbone = build_backbone(config.backbone, config.activation)
    classifier = Classifier(backbone=backbone, in_channels=backbone.out_channels[-1], num_classes=config.num_classes)
    init_weights(classifier)
    return classifier
