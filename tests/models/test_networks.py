"""The networks have the paper's size and cost, to the printed digit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.analysis.complexity import measure_complexity, total_complexity
from detector.config import ClassifierConfig, CSPPeleeNetConfig, ExactFusionConfig, ModelConfig, load_config
from detector.config.detection import PlainNeckConfig
from detector.config.shared import PlainBackboneConfig
from detector.errors import InputError
from detector.models.build import build_classifier, build_detector
from detector.models.efm import ExactFusionModel
from detector.models.layers import ConvBN, Maxout

ROOT = Path(__file__).resolve().parents[2]
PELEE = load_config(ROOT / "configs/csppelee_efm.yaml").model
DARKNET = load_config(ROOT / "configs/cspdarknet53_efm.yaml").model


def with_gamma(gamma: float) -> ModelConfig:
    return replace(PELEE, backbone=CSPPeleeNetConfig("csppeleenet", gamma=gamma))  # type: ignore[return-value, arg-type]


@pytest.mark.parametrize(
    ("config", "size", "params_m", "bflops", "source"),
    [
        (PELEE, 224, "2.83", "0.888", "Table 3, CSPPeleeNet"),
        (with_gamma(0.25), 224, "3.15", "0.986", "Table 1, gamma .25 (published: cost only)"),
        (with_gamma(0.75), 224, "2.56", "0.800", "Table 1, gamma .75 (published: cost only)"),
        (DARKNET, 256, "27.61", "13.067", "the authors' README, CSPDarknet53"),
        (
            replace(DARKNET, backbone=PlainBackboneConfig("cspresnet50")),
            256,
            "21.57",
            "8.968",
            "the authors' README, CSPResNet50",
        ),
        (
            replace(DARKNET, backbone=PlainBackboneConfig("cspresnext50")),
            256,
            "20.50",
            "7.930",
            "Table 3, CSPResNeXt-50",
        ),
    ],
)
def test_classifiers(config: ModelConfig, size: int, params_m: str, bflops: str, source: str) -> None:
    network = build_classifier(ClassifierConfig(config.backbone, 1000))
    totals = total_complexity(network, measure_complexity(network, (size, size)))
    assert f"{totals.params / 1e6:.2f}" == params_m, source
    assert f"{totals.bflops:.3f}" == bflops, source


@pytest.mark.parametrize(
    ("attention", "size", "bflops"), [("none", 416, 4.868), ("sam", 416, 5.068), ("sam", 512, 7.68)]
)
def test_detector_cost(attention: str, size: int, bflops: float) -> None:
    network = build_detector(replace(PELEE, neck=ExactFusionConfig("efm", attention)))  # type: ignore[arg-type]
    totals = total_complexity(network, measure_complexity(network, (size, size)))
    assert totals.bflops == pytest.approx(bflops, rel=0.003)  # the paper's wiring is inferred, see models/efm.py
    if attention == "sam":
        assert f"{totals.params / 1e6:.2f}" == "4.31"  # Table 4


def test_largest_layer_is_that_of_figure_7() -> None:
    costs = measure_complexity(build_detector(PELEE), (416, 416))
    assert f"{max(cost.bflops for cost in costs):.4f}" == "0.1994"


@pytest.mark.parametrize("config", [PELEE, DARKNET], ids=["csppeleenet", "cspdarknet53"])
def test_declared_outputs_and_output_shapes(config: ModelConfig) -> None:
    detector = build_detector(config).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 96)
        maps = detector.backbone(images)
        raw_maps = detector(images)
    backbone = detector.backbone
    assert tuple(x.shape[1] for x in maps) == backbone.out_channels
    assert tuple(96 // x.shape[3] for x in maps) == backbone.strides == (4, 8, 16, 32)
    assert [tuple(x.shape) for x in raw_maps] == [(1, 255, 8, 12), (1, 255, 4, 6), (1, 255, 2, 3)]
    assert detector.strides == (8, 16, 32)


def test_head_starts_at_the_prior() -> None:
    torch.manual_seed(0)
    detector = build_detector(PELEE).eval()
    with torch.no_grad():
        raw = detector(torch.rand(1, 3, 64, 64))[0].view(3, 85, 8, 8)
    assert float(raw[:, 4].sigmoid().mean()) == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": PlainBackboneConfig("vgg")}, "model.backbone.name: expected one of csppeleenet, .*got 'vgg'"),
        ({"neck": PlainNeckConfig("bifpn")}, "model.neck.name: expected one of efm, efm_spp"),
        ({"backbone": PlainBackboneConfig("darknet_reference")}, "darknet_reference is for classification"),
        ({"anchors": ((10.0, 13.0),)}, "efm has 3 scales, so it needs 9 .* pairs or another multiple of 3, got 1"),
        ({"neck": PlainNeckConfig("prn"), "anchors": ((1.0, 2.0),) * 9}, "prn has 2 scales, so it needs 6"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_detector(replace(PELEE, **change))  # type: ignore[arg-type]


def test_efm_compresses_by_maxout_where_it_can() -> None:
    neck = ExactFusionModel(in_channels=(128, 100, 512, 640))
    assert isinstance(neck.maxout_c2, Maxout)
    assert isinstance(neck.maxout_c3, ConvBN)
    assert (neck.maxout_c3.conv.in_channels, neck.maxout_c3.conv.out_channels) == (100, 64)


@pytest.mark.parametrize(("backbone", "neck"), [(0.5, 0.5), (0.625, 1.0), (0.75, 0.25), (2.0, 1.5)])
def test_width_scales_all_channels(backbone: float, neck: float) -> None:
    config = replace(
        PELEE,
        backbone=CSPPeleeNetConfig("csppeleenet", width=backbone),
        neck=ExactFusionConfig("efm", "sam", neck),
    )
    network = build_detector(config).eval()
    usual = build_detector(replace(PELEE, neck=ExactFusionConfig("efm", "sam")))
    for one, other, factor in ((network.backbone, usual.backbone, backbone), (network.neck, usual.neck, neck)):
        for found, expected in zip(one.out_channels, other.out_channels, strict=True):
            assert found % 8 == 0
            assert found == pytest.approx(expected * factor, rel=0.2)
    maps = network(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape[2:]) for each in maps] == [(8, 12), (4, 6), (2, 3)]


def test_width_one_changes_nothing() -> None:
    stated = replace(PELEE, backbone=CSPPeleeNetConfig("csppeleenet", width=1.0))
    shapes = [
        {name: tuple(value.shape) for name, value in build_detector(each).state_dict().items()}
        for each in (PELEE, stated)
    ]
    assert shapes[0] == shapes[1]
