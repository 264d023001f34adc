"""The Cross Stage Partial idea (Wang et al., 2019, section 3): one piece, whatever the block inside."""

from __future__ import annotations

from torch import Tensor, nn

from detector.models.layers import concatenate


class CrossStagePartial(nn.Module):
    """Two paths from one map, joined again: the bypass keeps part of the gradient out of the expensive block.

    Where an image passes: x -> block path (split convolution, block, first transition)
                           x -> bypass path (split convolution)
                           -> concatenation -> fusion (second transition).

    The split is a pair of 1x1 convolutions on the same input, as in the authors' cfg files (a slice of one
    convolution is "an equivalent implementation", as they say). The block path comes first in the concatenation:
    Darknet's `route layers = -1, -N`.
    """

    def __init__(self, *, block_path: nn.Module, bypass_path: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.block_path = block_path
        self.bypass_path = bypass_path
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion(concatenate(self.block_path(x), self.bypass_path(x)))
        return out
