"""Darknet53, and CSPDarknet53 with its blocks in Cross Stage Partial stages (darknet53.cfg, csdarknet53.cfg)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.models.csp import partial_stage
from detector.models.interface import Backbone
from detector.models.layers import ConvBN, run_stages

STAGE_CHANNELS = (64, 128, 256, 512, 1024)
STAGE_BLOCKS = (1, 2, 8, 8, 4)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """x + 3x3(1x1(x)); the sum has no activation (Darknet `shortcut`, linear). The shape is unchanged."""

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(channels, hidden, 1, activation=activation),
            ConvBN(hidden, channels, 3, activation=activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def residual_blocks(count: int, width: int, hidden: int, activation: str) -> list[nn.Module]:
    """`count` residual blocks of `width` channels."""
    return [ResidualBlock(width, hidden, activation) for _ in range(count)]


class Darknet53(Backbone):
    """YOLOv3's backbone: images (B, 3, S, S) -> maps (128, 256, 512, 1024 channels) at strides 4, 8, 16, 32."""

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = STAGE_CHANNELS[1:]

    def __init__(self, *, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = ConvBN(3, 32, 3, activation=activation)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvBN(channels // 2, channels, 3, stride=2, activation=activation),
                *residual_blocks(num_blocks, channels, channels // 2, activation),
            )
            for channels, num_blocks in zip(STAGE_CHANNELS, STAGE_BLOCKS, strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))[1:]


class CSPDarknet53(Backbone):
    """The backbone: images (B, 3, S, S) -> maps (128, 256, 512, 1024 channels) at strides 4, 8, 16, 32.

    In the first stage both paths keep all 64 channels and the blocks narrow to 32, as in the cfg; later stages
    halve the channels.

    Args:
        activation: of all convolutions.
        standardize: subtract ImageNet's mean and divide by its standard deviation, as published weights need it.
    """

    mean: Tensor
    std: Tensor

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = STAGE_CHANNELS[1:]

    def __init__(self, *, activation: str = "leaky", standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        if standardize:
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.stem = ConvBN(3, 32, 3, activation=activation)
        self.stages = nn.ModuleList()
        previous = 32
        for index, (channels, num_blocks) in enumerate(zip(STAGE_CHANNELS, STAGE_BLOCKS, strict=True)):
            width = channels if index == 0 else channels // 2
            hidden = channels // 2
            stage = partial_stage(
                residual_blocks(num_blocks, width, hidden, activation),
                in_channels=channels,
                block_channels=(width, width),
                bypass=width,
                out_channels=channels,
                activation=activation,
            )
            self.stages.append(nn.Sequential(ConvBN(previous, channels, 3, stride=2, activation=activation), stage))
            previous = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.standardize:
            images = (images - self.mean) / self.std
        return run_stages(self.stages, self.stem(images))[1:]
