"""The Exact Fusion Model: for each anchor size, the features of its own scale and of the two adjacent ones.

CSPNet paper, section 3.3 and Figure 6(c). No cfg of it is public. The convolutions are the bars of Figure 7, so
parameters and BFLOPs match the published ones; which map feeds which convolution is inferred from the bars.

Legend: C2..C5 backbone maps at strides 4, 8, 16, 32; L lateral (top-down) maps; D maps downsampled from a finer
stride; P4 the middle of the pyramid; F fused maps, one for each prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.models.interface import Neck
from detector.models.layers import (
    ConvBN,
    SpatialAttention,
    SpatialPyramidPooling,
    Upsample2,
    compress,
    concatenate,
    narrowed,
)


class ExactFusionModel(Neck):
    """Backbone maps C2..C5 -> fused maps (64, 128, 128 channels) at strides 8, 16, 32.

    Args:
        in_channels: of C2, C3, C4, C5; Maxout compresses C2 to 32, C3 to 64 and C4 to 128 (see `compress`).
        attention: none, or sam: SAM on each fused map before its last two convolutions (1x1 on 128, 256, 256
            channels: the only placement that matches the published cost and parameters).
        spp: spatial pyramid pooling on C5's branch, after a 1x1 convolution to 64 channels. Only its cost is
            published (4.863 BFLOPs, ours 4.874): a reconstruction.
        width: factor of all numbers of channels; 1 is the paper's.
        activation: of every convolution.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        attention: str = "none",
        spp: bool = False,
        width: float = 1.0,
        activation: str = "leaky",
    ) -> None:
        super().__init__()

        def conv(cin: int, cout: int, kernel_size: int, stride: int = 1) -> ConvBN:
            return ConvBN(cin, cout, kernel_size, stride=stride, activation=activation)

        def attend(channels: int) -> nn.Module:
            return SpatialAttention(channels) if attention == "sam" else nn.Identity()

        w32, w64, w128, w256 = (narrowed(channels, width) for channels in (32, 64, 128, 256))
        self.out_channels = (w64, w128, w128)
        self.up = Upsample2()
        self.maxout_c2, self.maxout_c3, self.maxout_c4 = (
            compress(channels, reduced, activation)
            for channels, reduced in zip(in_channels, (w32, w64, w128), strict=False)
        )
        # The numbers on the right are the bars of Figure 7.
        pyramid = [conv(w256, w64, 1), SpatialPyramidPooling()] if spp else []
        self.lateral5 = nn.Sequential(
            conv(in_channels[3], w256, 1), conv(w256, w256, 3), *pyramid, conv(w256, w128, 1)
        )  # 114-116
        self.lateral4 = nn.Sequential(conv(2 * w128, w128, 1), conv(w128, w128, 3), conv(w128, w64, 1))  # 119-121
        self.down3 = conv(w64, w64, 3, stride=2)  # 123
        self.pyramid4 = nn.Sequential(conv(2 * w64, w64, 1), conv(w64, w64, 3))  # 124-125
        self.lateral3 = nn.Sequential(conv(w64, w64, 1), conv(w64, w64, 3), conv(w64, w32, 1))  # 129-131
        self.down2 = conv(w32, w32, 3, stride=2)  # 133
        f3, f4, f5 = 2 * w32 + w64, 2 * w64 + w128, 2 * w128
        self.fuse3 = nn.Sequential(attend(f3), conv(f3, w64, 1), conv(w64, w64, 3))  # 135-136
        # Bar 139 may be 128 -> 64 or 64 -> 128 channels (the same cost); only 128 -> 64 gives bar 142 its 256 inputs.
        self.next4 = conv(f3, w64, 3, stride=2)
        self.fuse4 = nn.Sequential(attend(f4), conv(f4, w128, 1), conv(w128, w128, 3))  # 142-143
        self.next5 = conv(f4, w128, 3, stride=2)  # 146
        self.fuse5 = nn.Sequential(attend(f5), conv(f5, w128, 1), conv(w128, w128, 3))  # 147-148

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        c2, c3, c4, c5 = maps
        c3 = self.maxout_c3(c3)  # 64 channels, stride 8
        l5 = self.lateral5(c5)  # 128, 32
        l4 = self.lateral4(concatenate(self.up(l5), self.maxout_c4(c4)))  # 64, 16
        p4 = self.pyramid4(concatenate(l4, self.down3(c3)))  # 64, 16
        d2 = self.down2(self.maxout_c2(c2))  # 32, 8
        f3 = concatenate(self.lateral3(c3), d2, self.up(p4))  # 128, 8
        f4 = concatenate(self.next4(f3), p4, self.up(l5))  # 256, 16
        f5 = concatenate(self.next5(f4), l5)  # 256, 32
        return self.fuse3(f3), self.fuse4(f4), self.fuse5(f5)
