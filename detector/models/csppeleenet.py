"""CSPPeleeNet: PeleeNet's two-way dense layers inside Cross Stage Partial stages (CSPNet paper, Table 3, Figure 7).

No cfg of it is public. The layers below are those whose cost equals the bars of the paper's Figure 7; parameters
(2.83 M) and BFLOPs (0.888 at 224) are the published ones. Legend: B images, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import CrossStagePartial
from detector.models.layers import ConvBN, concatenate

STEM_CHANNELS = 64
GROWTH = 32
STAGE_LAYERS = (2, 4, 8, 4)
BOTTLENECKS = (16, 32, 64, 64)


class TwoWayDenseLayer(nn.Module):
    """PeleeNet's dense layer: adds 16 channels that saw 5x5 and 16 that saw 3x3 to the input (in -> in + 32)."""

    def __init__(self, in_channels: int, bottleneck: int, activation: str) -> None:
        super().__init__()
        half = GROWTH // 2
        self.deep = nn.Sequential(
            ConvBN(in_channels, bottleneck, 1, activation=activation),
            ConvBN(bottleneck, half, 3, activation=activation),
            ConvBN(half, half, 3, activation=activation),
        )
        self.shallow = nn.Sequential(
            ConvBN(in_channels, bottleneck, 1, activation=activation),
            ConvBN(bottleneck, half, 3, activation=activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(x, self.deep(x), self.shallow(x))


class Stem(nn.Module):
    """(B, 3, S, S) -> (B, 64, S/4, S/4): a pooled and a convolved branch side by side.

    Unlike PeleeNet's, the pooled branch has a 1x1 convolution and the concatenation is not squeezed (Figure 7).
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        half = STEM_CHANNELS // 2
        self.entry = ConvBN(3, 32, 3, stride=2, activation=activation)
        self.pooled = nn.Sequential(nn.MaxPool2d(2), ConvBN(32, half, 1, activation=activation))
        self.convolved = nn.Sequential(
            ConvBN(32, 16, 1, activation=activation),
            ConvBN(16, half, 3, stride=2, activation=activation),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.entry(images)
        return concatenate(self.convolved(x), self.pooled(x))


def dense_stage(base: int, *, bypass: int, num_layers: int, bottleneck: int, activation: str) -> CrossStagePartial:
    """One partial dense block with its first transition; base -> (base - bypass) + 32 * num_layers + bypass channels.

    The second transition follows the pooling and therefore stands outside (see `CSPPeleeNet`).
    """
    width = base - bypass
    layers = [ConvBN(base, width, 1, activation=activation)]
    blocks: list[nn.Module] = [*layers]
    for _ in range(num_layers):
        blocks.append(TwoWayDenseLayer(width, bottleneck, activation))
        width += GROWTH
    blocks.append(ConvBN(width, width, 1, activation=activation))  # first transition, no compression
    return CrossStagePartial(
        block_path=nn.Sequential(*blocks),
        bypass_path=ConvBN(base, bypass, 1, activation=activation),
        fusion=nn.Identity(),
    )


class CSPPeleeNet(nn.Module):
    """The backbone: images (B, 3, S, S) -> maps at strides 4, 8, 16, 32.

    The maps of the first three stages are taken before the pooling (what Figure 6(c) calls C2 to C4), the last after
    its second transition (C5).

    Args:
        gamma: share of a stage's channels that bypasses its dense block. The first stage always halves: only then do
            all three published costs for gamma .25, .5 and .75 come out (a fit, PAPER section 2.3).
        activation: of every convolution.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, *, gamma: float = 0.5, activation: str = "leaky") -> None:
        super().__init__()
        self.stem = Stem(activation)
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels, out_channels = STEM_CHANNELS, []
        for index, (num_layers, bottleneck) in enumerate(zip(STAGE_LAYERS, BOTTLENECKS, strict=True)):
            bypass = round(channels * (gamma if index else 0.5))
            self.stages.append(
                dense_stage(
                    channels, bypass=bypass, num_layers=num_layers, bottleneck=bottleneck, activation=activation
                )
            )
            channels += GROWTH * num_layers
            out_channels.append(channels)
            # Pooling before the convolution: certain from Figure 7. Maximum, not average: likely (it is counted).
            pool = nn.MaxPool2d(2) if index < 3 else nn.Identity()
            self.transitions.append(nn.Sequential(pool, ConvBN(channels, channels, 1, activation=activation)))
        self.out_channels: tuple[int, ...] = tuple(out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(images)
        maps = []
        for stage, transition in zip(self.stages, self.transitions, strict=True):
            fused = stage(x)
            x = transition(fused)
            maps.append(fused)
        return (*maps[:3], x)
