"""The necks that the paper compares its Exact Fusion Model with: GFM and CEM. Both are RECONSTRUCTIONS.

Published of GFM: Figure 6(b) and 4.605 BFLOPs with CSPPeleeNet at 416 (ours 4.622). Published of CEM: ThunderNet's
idea and 4.049 BFLOPs, 4.165 with SAM (ours 4.049 and 4.160). Both use the convolutions that Figure 7 shows for EFM.

Legend: C2..C5 backbone maps at strides 4, 8, 16, 32; G the mean of C5 over all positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.models.interface import Neck
from detector.models.layers import ConvBN, SpatialAttention, Upsample2, compress, concatenate


def global_context(in_channels: int, out_channels: int, activation: str) -> nn.Sequential:
    """G and a 1x1 convolution: (B, in, H, W) -> (B, out, 1, 1). It has biases: one position cannot be normalised."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), ConvBN(in_channels, out_channels, 1, normalize=False, activation=activation)
    )


class GlobalFusionModel(Neck):
    """GFM: all scales and the global mean in one map of stride 16, from which each scale takes its features.

    Backbone maps -> fused maps (64, 128, 128 channels) at strides 8, 16, 32.
    """

    strides = (8, 16, 32)
    out_channels = (64, 128, 128)

    def __init__(self, *, in_channels: Sequence[int], activation: str = "leaky") -> None:
        super().__init__()

        def conv(cin: int, cout: int, kernel_size: int, stride: int = 1) -> ConvBN:
            return ConvBN(cin, cout, kernel_size, stride=stride, activation=activation)

        self.maxout_c2, self.maxout_c3, self.maxout_c4 = (
            compress(channels, width, activation) for channels, width in zip(in_channels, (32, 64, 128), strict=False)
        )
        self.up = Upsample2()
        self.lateral5 = nn.Sequential(conv(in_channels[3], 256, 1), conv(256, 256, 3), conv(256, 128, 1))
        self.context = global_context(in_channels[3], 128, activation)
        self.down3 = conv(64, 64, 3, 2)
        self.down2 = nn.Sequential(conv(32, 64, 3, 2), conv(64, 64, 3, 2))
        self.gather = nn.Sequential(conv(512, 128, 1), conv(128, 128, 3))
        self.fuse3 = nn.Sequential(conv(128, 64, 1), Upsample2(), conv(64, 64, 3))
        self.next4 = conv(64, 128, 3, 2)
        self.fuse4 = nn.Sequential(conv(256, 128, 1), conv(128, 128, 3))
        self.next5 = conv(128, 128, 3, 2)
        self.fuse5 = nn.Sequential(conv(256, 128, 1), conv(128, 128, 3))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        c2, c3, c4, c5 = maps
        l5 = self.lateral5(c5)  # 128 channels, stride 32
        c4 = self.maxout_c4(c4)  # 128, 16
        context = self.context(c5).expand_as(c4)  # 128, 16
        d3, d2 = self.down3(self.maxout_c3(c3)), self.down2(self.maxout_c2(c2))  # 64 and 64, 16
        gathered = self.gather(concatenate(self.up(l5), c4, d3, d2, context))  # 128, 16
        f3 = self.fuse3(gathered)  # 64, 8
        f4 = self.fuse4(concatenate(self.next4(f3), gathered))  # 128, 16
        return f3, f4, self.fuse5(concatenate(self.next5(f4), l5))


class ContextEnhancement(Neck):
    """ThunderNet's Context Enhancement Module: C4, C5 and G are added into one map of stride 16 for two scales.

    Backbone maps -> fused maps (128, 128 channels) at strides 16, 32.

    Args:
        in_channels: of C2, C3, C4, C5.
        attention: none, or sam: SAM on the common map and on its strided copy.
        activation: of every convolution.
    """

    strides = (16, 32)
    out_channels = (128, 128)

    def __init__(self, *, in_channels: Sequence[int], attention: str = "none", activation: str = "leaky") -> None:
        super().__init__()

        def conv(cin: int, cout: int, kernel_size: int, stride: int = 1) -> ConvBN:
            return ConvBN(cin, cout, kernel_size, stride=stride, activation=activation)

        def attend() -> nn.Module:
            return SpatialAttention(256) if attention == "sam" else nn.Identity()

        self.local4 = conv(in_channels[2], 256, 1)
        self.local5 = nn.Sequential(conv(in_channels[3], 256, 1), conv(256, 256, 3), Upsample2())
        self.context = global_context(in_channels[3], 256, activation)
        self.attend4 = attend()
        self.fuse4 = nn.Sequential(conv(256, 128, 1), conv(128, 128, 3))
        self.next5 = nn.Sequential(conv(256, 256, 3, 2), attend())
        self.fuse5 = nn.Sequential(conv(256, 128, 1), conv(128, 128, 3))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        c4, c5 = maps[2:]
        common = self.attend4(self.local4(c4) + self.local5(c5) + self.context(c5))  # 256 channels, stride 16
        return self.fuse4(common), self.fuse5(self.next5(common))
