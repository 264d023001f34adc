"""CSPPeleeNet: PeleeNet's two-way dense layers inside Cross Stage Partial stages (CSPNet paper, Table 3, Figure 7).

No cfg of it is public. The cost of each layer below equals its bar in the paper's Figure 7; parameters (2.83 M) and
BFLOPs (0.888 at 224) match the published ones. Legend: B images, S side of the square input.
"""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.csp import partial_stage
from detector.models.interface import Backbone
from detector.models.layers import ConvBN, SqueezeExcite, concatenate, narrowed

STEM_CHANNELS = 64
GROWTH = 32
STAGE_LAYERS = (2, 4, 8, 4)
BOTTLENECKS = (16, 32, 64, 64)
SQUEEZED = 12
"""Hidden channels of squeeze and excitation: fitted, see `TwoWayDenseLayer`."""


class TwoWayDenseLayer(nn.Module):
    """PeleeNet's dense layer: appends 16 channels that see 5x5 and 16 that see 3x3 pixels (in -> in + 32).

    Args:
        in_channels: of the input.
        bottleneck: width of the 1x1 convolutions.
        activation: of all convolutions.
        groups: of the first 3x3 convolution of each branch (PeleeNeXt).
        squeeze_excite: weight the 32 new channels. Where the paper's SE variants place it is not published; this
            placement matches their parameters (+0.02 M).
        growth: number of new channels.
    """

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        activation: str,
        *,
        groups: int = 1,
        squeeze_excite: bool = False,
        growth: int = GROWTH,
    ) -> None:
        super().__init__()
        half = growth // 2
        self.deep = nn.Sequential(
            ConvBN(in_channels, bottleneck, 1, activation=activation),
            ConvBN(bottleneck, half, 3, groups=groups, activation=activation),
            ConvBN(half, half, 3, activation=activation),
        )
        self.shallow = nn.Sequential(
            ConvBN(in_channels, bottleneck, 1, activation=activation),
            ConvBN(bottleneck, half, 3, groups=groups, activation=activation),
        )
        self.weigh = SqueezeExcite(growth, SQUEEZED) if squeeze_excite else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weigh is None:
            return concatenate(x, self.deep(x), self.shallow(x))
        return concatenate(x, self.new_channels(x))

    def new_channels(self, x: Tensor) -> Tensor:
        """The channels that the layer adds: (B, in, H, W) -> (B, 32, H, W)."""
        new = concatenate(self.deep(x), self.shallow(x))
        return new if self.weigh is None else self.weigh(new)


class Stem(nn.Module):
    """(B, 3, S, S) -> (B, 64, S/4, S/4): a pooled and a convolved branch side by side.

    Unlike in PeleeNet's stem, the pooled branch has a 1x1 convolution and the concatenation is not squeezed (Figure 7).
    """

    def __init__(self, activation: str, width: float = 1.0) -> None:
        super().__init__()
        half, quarter = narrowed(STEM_CHANNELS // 2, width), narrowed(STEM_CHANNELS // 4, width)
        self.entry = ConvBN(3, half, 3, stride=2, activation=activation)
        self.pooled = nn.Sequential(nn.MaxPool2d(2), ConvBN(half, half, 1, activation=activation))
        self.convolved = nn.Sequential(
            ConvBN(half, quarter, 1, activation=activation),
            ConvBN(quarter, half, 3, stride=2, activation=activation),
        )
        self.out_channels = 2 * half

    def forward(self, images: Tensor) -> Tensor:
        x = self.entry(images)
        return concatenate(self.convolved(x), self.pooled(x))


def two_way_layers(
    in_channels: int,
    count: int,
    bottleneck: int,
    activation: str,
    *,
    squeeze_excite: bool = False,
    growth: int = GROWTH,
) -> list[nn.Module]:
    """`count` dense layers: in_channels -> in_channels + growth * count."""
    return [
        TwoWayDenseLayer(
            in_channels + growth * number, bottleneck, activation, squeeze_excite=squeeze_excite, growth=growth
        )
        for number in range(count)
    ]


class CSPPeleeNet(Backbone):
    """The backbone: images (B, 3, S, S) -> maps at strides 4, 8, 16, 32.

    The maps of the first three stages are taken before the pooling (what Figure 6(c) calls C2 to C4), the last after
    its second transition (C5).

    Args:
        gamma: share of a stage's channels that bypasses its dense block. The first stage always halves: only then do
            the costs for gamma .25, .5 and .75 all match the published ones (a fit, PAPER section 2.3).
        fusion: which transitions there are (Table 1). csp: both. last: all but those of the first stage; this matches
            the three published costs exactly (a fit; its meaning is a guess). first: no first transition after the
            first stage, the literal reading; no simple network matches the three published costs.
        activation: of every convolution.
        squeeze_excite: channel weights in every dense layer.
        width: factor of all numbers of channels; 1 is the paper's.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(
        self,
        *,
        gamma: float = 0.5,
        fusion: str = "csp",
        activation: str = "leaky",
        squeeze_excite: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.stem = Stem(activation, width)
        growth = narrowed(GROWTH, width)
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels, out_channels = self.stem.out_channels, []
        for index, (num_layers, bottleneck) in enumerate(zip(STAGE_LAYERS, BOTTLENECKS, strict=True)):
            bypass = round(channels * (gamma if index else 0.5))
            entering = channels - bypass
            grown = growth * num_layers
            layers = two_way_layers(
                entering,
                num_layers,
                narrowed(bottleneck, width),
                activation,
                squeeze_excite=squeeze_excite,
                growth=growth,
            )
            self.stages.append(
                partial_stage(
                    layers,
                    in_channels=channels,
                    block_channels=(entering, entering + grown),
                    bypass=bypass,
                    out_channels=None,  # the second transition follows the pooling
                    activation=activation,
                    first_transition=_has_first_transition(fusion, index),
                )
            )
            channels += grown
            out_channels.append(channels)
            # Pooling before the convolution: certain from Figure 7. Max, not average, pooling: likely (it is counted).
            parts: list[nn.Module] = [nn.MaxPool2d(2) if index < 3 else nn.Identity()]
            if fusion != "last" or index:
                parts.append(ConvBN(channels, channels, 1, activation=activation))
            self.transitions.append(nn.Sequential(*parts))
        self.out_channels: tuple[int, ...] = tuple(out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(images)
        maps = []
        for stage, transition in zip(self.stages, self.transitions, strict=True):
            fused = stage(x)
            x = transition(fused)
            maps.append(fused)
        return (*maps[:3], x)


def _has_first_transition(fusion: str, stage: int) -> bool:
    return {"csp": True, "last": stage > 0, "first": stage == 0}[fusion]
