"""Feature pyramids of the baselines: YOLOv3 (FPN), PANet(SPP), YOLOv3-tiny, PeleeNet-YOLO, as in the authors' cfgs.

Legend: C3..C5 backbone maps at strides 8, 16, 32; P3..P5 pyramid maps; w width of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.models.interface import Neck
from detector.models.layers import ConvBN, SpatialPyramidPooling, Upsample2, concatenate


def alternating(in_channels: int, width: int, count: int, activation: str) -> list[nn.Module]:
    """`count` convolutions: 1x1 to w, 3x3 to 2w, 1x1 to w, ..."""
    convs: list[nn.Module] = []
    for number in range(count):
        out, kernel_size = (2 * width, 3) if number % 2 else (width, 1)
        convs.append(ConvBN(in_channels, out, kernel_size, activation=activation))
        in_channels = out
    return convs


class Yolov3Pyramid(Neck):
    """YOLOv3's FPN: the top-down path joins each backbone map with the coarser scale (yolov3.cfg, yolov3-spp.cfg).

    Backbone maps -> fused maps (2w each) at strides 8, 16, 32.

    Args:
        in_channels: of C2, C3, C4, C5.
        widths: w of the strides 8, 16, 32; YOLOv3 has (128, 256, 512).
        spp: spatial pyramid pooling on C5's branch.
        activation: of every convolution.
    """

    strides = (8, 16, 32)

    def __init__(
        self, *, in_channels: Sequence[int], widths: tuple[int, int, int], spp: bool = False, activation: str = "leaky"
    ) -> None:
        super().__init__()
        self.out_channels = tuple(2 * width for width in widths)
        before = alternating(in_channels[-1], widths[2], 3, activation)
        if spp:
            after = alternating(4 * widths[2], widths[2], 3, activation)
            first = nn.Sequential(*before, SpatialPyramidPooling(), *after)
        else:
            first = nn.Sequential(*alternating(in_channels[-1], widths[2], 5, activation))
        laterals, ups = [first], []
        for scale in (1, 0):
            width = widths[scale]
            ups.append(nn.Sequential(ConvBN(widths[scale + 1], width, 1, activation=activation), Upsample2()))
            laterals.append(nn.Sequential(*alternating(width + in_channels[scale + 1], width, 5, activation)))
        self.laterals, self.ups = nn.ModuleList(laterals), nn.ModuleList(ups)
        self.expands = nn.ModuleList(ConvBN(width, 2 * width, 3, activation=activation) for width in widths[::-1])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = self.laterals[0](maps[-1])
        pyramid = [x]
        for up, lateral, fine in zip(self.ups, list(self.laterals)[1:], maps[-2:-4:-1], strict=True):
            x = lateral(concatenate(up(x), fine))
            pyramid.append(x)
        return tuple(expand(x) for expand, x in zip(self.expands, pyramid, strict=True))[::-1]


class PathAggregation(Neck):
    """PANet(SPP): a top-down and then a bottom-up path (csresnext50-panet-spp.cfg).

    Backbone maps -> fused maps (256, 512, 1024 channels) at strides 8, 16, 32.
    """

    strides = (8, 16, 32)
    out_channels = (256, 512, 1024)

    def __init__(self, *, in_channels: Sequence[int], activation: str = "leaky") -> None:
        super().__init__()

        def conv(cin: int, cout: int, kernel_size: int, stride: int = 1) -> ConvBN:
            return ConvBN(cin, cout, kernel_size, stride=stride, activation=activation)

        def convs(cin: int, width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*alternating(cin, width, count, activation))

        self.top = nn.Sequential(
            *alternating(in_channels[3], 512, 3, activation),
            SpatialPyramidPooling(),
            *alternating(2048, 512, 3, activation),
        )
        self.up4, self.lateral4 = nn.Sequential(conv(512, 256, 1), Upsample2()), conv(in_channels[2], 256, 1)
        self.pyramid4 = convs(512, 256, 5)
        self.up3, self.lateral3 = nn.Sequential(conv(256, 128, 1), Upsample2()), conv(in_channels[1], 128, 1)
        self.pyramid3 = convs(256, 128, 5)
        self.expand3 = conv(128, 256, 3)
        self.down4, self.path4, self.expand4 = conv(128, 256, 3, 2), convs(512, 256, 5), conv(256, 512, 3)
        self.down5, self.path5, self.expand5 = conv(256, 512, 3, 2), convs(1024, 512, 5), conv(512, 1024, 3)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        _, c3, c4, c5 = maps
        p5 = self.top(c5)  # 512 channels, stride 32
        p4 = self.pyramid4(concatenate(self.lateral4(c4), self.up4(p5)))  # 256, 16
        p3 = self.pyramid3(concatenate(self.lateral3(c3), self.up3(p4)))  # 128, 8
        n4 = self.path4(concatenate(self.down4(p3), p4))  # 256, 16
        n5 = self.path5(concatenate(self.down5(n4), p5))  # 512, 32
        return self.expand3(p3), self.expand4(n4), self.expand5(n5)


class TinyPyramid(Neck):
    """YOLOv3-tiny's two scales: backbone maps -> fused maps (256, 512 channels) at strides 16, 32 (yolov3-tiny.cfg)."""

    strides = (16, 32)
    out_channels = (256, 512)

    def __init__(self, *, in_channels: Sequence[int], activation: str = "leaky") -> None:
        super().__init__()
        self.enter = ConvBN(in_channels[3], 256, 1, activation=activation)
        self.expand5 = ConvBN(256, 512, 3, activation=activation)
        self.up = nn.Sequential(ConvBN(256, 128, 1, activation=activation), Upsample2())
        self.expand4 = ConvBN(128 + in_channels[2], 256, 3, activation=activation)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        top = self.enter(maps[3])
        return self.expand4(concatenate(self.up(top), maps[2])), self.expand5(top)


class PeleeNetYolo(Neck):
    """The head of the paper's PeleeNet-YOLO (Figure 7): two scales, the finer one densely connected.

    Backbone maps -> fused maps (256 + C4's channels, 256) at strides 16, 32.
    """

    strides = (16, 32)

    def __init__(self, *, in_channels: Sequence[int], activation: str = "leaky") -> None:
        super().__init__()
        joined = 128 + in_channels[2]
        self.out_channels = (joined + 128, 256)
        self.enter = ConvBN(in_channels[3], 256, 1, activation=activation)
        self.conv5 = ConvBN(256, 256, 3, activation=activation)
        self.up = nn.Sequential(ConvBN(256, 128, 1, activation=activation), Upsample2())
        self.conv4 = ConvBN(joined, 128, 3, activation=activation)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        top = self.enter(maps[3])
        joined = concatenate(self.up(top), maps[2])
        return concatenate(self.conv4(joined), joined), self.conv5(top)
