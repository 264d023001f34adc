"""PeleeNet (Wang et al., 2018) as the authors of CSPNet ported it to Darknet, and its two sparser variants.

Legend: B images, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csppeleenet import BOTTLENECKS, GROWTH, TwoWayDenseLayer
from detector.models.interface import Backbone
from detector.models.layers import ConvBN, concatenate, run_stages

STAGE_LAYERS = (3, 4, 8, 6)
GROUPS = 8


class PeleeStem(nn.Module):
    """(B, 3, S, S) -> (B, 32, S/4, S/4): a pooled and a convolved branch, joined and squeezed."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.entry = ConvBN(3, 32, 3, stride=2, activation=activation)
        self.pool = nn.MaxPool2d(2)
        self.convolved = nn.Sequential(
            ConvBN(32, 16, 1, activation=activation), ConvBN(16, 32, 3, stride=2, activation=activation)
        )
        self.squeeze = ConvBN(64, 32, 1, activation=activation)

    def forward(self, images: Tensor) -> Tensor:
        x = self.entry(images)
        out: Tensor = self.squeeze(concatenate(self.pool(x), self.convolved(x)))
        return out


class SparseDenseBlock(nn.Module):
    """Dense layers that each read only the outputs 1, 2, 4, 8, ... layers back; the block returns all outputs joined.

    This aggregation (Zhu et al., 2018) matches SparsePeleeNet's published parameters and BFLOPs to the printed digit.
    """

    def __init__(self, in_channels: int, count: int, bottleneck: int, activation: str, *, squeeze_excite: bool) -> None:
        super().__init__()
        widths, layers = [in_channels], []
        for _ in range(count):
            width = sum(widths[index] for index in _sources(len(widths)))
            layers.append(TwoWayDenseLayer(width, bottleneck, activation, squeeze_excite=squeeze_excite))
            widths.append(GROWTH)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            assert isinstance(layer, TwoWayDenseLayer)
            outputs.append(layer.new_channels(concatenate(*(outputs[index] for index in _sources(len(outputs))))))
        return concatenate(*outputs)


def _sources(number: int) -> list[int]:
    """Which of the outputs 0..number-1 layer `number` reads: 1, 2, 4, 8, ... layers back."""
    return [number - distance for distance in (1, 2, 4, 8, 16) if distance <= number]


class PeleeNet(Backbone):
    """The backbone: images (B, 3, S, S) -> maps (128, 256, 512, 704 channels) at strides 4, 8, 16, 32.

    Each stage ends in a 1x1 convolution without compression; its output is the map, which the next stage pools.

    Args:
        variant: dense | sparse (SparsePeleeNet) | grouped (PeleeNeXt). For PeleeNeXt only the BFLOPs are published
            (0.837 at 224); 8 groups in the first 3x3 convolutions match them within 1 %: a reconstruction.
        activation: of every convolution.
        squeeze_excite: channel weights in every dense layer.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, *, variant: str = "dense", activation: str = "leaky", squeeze_excite: bool = False) -> None:
        super().__init__()
        self.stem = PeleeStem(activation)
        self.stages = nn.ModuleList()
        channels, out_channels = 32, list[int]()
        for count, bottleneck in zip(STAGE_LAYERS, BOTTLENECKS, strict=True):
            blocks: list[nn.Module] = [nn.MaxPool2d(2)] if out_channels else []
            if variant == "sparse":
                blocks += [SparseDenseBlock(channels, count, bottleneck, activation, squeeze_excite=squeeze_excite)]
            else:
                blocks += [
                    TwoWayDenseLayer(
                        channels + GROWTH * number,
                        bottleneck,
                        activation,
                        groups=GROUPS if variant == "grouped" else 1,
                        squeeze_excite=squeeze_excite,
                    )
                    for number in range(count)
                ]
            channels += GROWTH * count
            self.stages.append(nn.Sequential(*blocks, ConvBN(channels, channels, 1, activation=activation)))
            out_channels.append(channels)
        self.out_channels: tuple[int, ...] = tuple(out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return run_stages(self.stages, self.stem(images))
