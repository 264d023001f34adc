"""Cross Stage Partial stages (Wang et al., 2019, section 3): one class for every kind of block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.models.layers import ConvBN, concatenate


class CrossStagePartial(nn.Module):
    """Two paths from one map, joined again: the bypass keeps part of the gradient out of the expensive block.

    Data flow: x -> block path (split convolution, block, first transition)
               x -> bypass path (split convolution)
               -> concatenation -> fusion (second transition).

    The split is a pair of 1x1 convolutions on the same input, as in the authors' cfg files (they call a slice of
    one convolution "an equivalent implementation"). The block path comes first in the concatenation:
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


def partial_stage(
    blocks: Sequence[nn.Module],
    *,
    in_channels: int,
    block_channels: tuple[int, int],
    bypass: int,
    out_channels: int | None,
    activation: str,
    split_activation: str | None = None,
    first_transition: bool = True,
    bypass_path: nn.Module | None = None,
) -> CrossStagePartial:
    """Any blocks between the split and the two transitions; all convolutions outside the blocks are 1x1.

    Args:
        blocks: the partial block: dense, residual, ResNeXt or inverted residual layers, in order.
        in_channels: of the stage.
        block_channels: input of the first block, output of the last one.
        bypass: channels that go around the blocks.
        out_channels: after the second transition; None = no second transition, the concatenation is the output.
        activation: of all convolutions outside the blocks.
        split_activation: of the two convolutions that split, where it differs (csresnext50.cfg has linear ones).
        first_transition: a convolution after the blocks, before the concatenation (the paper's "fusion last").
        bypass_path: the bypass, where it is more than the split convolution.
    """
    entry, width = block_channels
    split = split_activation or activation
    path = [ConvBN(in_channels, entry, 1, activation=split), *blocks]
    if first_transition:
        path.append(ConvBN(width, width, 1, activation=activation))
    joined = width + bypass
    return CrossStagePartial(
        block_path=nn.Sequential(*path),
        bypass_path=bypass_path or ConvBN(in_channels, bypass, 1, activation=split),
        fusion=nn.Identity() if out_channels is None else ConvBN(joined, out_channels, 1, activation=activation),
    )
