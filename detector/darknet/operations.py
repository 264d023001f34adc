"""What Darknet's sections compute, one module each; convolutions are `detector.models.layers.ConvBN`.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.darknet.cfg import Section
from detector.models.layers import ACTIVATIONS


@dataclass(frozen=True)
class YoloSection:
    """How a [yolo] section reads its input.

    Attributes:
        anchors_wh: the anchors of its mask, (width, height) in network pixels.
        num_classes: C.
        scale_xy: scale_x_y.
        new_coords: whether its input is already activated and sizes are squared (Scaled-YOLOv4).
        section: the section itself, for the keys of the training recipe.
    """

    anchors_wh: tuple[tuple[float, float], ...]
    num_classes: int
    scale_xy: float
    new_coords: bool
    section: Section


class MaxPool(nn.Module):
    """Darknet's maxpool: `padding` pixels in total (size - 1 by default), half of them (rounded down) before the map.

    Attributes:
        cpu_parity: leave out the columns that Darknet's CPU program leaves out. It computes eight neighbours at once
            (`forward_maxpool_layer_avx`); if the first one's window starts n columns left of the map, all eight windows
            lose their first n columns. In training, on GPUs and in other programs the windows are complete.
    """

    def __init__(self, size: int, stride: tuple[int, int], padding: int) -> None:
        super().__init__()
        self.size = size
        self.stride = stride
        self.padding = padding
        self.cpu_parity = True

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.padding // 2, self.padding - self.padding // 2
        padded = functional.pad(x, (before, after, before, after), value=-math.inf) if self.padding else x
        out = functional.max_pool2d(padded, self.size, self.stride)
        if not self.cpu_parity or self.training or self.stride != (1, 1) or not before:
            return out
        rows = padded[..., before : before + x.shape[3]]  # padded above and below only
        for first in range(0, min(out.shape[3] - 8 - (self.size - 1), before), 8):
            reach = self.size - (before - first)
            out[..., first : first + 8] = functional.max_pool2d(rows[..., : 7 + reach], (self.size, reach), 1)
        return out


class Route(nn.Module):
    """Concatenates maps, or group `group_id` (of `groups`) of each map."""

    def __init__(self, groups: int, group_id: int) -> None:
        super().__init__()
        self.groups = groups
        self.group_id = group_id

    def forward(self, *maps: Tensor) -> Tensor:
        parts = [x.chunk(self.groups, dim=1)[self.group_id] for x in maps]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Shortcut(nn.Module):
    """Adds maps to the first one in the channels that both have; then an activation.

    A map of another size is subsampled, or spread over every n-th position, as in Darknet of 2018 (`shortcut_cpu`).
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        total = x.clone()
        for other in others:
            channels = min(x.shape[1], other.shape[1])
            step = max(other.shape[3] // x.shape[3], 1)
            spread = max(x.shape[3] // other.shape[3], 1)
            part = other[:, :channels, ::step, ::step]
            target = total[:, :channels, ::spread, ::spread]
            height, width = min(part.shape[2], target.shape[2]), min(part.shape[3], target.shape[3])
            target[..., :height, :width] += part[..., :height, :width]
        out: Tensor = self.activation(total)
        return out


class Multiply(nn.Module):
    """[scale_channels] and [sam]: the earlier map times this one, which is (B, C, 1, 1) or of the same size."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        out: Tensor = self.activation(earlier * x)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, multiplied by `scale`."""

    def __init__(self, stride: int, scale: float) -> None:
        super().__init__()
        self.stride = stride
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        up = functional.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        return up if self.scale == 1 else up * self.scale


class Softmax(nn.Module):
    """Softmax over the channels, in `groups` equal parts: (B, C, 1, 1) -> (B, C)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat.view(len(flat), self.groups, -1).softmax(dim=-1).flatten(1)


class YoloActivation(nn.Module):
    """What Darknet stores as the output of [yolo]: sigmoids on x, y (stretched by scale_x_y), objectness, classes."""

    def __init__(self, yolo: YoloSection) -> None:
        super().__init__()
        self.yolo = yolo

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        maps = x.view(batch, len(self.yolo.anchors_wh), 5 + self.yolo.num_classes, height, width)
        sizes, others = maps[:, :, 2:4], maps
        if not self.yolo.new_coords:
            others = maps.sigmoid()
        centre = others[:, :, :2] * self.yolo.scale_xy - (self.yolo.scale_xy - 1) / 2
        out = torch.cat((centre, sizes, others[:, :, 4:]), dim=2)
        return out.view(batch, channels, height, width)
