"""CSPResNet50 and CSPResNeXt50: bottlenecks in Cross Stage Partial stages (the authors' csresnet50, csresnext50.cfg).

Legend: B images, C channels, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import partial_stage
from detector.models.interface import Backbone
from detector.models.layers import ACTIVATIONS, ConvBN, add_first_channels, run_stages

STAGE_BLOCKS = (3, 3, 5, 2)
STAGE_WIDTHS = (128, 256, 512, 1024)
# The split convolutions of the middle stages have no activation in the cfg files.
SPLIT_IS_LINEAR = (False, True, True, False)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 without activation, plus the input, then the activation: (B, C, H, W) -> (B, C', H, W), C' >= C.

    If the input has fewer channels, it is added to the first ones (Darknet's partial shortcut). The stride is in the
    3x3 convolution; the input is subsampled by it before the addition.
    """

    def __init__(
        self, in_channels: int, channels: int, *, hidden: int, groups: int, activation: str, stride: int = 1
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBN(in_channels, hidden, 1, activation=activation),
            ConvBN(hidden, hidden, 3, stride=stride, groups=groups, activation=activation),
            ConvBN(hidden, channels, 1, activation="linear"),
        )
        self.stride = stride
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        out: Tensor = self.activation(add_first_channels(self.body(x), shortcut))
        return out


class CSPResNet(Backbone):
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
            stage = partial_stage(
                blocks,
                in_channels=channels,
                block_channels=(entry, width),
                bypass=width,
                out_channels=out_channels[index],
                activation=activation,
                split_activation="linear" if SPLIT_IS_LINEAR[index] else None,
            )
            self.stages.append(nn.Sequential(down if index else nn.Identity(), stage))
            channels = out_channels[index]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))


def cspresnet50(*, activation: str = "leaky") -> CSPResNet:
    """CSPResNet50: 21.57 M parameters and 8.97 BFLOPs at 256 as a classifier."""
    return CSPResNet(hidden=(64, 128, 256, 512), out_channels=(128, 256, 512, 1024), groups=1, activation=activation)


def cspresnext50(*, activation: str = "leaky") -> CSPResNet:
    """CSPResNeXt50: 20.50 M parameters and 7.93 BFLOPs at 256 as a classifier; no bottleneck, 32 groups."""
    return CSPResNet(
        hidden=(128, 256, 512, 1024), out_channels=(256, 512, 1024, 2048), groups=32, activation=activation
    )
