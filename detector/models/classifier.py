"""An image classifier on top of any backbone: how the paper measures them on ImageNet."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """Images (B, 3, H, W) float in [0, 1] -> logits (B, num_classes): mean over all positions, then a linear layer.

    The linear layer is a 1x1 convolution on a 1x1 map, as in the cfg files.
    """

    def __init__(self, *, backbone: nn.Module, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.pool(self.backbone(images)[-1]))
        return logits.flatten(1)
