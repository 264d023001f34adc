"""ResNet-10, ResNet-50 and ResNeXt-50 as in the authors' cfg files, and CSPResNet-10.

Legend: B images, C channels, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import partial_stage
from detector.models.cspresnet import BottleneckBlock
from detector.models.interface import Backbone
from detector.models.layers import ACTIVATIONS, ConvBN, add_first_channels, run_stages

STAGE_CHANNELS = (64, 128, 256, 512)


def resnet_stem(activation: str) -> nn.Sequential:
    """(B, 3, S, S) -> (B, 64, S/4, S/4)."""
    return nn.Sequential(ConvBN(3, 64, 7, stride=2, activation=activation), nn.MaxPool2d(2))


class BasicBlock(nn.Module):
    """activation(3x3(3x3(x)) + shortcut): (B, in, H, W) -> (B, out, H / stride, W / stride).

    The shortcut is the input, subsampled by the stride and added to the first channels (Darknet's partial `shortcut`,
    which has no parameters), or with `project` a 1x1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, activation: str, project: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(in_channels, out_channels, 3, stride=stride, activation=activation),
            ConvBN(out_channels, out_channels, 3, activation="linear"),
        )
        self.project = (
            ConvBN(in_channels, out_channels, 1, stride=stride, activation="linear") if project else nn.Identity()
        )
        self.stride = 1 if project else stride
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.project(x)[:, :, :: self.stride, :: self.stride]
        out: Tensor = self.activation(add_first_channels(self.body(x), shortcut))
        return out


class ResNet10(Backbone):
    """Images (B, 3, S, S) -> maps (64, 128, 256, 512 channels) at strides 4, 8, 16, 32 (resnet10.cfg)."""

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = STAGE_CHANNELS

    def __init__(self, *, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = resnet_stem(activation)
        self.stages = nn.ModuleList(
            BasicBlock(64 if index == 0 else channels // 2, channels, stride=min(index, 1) + 1, activation=activation)
            for index, channels in enumerate(STAGE_CHANNELS)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))


class CSPResNet10(Backbone):
    """Images (B, 3, S, S) -> maps (64, 128, 256, 512 channels) at strides 4, 8, 16, 32: a RECONSTRUCTION.

    No cfg is public, only 2.73 M parameters and 1.905 BFLOPs at 256 (ours 2.74 M and 1.91). Here the first stage,
    which keeps the channels, is not split: a 3x3 convolution before ResNet-10's block. Every later stage is split into
    two halves by two 1x1 convolutions: one half passes the strided block of ResNet-10, the other a strided 3x3
    convolution.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = STAGE_CHANNELS

    def __init__(self, *, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = resnet_stem(activation)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ConvBN(64, 64, 3, activation=activation), BasicBlock(64, 64, stride=1, activation=activation)
                )
            ]
        )
        for channels in STAGE_CHANNELS[:-1]:
            half = channels // 2
            stage = partial_stage(
                [BasicBlock(half, channels, stride=2, activation=activation, project=True)],
                in_channels=channels,
                block_channels=(half, channels),
                bypass=channels,
                bypass_path=nn.Sequential(
                    ConvBN(channels, half, 1, activation=activation),
                    ConvBN(half, channels, 3, stride=2, activation=activation),
                ),
                out_channels=2 * channels,
                activation=activation,
            )
            self.stages.append(stage)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))


class ResNet(Backbone):
    """Images (B, 3, S, S) -> maps (256, 512, 1024, 2048 channels) at strides 4, 8, 16, 32 (resnet50, resnext50.cfg).

    Args:
        hidden: width of the first stage's 3x3 convolutions; it doubles with each stage.
        groups: of the 3x3 convolutions.
        activation: of every convolution but the last of a block.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = (256, 512, 1024, 2048)

    def __init__(self, *, hidden: int, groups: int, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = resnet_stem(activation)
        self.stages = nn.ModuleList()
        before = 64
        for index, (count, channels) in enumerate(zip((3, 4, 6, 3), self.out_channels, strict=True)):
            blocks = [
                BottleneckBlock(
                    before if number == 0 else channels,
                    channels,
                    hidden=hidden << index,
                    groups=groups,
                    stride=2 if index and number == 0 else 1,
                    activation=activation,
                )
                for number in range(count)
            ]
            self.stages.append(nn.Sequential(*blocks))
            before = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))


def resnet50(*, activation: str = "leaky") -> ResNet:
    """ResNet-50: 22.73 M parameters; 9.74 BFLOPs at 256 as a classifier.

    Today's resnet50.cfg predicts before it averages, which costs 10.00 with the same backbone.
    """
    return ResNet(hidden=64, groups=1, activation=activation)


def resnext50(*, activation: str = "leaky") -> ResNet:
    """ResNeXt-50: 22.19 M parameters and 10.11 BFLOPs at 256 as a classifier."""
    return ResNet(hidden=128, groups=32, activation=activation)
