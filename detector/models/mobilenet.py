"""MobileNet-v2, CSPMobileNet-v2 and EfficientNet-B0 as in the authors' cfg files.

Legend: B images, C channels, S side of the square input, k kernel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from detector.models.interface import Backbone
from detector.models.layers import ConvBN, SqueezeExcite, concatenate, run_stages


class InvertedResidual(nn.Module):
    """Widening 1x1, kxk depthwise, 1x1 without activation: (B, in, H, W) -> (B, out, H / stride, W / stride).

    If the shape is unchanged, the input is added.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        expand: channels after the first 1x1 convolution.
        depthwise: channels after the depthwise convolution (a multiple of `expand`).
        kernel_size: of the depthwise convolution.
        stride: of the depthwise convolution.
        squeeze: hidden channels of squeeze and excitation after the depthwise convolution; 0 = none.
        activation: of the first two convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expand: int,
        depthwise: int,
        stride: int = 1,
        kernel_size: int = 3,
        squeeze: int = 0,
        activation: str,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(in_channels, expand, 1, activation=activation),
            ConvBN(expand, depthwise, kernel_size, stride=stride, groups=expand, activation=activation),
            SqueezeExcite(depthwise, squeeze) if squeeze else nn.Identity(),
            ConvBN(depthwise, out_channels, 1, activation="linear"),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


# Rows of blocks: channels after the first 1x1 convolution, out channels, stride, kernel size, number of blocks.
MOBILENET_V2 = (
    (32, 16, 1, 3, 1),
    (96, 24, 2, 3, 1),
    (144, 24, 1, 3, 1),
    (144, 32, 2, 3, 1),
    (192, 32, 1, 3, 2),
    (192, 64, 1, 3, 1),
    (384, 64, 1, 3, 3),
    (384, 96, 2, 3, 1),
    (576, 96, 1, 3, 2),
    (576, 160, 2, 3, 1),
    (960, 160, 1, 3, 2),
    (960, 320, 1, 3, 1),
)
# Unlike the EfficientNet paper, enetb0.cfg widens some blocks by less than six.
EFFICIENTNET_B0 = (
    (32, 16, 1, 3, 1),
    (96, 24, 2, 3, 1),
    (144, 24, 1, 3, 1),
    (144, 40, 2, 5, 1),
    (192, 40, 1, 5, 1),
    (192, 80, 1, 3, 1),
    (384, 80, 1, 3, 2),
    (384, 112, 2, 5, 1),
    (576, 112, 1, 5, 2),
    (576, 192, 2, 5, 1),
    (960, 192, 1, 5, 3),
    (960, 320, 1, 3, 1),
)
SQUEEZE = {32: 8, 96: 16, 144: 8, 192: 16, 384: 24, 576: 32, 960: 64}
"""Hidden channels of squeeze and excitation in enetb0.cfg."""


class InvertedResidualNet(Backbone):
    """Images (B, 3, S, S) -> maps at strides 4, 8, 16, 32, the last one with 1280 channels.

    Both cfg files downsample where the channels become 96 (112), not 64 (80), which stay at stride 8.

    Args:
        rows: MOBILENET_V2 or EFFICIENTNET_B0.
        squeeze: squeeze and excitation in every block.
        activation: of the convolutions that have one.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, *, rows: Sequence[tuple[int, int, int, int, int]], squeeze: bool, activation: str) -> None:
        super().__init__()
        self.stem = ConvBN(3, 32, 3, stride=2, activation=activation)
        self.stages = nn.ModuleList()  # one for each stride
        channels, out_channels, blocks = 32, [], list[nn.Module]()
        for expand, width, stride, kernel_size, count in rows:
            if stride == 2 and channels > 16:
                self.stages.append(nn.Sequential(*blocks))
                out_channels.append(channels)
                blocks = []
            for _ in range(count):
                blocks.append(
                    InvertedResidual(
                        channels,
                        width,
                        expand=expand,
                        depthwise=expand,
                        stride=stride,
                        kernel_size=kernel_size,
                        squeeze=SQUEEZE[expand] if squeeze else 0,
                        activation=activation,
                    )
                )
                channels = width
        self.stages.append(nn.Sequential(*blocks, ConvBN(channels, 1280, 1, activation=activation)))
        self.out_channels: tuple[int, ...] = (*out_channels, 1280)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))


def mobilenet_v2(*, activation: str = "relu") -> InvertedResidualNet:
    """MobileNet-v2: 3.47 M parameters and 0.858 BFLOPs at 224 as a classifier."""
    return InvertedResidualNet(rows=MOBILENET_V2, squeeze=False, activation=activation)


def efficientnet_b0(*, activation: str = "swish") -> InvertedResidualNet:
    """EfficientNet-B0 as ported to Darknet: 4.81 M parameters and 0.915 BFLOPs at 224 as a classifier.

    The [dropout] of enetb0.cfg is left out; it only acts in training.
    """
    return InvertedResidualNet(rows=EFFICIENTNET_B0, squeeze=True, activation=activation)


class CSPMobileStage(nn.Module):
    """A partial stage of csmobilenet-v2.cfg: a 1x1 convolution, then two paths that both read it.

    One path is a strided depthwise convolution, the other is inverted residual blocks that begin with one; their
    outputs are joined. Unlike the other networks' pairs of 1x1, the split is depthwise with a shared 1x1 before it.

    Args:
        in_channels: of the input.
        entry: channels after the first convolution.
        widths: out channels of the blocks, in order.
        stride: of both paths.
        activation: of the convolutions that have one.
    """

    def __init__(self, in_channels: int, *, entry: int, widths: Sequence[int], stride: int, activation: str) -> None:
        super().__init__()
        self.enter = ConvBN(in_channels, entry, 1, activation=activation)
        self.bypass_path = ConvBN(entry, entry, 3, stride=stride, groups=entry, activation=activation)
        blocks: list[nn.Module] = [
            ConvBN(entry, 2 * entry, 3, stride=stride, groups=entry, activation=activation),
            ConvBN(2 * entry, widths[0], 1, activation="linear"),
        ]
        for before, after in pairwise(widths):
            blocks.append(
                InvertedResidual(before, after, expand=3 * before, depthwise=6 * before, activation=activation)
            )
        self.block_path = nn.Sequential(*blocks)
        self.out_channels = entry + widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return concatenate(self.block_path(x), self.bypass_path(x))


class CSPMobileNetV2(Backbone):
    """Images (B, 3, S, S) -> maps at strides 4, 8, 16, 32 (csmobilenet-v2.cfg)."""

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, *, activation: str = "relu") -> None:
        super().__init__()
        self.stem = ConvBN(3, 32, 3, stride=2, activation=activation)
        # The first stage halves inside a grouped convolution instead of entering through a 1x1 one.
        self.first_bypass = ConvBN(32, 16, 3, groups=16, activation=activation)
        self.first_block = nn.Sequential(
            ConvBN(32, 32, 1, activation=activation),
            ConvBN(32, 32, 3, groups=32, activation=activation),
            ConvBN(32, 16, 1, activation="linear"),
        )
        self.stages = nn.ModuleList()
        channels = 32
        for entry, widths in (
            (48, (24, 24)),
            (72, (32, 32, 32, 64, 64, 64, 64)),
            (192, (96, 96, 96)),
            (288, (160, 160, 160, 320)),
        ):
            stage = CSPMobileStage(channels, entry=entry, widths=widths, stride=2, activation=activation)
            self.stages.append(stage)
            channels = stage.out_channels
        self.head = ConvBN(channels, 640, 1, activation=activation)
        self.out_channels: tuple[int, ...] = (72, 136, 288, 640)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(images)
        x = concatenate(self.first_block(x), self.first_bypass(x))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return (*maps[:3], self.head(x))
