"""What backbones and necks declare, so that the next part can read it and no channel number is written twice."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """Images (B, 3, S, S) float in [0, 1] -> one map for each stride, fine to coarse.

    Attributes:
        out_channels: of the maps.
        strides: of the maps, in pixels of the input.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]


class Neck(nn.Module):
    """A backbone's maps at strides 4, 8, 16, 32 (C2 to C5) -> one fused map for each scale of the head.

    Attributes:
        out_channels: of the fused maps.
        strides: of the fused maps, in pixels of the input.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
