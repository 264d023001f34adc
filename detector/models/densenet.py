"""DenseNet-201-Elastic and CSPDenseNet-201-Elastic: RECONSTRUCTIONS, no cfg of either is public.

DenseNet-201 (Huang et al., 2017) with layers that compute half of their bottleneck at half the resolution (Wang et
al., 2019, "ELASTIC"). The layer counts were found by search: parameters and BFLOPs (at 224) are within 1 % of the
published ones.

Legend: B images, C channels, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import partial_stage
from detector.models.interface import Backbone
from detector.models.layers import ConvBN, Upsample2, concatenate

GROWTH = 32
BOTTLENECK = 4 * GROWTH


class ElasticLayer(nn.Module):
    """A dense layer with two summed branches, each with half the bottleneck, one at half the resolution.

    (B, C, H, W) -> (B, C + 32, H, W); H and W must be even (ELASTIC, Figure 2).
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        half = BOTTLENECK // 2
        self.full = nn.Sequential(
            ConvBN(channels, half, 1, activation=activation), ConvBN(half, GROWTH, 3, activation=activation)
        )
        self.low = nn.Sequential(
            nn.MaxPool2d(2),
            ConvBN(channels, half, 1, activation=activation),
            ConvBN(half, GROWTH, 3, activation=activation),
            Upsample2(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(x, self.full(x) + self.low(x))


class PlainLayer(nn.Module):
    """DenseNet-B's layer: (B, C, H, W) -> (B, C + 32, H, W)."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(channels, BOTTLENECK, 1, activation=activation), ConvBN(BOTTLENECK, GROWTH, 3, activation=activation)
        )

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(x, self.body(x))


class DenseNetElastic(Backbone):
    """Images (B, 3, S, S) -> maps at strides 4, 8, 16, 32; S / 16 must be even where the third stage is elastic.

    Args:
        counts: dense layers of each stage; those of the last stage are plain.
        partial: whether the stages are Cross Stage Partial ones with gamma 0.5.
        activation: of every convolution.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, *, counts: tuple[int, ...], partial: bool, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvBN(3, 64, 7, stride=2, activation=activation), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        channels, out_channels = 64, []
        for index, count in enumerate(counts):
            layer = PlainLayer if index == 3 else ElasticLayer
            width = channels // 2 if partial else channels
            layers: list[nn.Module] = [layer(width + GROWTH * number, activation) for number in range(count)]
            grown = width + GROWTH * count
            if partial:
                stage: nn.Module = partial_stage(
                    layers,
                    in_channels=channels,
                    block_channels=(width, grown),
                    bypass=channels - width,
                    out_channels=None,
                    activation=activation,
                )
                grown += channels - width
            else:
                stage = nn.Sequential(*layers)
            self.stages.append(stage)
            out_channels.append(grown)
            channels = grown // 2 if index < 3 else grown
            self.transitions.append(_transition(grown, channels, index, partial, activation))
        self.out_channels: tuple[int, ...] = tuple(out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.stem(images), []
        for stage, transition in zip(self.stages, self.transitions, strict=True):
            fused = stage(x)
            x = transition(fused)
            maps.append(fused)
        return (*maps[:3], x)


def _transition(grown: int, channels: int, stage: int, partial: bool, activation: str) -> nn.Module:
    """DenseNet's 1x1 convolution to half the channels and pooling; after the last stage only in a partial network."""
    if stage < 3:
        return nn.Sequential(ConvBN(grown, channels, 1, activation=activation), nn.MaxPool2d(2))
    return ConvBN(grown, channels, 1, activation=activation) if partial else nn.Identity()


def densenet201_elastic(*, activation: str = "leaky") -> DenseNetElastic:
    """DenseNet-201-Elastic (reconstruction): 19.48 M parameters, 8.77 BFLOPs at 224 as a classifier."""
    return DenseNetElastic(counts=(10, 20, 42, 28), partial=False, activation=activation)


def cspdensenet201_elastic(*, activation: str = "leaky") -> DenseNetElastic:
    """CSPDenseNet-201-Elastic (reconstruction): 20.17 M parameters, 7.13 BFLOPs at 224 as a classifier."""
    return DenseNetElastic(counts=(6, 16, 36, 28), partial=True, activation=activation)
