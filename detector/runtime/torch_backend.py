"""PyTorch, on the CPU or a GPU: folded convolutions, channels_last, float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detector.models.layers import fold_batchnorm
from detector.postprocess import Places
from detector.runtime.device import find_device
from detector.runtime.protocol import Pixels
from detector.structures import Floats


class TorchRuntime:
    """Runs an `nn.Module`, which is copied and not changed.

    Args:
        network: images (B, 3, H, W) in [0, 1] -> outputs.
        bf16: compute in bfloat16; inputs and outputs of the network are rounded to it as well.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: there is no such device.
    """

    def __init__(self, network: nn.Module, *, bf16: bool = False, device: str | torch.device = "cpu") -> None:
        self.name = "torch-bf16" if bf16 else "torch"
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self.device = find_device(str(device))
        folded = fold_batchnorm(network).to(self.device, self._dtype)
        self._network = folded.to(memory_format=torch.channels_last)

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        with torch.inference_mode():
            return [output.float().cpu().numpy() for output in self._outputs(images)]

    def run_above(self, images: Pixels, num_anchors: Sequence[int], lowest: float) -> Places:
        """The part of the raw maps with an objectness above `lowest`, chosen on the device: less to copy from a GPU.

        Args:
            images: see `Runtime.run`.
            num_anchors: of each scale.
            lowest: what `objectness_limit` returns.
        """
        with torch.inference_mode():
            parts, first_anchor = [], 0
            for output, anchors in zip(self._outputs(images), num_anchors, strict=True):
                parts.append(_places_above(output, anchors, first_anchor, lowest))
                first_anchor += anchors
            codes, where = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
        return Places(codes, np.ascontiguousarray(where.T), len(images))

    def _outputs(self, images: Pixels) -> list[Tensor]:
        pixels = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # channels_last
        outputs: list[Tensor] = self._network(pixels.float().div_(255).to(self._dtype))
        return outputs


def _places_above(raw_map: Tensor, num_anchors: int, first_anchor: int, lowest: float) -> tuple[Tensor, Tensor]:
    """Codes (K', 5 + C) and image, anchor, row, column (K', 4) of the places of a raw map (B, A * (5 + C), h, w)."""
    batch, channels, height, width = raw_map.shape
    raw = raw_map.float().reshape(batch, num_anchors, channels // num_anchors, height, width)
    where = torch.nonzero(raw[:, :, 4] > lowest)
    image, anchor, row, column = where.unbind(1)
    codes = raw[image, anchor, :, row, column]
    where[:, 1] += first_anchor
    return codes, where
