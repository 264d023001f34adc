"""PyTorch: folded convolutions, channels_last, float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from detector.models.layers import fold_batchnorm
from detector.runtime.protocol import Pixels
from detector.structures import Floats


class TorchRuntime:
    """Runs an `nn.Module`, which is copied and not changed.

    Args:
        network: images (B, 3, H, W) in [0, 1] -> outputs.
        bf16: compute in bfloat16; inputs and outputs of the network are rounded to it as well.
        device: such as "cpu" or "cuda:0".
    """

    def __init__(self, network: nn.Module, *, bf16: bool = False, device: str | torch.device = "cpu") -> None:
        self.name = "torch-bf16" if bf16 else "torch"
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._device = torch.device(device)
        folded = fold_batchnorm(network).to(self._device, self._dtype)
        self._network = folded.to(memory_format=torch.channels_last)

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        pixels = torch.from_numpy(images).to(self._device, non_blocking=True).permute(0, 3, 1, 2)  # channels_last
        with torch.inference_mode():
            outputs = self._network(pixels.float().div_(255).to(self._dtype))
            return [output.float().cpu().numpy() for output in outputs]
