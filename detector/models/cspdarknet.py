"""CSPDarknet53: Darknet53's residual blocks inside Cross Stage Partial stages (the authors' csdarknet53.cfg)."""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import CrossStagePartial
from detector.models.layers import ConvBN

STAGE_CHANNELS = (64, 128, 256, 512, 1024)
STAGE_BLOCKS = (1, 2, 8, 8, 4)


class ResidualBlock(nn.Module):
    """x + 3x3(1x1(x)); the sum has no activation (Darknet `shortcut`, linear). The shape stays."""

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(channels, hidden, 1, activation=activation),
            ConvBN(hidden, channels, 3, activation=activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def residual_stage(channels: int, *, width: int, hidden: int, num_blocks: int, activation: str) -> CrossStagePartial:
    """`num_blocks` residual blocks of `width` channels on one path, a 1x1 convolution on the other; the shape stays."""
    return CrossStagePartial(
        block_path=nn.Sequential(
            ConvBN(channels, width, 1, activation=activation),
            *(ResidualBlock(width, hidden, activation) for _ in range(num_blocks)),
            ConvBN(width, width, 1, activation=activation),
        ),
        bypass_path=ConvBN(channels, width, 1, activation=activation),
        fusion=ConvBN(2 * width, channels, 1, activation=activation),
    )


class CSPDarknet53(nn.Module):
    """The backbone: images (B, 3, S, S) -> maps (128, 256, 512, 1024 channels) at strides 4, 8, 16, 32.

    In the first stage both paths keep all 64 channels and the blocks narrow to 32, as in the cfg; later stages halve.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)
    out_channels: tuple[int, ...] = STAGE_CHANNELS[1:]

    def __init__(self, *, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = ConvBN(3, 32, 3, activation=activation)
        self.stages = nn.ModuleList()
        previous = 32
        for index, (channels, num_blocks) in enumerate(zip(STAGE_CHANNELS, STAGE_BLOCKS, strict=True)):
            width = channels if index == 0 else channels // 2
            hidden = channels // 2
            self.stages.append(
                nn.Sequential(
                    ConvBN(previous, channels, 3, stride=2, activation=activation),
                    residual_stage(channels, width=width, hidden=hidden, num_blocks=num_blocks, activation=activation),
                )
            )
            previous = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[1:])
