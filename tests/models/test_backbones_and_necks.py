"""All backbones and necks: outputs are as declared, and every neck works on every detector's backbone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.analysis.complexity import measure_complexity
from detector.config import ModelConfig, load_config, parse_model_config
from detector.models.build import BACKBONES, LEVELS, NECKS, build_backbone, build_detector
from detector.models.csp import CrossStagePartial, partial_stage
from detector.models.layers import SpatialPyramidPooling, SqueezeExcite, add_first_channels
from detector.models.peleenet import SparseDenseBlock
from detector.models.prn import PartialResidualStep

ROOT = Path(__file__).resolve().parents[2]
PELEE = load_config(ROOT / "configs/csppelee_efm.yaml").model


def model(backbone: str, neck_name: str = "efm", **changes: object) -> ModelConfig:
    assert isinstance(PELEE, ModelConfig)
    parts = {"backbone": {"name": backbone}, "neck": {"name": neck_name}, **changes}
    made = parse_model_config({**asdict(PELEE), **parts}, "test")
    assert isinstance(made, ModelConfig)
    return made


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_returns_what_it_declares(name: str) -> None:
    network = build_backbone(model(name).backbone, "leaky").eval()
    with torch.no_grad():
        maps = network(torch.rand(1, 3, 64, 128))
    assert tuple(one.shape[1] for one in maps) == network.out_channels
    assert tuple(64 // one.shape[2] for one in maps) == network.strides
    assert tuple(128 // one.shape[3] for one in maps) == network.strides


@pytest.mark.parametrize("neck", NECKS)
def test_a_neck_returns_what_it_declares(neck: str) -> None:
    announced = NECKS[neck](model("csppeleenet", neck).neck, (128, 256, 512, 640), "leaky")
    maps = [
        torch.rand(1, channels, 128 // stride, 64 // stride)
        for channels, stride in zip((128, 256, 512, 640), LEVELS, strict=True)
    ]
    with torch.no_grad():
        fused = announced.eval()(maps)
    assert tuple(one.shape[1] for one in fused) == announced.out_channels
    assert tuple(128 // one.shape[2] for one in fused) == announced.strides


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", ["resnet10", "cspdensenetb_reference", "mobilenet_v2"])
def test_necks_fit_backbones_by_their_declared_outputs(backbone: str, neck: str) -> None:
    scales = len(NECKS[neck](model("csppeleenet", neck).neck, (128, 256, 512, 640), "leaky").strides)
    anchors = PELEE.anchors[: 3 * scales]  # type: ignore[union-attr]
    with torch.device("meta"):
        detector = build_detector(model(backbone, neck, anchors=anchors))
        raw = detector(torch.rand(1, 3, 64, 64))
    assert [tuple(one.shape) for one in raw] == [(1, 255, 64 // stride, 64 // stride) for stride in detector.strides]


@pytest.mark.parametrize("name", BACKBONES)
def test_no_layer_with_a_cost_runs_twice(name: str) -> None:
    """Costs and times are looked up by name, so each name must be one layer."""
    with torch.device("meta"):
        network = build_backbone(model(name).backbone, "leaky")
    names = [cost.name for cost in measure_complexity(network, (64, 64))]
    assert len(names) == len(set(names))


def test_attention_is_for_efm_and_cem() -> None:
    for neck in ("efm", "cem"):
        scales = 2 if neck == "cem" else 3
        anchors = PELEE.anchors[: 3 * scales]  # type: ignore[union-attr]
        with torch.device("meta"):
            plain = build_detector(model("csppeleenet", neck, anchors=anchors))
            attending = build_detector(
                model("csppeleenet", neck, neck={"name": neck, "attention": "sam"}, anchors=anchors)
            )
        assert sum(p.numel() for p in attending.parameters()) > sum(p.numel() for p in plain.parameters())


def test_a_partial_stage_holds_any_block() -> None:
    doubling = nn.Conv2d(4, 8, 1)
    stage = partial_stage(
        [doubling], in_channels=16, block_channels=(4, 8), bypass=12, out_channels=10, activation="leaky"
    )
    assert isinstance(stage, CrossStagePartial)
    assert stage(torch.rand(2, 16, 5, 5)).shape == (2, 10, 5, 5)
    open_end = partial_stage(
        [doubling],
        in_channels=16,
        block_channels=(4, 8),
        bypass=12,
        out_channels=None,
        activation="leaky",
        first_transition=False,
    )
    assert open_end(torch.rand(2, 16, 5, 5)).shape == (2, 20, 5, 5)
    assert len(list(open_end.block_path)) == 2, "the split and the block, no transition"


def test_partial_addition_by_hand() -> None:
    wide, narrow = torch.arange(6.0).view(1, 3, 1, 2), torch.ones(1, 1, 1, 2)
    assert add_first_channels(wide, narrow).flatten().tolist() == [1, 2, 2, 3, 4, 5]
    assert add_first_channels(narrow, wide).flatten().tolist() == [1, 2]
    assert wide.flatten().tolist() == [0, 1, 2, 3, 4, 5], "the argument was changed"


def test_pyramid_pooling_by_hand() -> None:
    x = torch.zeros(1, 1, 20, 20)
    x[0, 0, 10, 10] = 1
    joined = SpatialPyramidPooling().eval()(x)
    assert [int(one.sum()) for one in joined[0]] == [13 * 13, 9 * 9, 5 * 5, 1]


def test_squeeze_and_excitation_scales_channels() -> None:
    gate = SqueezeExcite(4, 2).eval()
    x = torch.rand(2, 4, 3, 3) + 0.1
    weights = gate(x) / x
    assert torch.allclose(weights, weights[:, :, :1, :1].expand_as(weights)), "one weight for each channel"
    assert ((weights > 0) & (weights < 1)).all()


def test_sparse_layers_read_outputs_at_powers_of_two() -> None:
    block = SparseDenseBlock(10, 5, 16, "leaky", squeeze_excite=False)
    widths = [layer.deep[0].conv.in_channels for layer in block.layers]  # type: ignore[union-attr, index]
    # Layer n reads the outputs n-1, n-2, n-4, n-8 of (10, 32, 32, ...).
    assert widths == [10, 32 + 10, 32 + 32, 32 + 32 + 10, 32 + 32 + 32]


def test_a_prn_step_adds_the_backbone_map_twice() -> None:
    step = PartialResidualStep(256, "linear").eval()
    coarse, fine = torch.rand(1, 256, 2, 2), torch.rand(1, 200, 4, 4)
    with torch.no_grad():
        convolved, fused = step(coarse, fine)
        up = step.up(coarse)
    assert torch.allclose(convolved, step.conv(up + fine[:, :128]))
    assert torch.allclose(fused, convolved + up + fine[:, :128])
