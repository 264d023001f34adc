"""Partial Residual Networks as a neck: shortcuts that add only the channels that both maps have.

The wiring is that of the authors' yolov3-tiny-prn.cfg; with CSPPeleeNet and PeleeNet it has the published BFLOPs
(3.590 and 4.04 at 416; 4.586 with three scales).

Legend: C3..C5 backbone maps at strides 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.models.interface import Neck
from detector.models.layers import ACTIVATIONS, ConvBN, Upsample2, add_first_channels


class PartialResidualStep(nn.Module):
    """Computes a scale's features from those of the next coarser scale and its own backbone map.

    (B, in, H, W) and (B, C, 2H, 2W) -> convolved and fused map, both (B, 128, 2H, 2W).
    """

    def __init__(self, in_channels: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Sequential(ConvBN(in_channels, 128, 1, activation=activation), Upsample2())
        self.conv = ConvBN(128, 128, 3, activation=activation)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        up = self.up(coarse)
        convolved = self.conv(self.activation(add_first_channels(up, fine)))
        fused = self.activation(convolved + up)
        return convolved, self.activation(add_first_channels(fused, fine))


class PartialResidualNeck(Neck):
    """Backbone maps -> fused maps (128, 256 channels) at strides 16, 32; with three scales also 128 at stride 8.

    Args:
        in_channels: of C2, C3, C4, C5; only the first 128 of C3 and C4 are used.
        scales: 2 (PRN) or 3 (PRN-3l).
        activation: of every convolution and shortcut.
    """

    def __init__(self, *, in_channels: Sequence[int], scales: int = 2, activation: str = "leaky") -> None:
        super().__init__()
        self.strides = (8, 16, 32)[-scales:]
        self.out_channels = (128, 128, 256)[-scales:]
        self.enter = ConvBN(in_channels[-1], 256, 1, activation=activation)
        self.conv = ConvBN(256, 256, 3, activation=activation)
        self.activation = ACTIVATIONS[activation]()
        self.steps = nn.ModuleList(
            PartialResidualStep(256 if number == 0 else 128, activation) for number in range(scales - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        entered = self.enter(maps[-1])
        convolved = self.conv(entered)
        fused = [self.activation(convolved + entered)]
        for step, fine in zip(self.steps, maps[-2::-1], strict=False):
            convolved, finer = step(convolved, fine)
            fused.insert(0, finer)
        return tuple(fused)
