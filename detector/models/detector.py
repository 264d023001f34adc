"""A detector: backbone, neck and head in sequence."""

from __future__ import annotations

from torch import Tensor, nn


class Detector(nn.Module):
    """Images (B, 3, H, W) float in [0, 1], H and W multiples of 32 -> raw maps, fine to coarse.

    It handles no targets, boxes or files and is the same in training and inference.

    Attributes:
        strides: of the raw maps, in input pixels.
    """

    def __init__(self, *, backbone: nn.Module, neck: nn.Module, head: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.strides = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        raw_maps: list[Tensor] = self.head(self.neck(self.backbone(images)))
        return raw_maps
