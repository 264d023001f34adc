"""The layers that every network here is made of. They compute the same as Darknet's sections.

Legend: B images, C channels, H, W height and width of a feature map, k kernel size.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "leaky_001": lambda: nn.LeakyReLU(0.01, inplace=True),  # PyTorch's slope, in published weights
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
    "logistic": nn.Sigmoid,
    "linear": nn.Identity,
}


class ConvBN(nn.Module):
    """Convolution, batch normalisation, activation; by default padding kernel_size // 2 keeps the size at stride 1.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Without `normalize` the convolution has biases instead. After `fold_batchnorm` the normalisation is part of the
    convolution and `norm` is an identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        normalize: bool = True,
        activation: str = "leaky",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2 if padding is None else padding,
            dilation,
            groups,
            bias=not normalize,
        )
        # eps 1e-5: AlexeyAB adds it inside the square root. Momentum .03: between Darknet's .1 (CPU) and .01 (GPU).
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.03) if normalize else nn.Identity()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class Maxout(nn.Module):
    """Compresses (B, C, H, W) to (B, out_channels, H, W): the largest of every C / out_channels channels.

    Darknet's `maxpool_depth`: output g is the maximum of the channels g, g + out_channels, g + 2 * out_channels, ...
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        groups = channels // self.out_channels
        if self.training:
            # The same maximum by max pooling, one row per position: its gradient is about ten times faster than amax's.
            places = x.permute(0, 2, 3, 1).reshape(batch, height * width, groups, self.out_channels)
            pooled = max_pool2d(places.permute(0, 3, 1, 2), (1, groups))  # (B, out_channels, H * W, 1)
            return pooled.view(batch, self.out_channels, height, width)
        return functools.reduce(torch.maximum, x.chunk(groups, dim=1))  # (B, out_channels, H, W)


def narrowed(channels: int, width: float) -> int:
    """`width` times the channels, as a multiple of 8, which processors compute best; unchanged at width 1."""
    return channels if width == 1 else max(8 * round(channels * width / 8), 8)


def compress(in_channels: int, out_channels: int, activation: str) -> nn.Module:
    """Reduces to `out_channels`: by Maxout, or by a 1x1 convolution if `in_channels` is not a multiple of them."""
    if in_channels % out_channels == 0:
        return Maxout(out_channels)
    return ConvBN(in_channels, out_channels, 1, activation=activation)


class _Concatenation(torch.autograd.Function):
    """`torch.cat` along the channels, with gradients that are dense tensors instead of views into one.

    If a gradient is only a view of 16 of 96 channels, LeakyReLU's backward is 30 times slower on a CPU. On a GPU it is
    not, and views save a kernel for each part.
    """

    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        ctx.channels = [map_.shape[1] for map_ in maps]
        return torch.cat(maps, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.split(gradient, ctx.channels, dim=1)
        if gradient.is_cuda:
            return parts
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def concatenate(*maps: Tensor) -> Tensor:
    """Maps (B, C_i, H, W) -> (B, sum of C_i, H, W): `torch.cat` along the channels, with a faster gradient."""
    if torch.is_grad_enabled():
        joined: Tensor = _Concatenation.apply(*maps)
        return joined
    return torch.cat(maps, dim=1)


class SpatialAttention(nn.Module):
    """Darknet's `sam`: sigmoid(1x1 conv(x)) * x, a weight for each channel and position; the shape is unchanged.

    The convolution has biases and no normalisation: only then does CSPPeleeNet-EFM(SAM) have the published 4.31 M
    parameters (4.3053; with normalisation, as in an example by the authors, 4.3047).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * x


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (Hu et al., 2018): channel weights from the mean over positions; same shape.

    Both 1x1 convolutions have biases; they end in swish and sigmoid, as in the authors' enetb0.cfg.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            ConvBN(channels, hidden, 1, normalize=False, activation="swish"),
            ConvBN(hidden, channels, 1, normalize=False, activation="logistic"),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class SpatialPyramidPooling(nn.Module):
    """Maxima over 13x13, 9x9 and 5x5 windows, and the map itself: (B, C, H, W) -> (B, 4C, H, W) (YOLOv3-SPP)."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in (13, 9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(*(pool(x) for pool in self.pools), x)


def add_first_channels(x: Tensor, other: Tensor) -> Tensor:
    """Adds the channels that both have, the first min(C, C'), to `x`; same shape (Darknet's partial `shortcut`)."""
    shared = min(x.shape[1], other.shape[1])
    if shared == x.shape[1]:
        return x + other[:, :shared]
    return x + functional.pad(other, (0, 0, 0, 0, 0, x.shape[1] - shared))


def run_stages(stages: nn.ModuleList, x: Tensor) -> tuple[Tensor, ...]:
    """The output of each stage; each reads the one before."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return tuple(maps)


class Upsample2(nn.Upsample):
    """(B, C, H, W) -> (B, C, 2H, 2W), nearest neighbour (Darknet `upsample`)."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):  # which would copy the pixels as float32
            return super().forward(x)


def init_weights(network: nn.Module) -> None:
    """Draws convolution weights from N(0, 2 / (k * k * in / groups)), as Darknet does; biases 0, scales 1.

    Uses torch's global random generator: seed it first.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A copy in eval mode with batch normalisation folded into the convolutions; outputs differ by rounding only."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, ConvBN) and isinstance(module.norm, nn.BatchNorm2d):
            with torch.no_grad():
                module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return folded
