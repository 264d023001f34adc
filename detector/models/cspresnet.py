"""CSPResNet50 and CSPResNeXt50: bottlenecks in Cross Stage Partial stages (the authors' csresnet50, csresnext50.cfg).

Legend: B images, C channels, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from detector.models.csp import CrossStagePartial
from detector.models.layers import ACTIVATIONS, ConvBN

STAGE_BLOCKS = (3, 3, 5, 2)
STAGE_WIDTHS = (128, 256, 512, 1024)
# The split convolutions of the middle stages have no activation in the cfg files.
SPLIT_IS_LINEAR = (False, True, True, False)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 without activation, plus the input, then the activation: (B, C, H, W) -> (B, C', H, W), C' >= C.

    Where the input has fewer channels, it is added to the first ones (Darknet's partial shortcut).
    """

    def __init__(self, in_channels: int, channels: int, *, hidden: int, groups: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(in_channels, hidden, 1, activation=activation),
            ConvBN(hidden, hidden, 3, groups=groups, activation=activation),
            ConvBN(hidden, channels, 1, activation="linear"),
        )
        self.extra_channels = channels - in_channels
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x, (0, 0, 0, 0, 0, self.extra_channels)) if self.extra_channels else x
        out: Tensor = self.activation(self.body(x) + shortcut)
        return out


class CSPResNet(nn.Module):
    """The backbone: images (B, 3, S, S) -> maps at strides 4, 8, 16, 32.

    Args:
        hidden: width of the bottlenecks' 3x3 convolutions in each stage.
        out_channels: of each stage.
        groups: of the 3x3 convolutions, the strided ones between the stages included (ResNeXt: 32).
        activation: of every convolution that has one.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(
        self, *, hidden: tuple[int, ...], out_channels: tuple[int, ...], groups: int, activation: str = "leaky"
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stem = nn.Sequential(ConvBN(3, 64, 7, stride=2, activation=activation), nn.MaxPool2d(2))
        self.stages = nn.ModuleList()
        channels = 64
        for index, width in enumerate(STAGE_WIDTHS):
            down = ConvBN(channels, channels, 3, stride=2, groups=groups, activation=activation)
            # In the first stage the block path starts with 64 channels and widens in its first bottleneck.
            entry = channels if index == 0 else width
            split = "linear" if SPLIT_IS_LINEAR[index] else activation
            blocks = [
                BottleneckBlock(
                    entry if number == 0 else width,
                    width,
                    hidden=hidden[index],
                    groups=groups,
                    activation=activation,
                )
                for number in range(STAGE_BLOCKS[index])
            ]
            stage = CrossStagePartial(
                block_path=nn.Sequential(
                    ConvBN(channels, entry, 1, activation=split),
                    *blocks,
                    ConvBN(width, width, 1, activation=activation),
                ),
                bypass_path=ConvBN(channels, width, 1, activation=split),
                fusion=ConvBN(2 * width, out_channels[index], 1, activation=activation),
            )
            self.stages.append(nn.Sequential(down if index else nn.Identity(), stage))
            channels = out_channels[index]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def cspresnet50(*, activation: str = "leaky") -> CSPResNet:
    """CSPResNet50: 21.57 M parameters and 8.97 BFLOPs at 256 as a classifier."""
    return CSPResNet(hidden=(64, 128, 256, 512), out_channels=(128, 256, 512, 1024), groups=1, activation=activation)


def cspresnext50(*, activation: str = "leaky") -> CSPResNet:
    """CSPResNeXt50: 20.50 M parameters and 7.93 BFLOPs at 256 as a classifier; no bottleneck, 32 groups."""
    return CSPResNet(
        hidden=(128, 256, 512, 1024), out_channels=(256, 512, 1024, 2048), groups=32, activation=activation
    )
