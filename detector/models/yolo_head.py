"""YOLOv3's prediction layer: one 1x1 convolution for each scale.

Legend: B images, A anchors of a scale, C classes, s stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PRIOR_PROBABILITY = 0.01


class YoloHead(nn.Module):
    """Fused maps -> raw maps (B, A * (5 + C), H / s, W / s).

    Per anchor the channels are tx, ty, tw, th, objectness, classes..., before any sigmoid (Darknet's order).
    """

    def __init__(self, *, in_channels: Sequence[int], anchors_per_scale: int, num_classes: int) -> None:
        super().__init__()
        self.num_outputs = 5 + num_classes
        self.anchors_per_scale = anchors_per_scale
        self.output = nn.ModuleList(
            nn.Conv2d(channels, anchors_per_scale * self.num_outputs, 1) for channels in in_channels
        )

    def init_prior(self) -> None:
        """Starts objectness at a probability of 0.01 (Lin et al., 2017, section 4.1).

        Darknet starts at 0.5; the background then dominates the loss for the first few hundred steps.
        """
        with torch.no_grad():
            for layer in self.output:
                assert isinstance(layer, nn.Conv2d)
                assert layer.bias is not None
                nn.init.normal_(layer.weight, std=0.01)
                bias = layer.bias.view(self.anchors_per_scale, self.num_outputs)
                bias[:, 4] = -math.log(1 / PRIOR_PROBABILITY - 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.output, maps, strict=True)]
