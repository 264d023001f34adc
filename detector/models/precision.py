"""The precision that a network computes in, and the conversion of images to its input."""

from __future__ import annotations

import torch
from torch import Tensor


def to_network_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [0, 1] on the device, channels_last."""
    return images.to(device, non_blocking=True).to(memory_format=torch.channels_last).float().div_(255)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context to compute in: bfloat16 if `use_bf16` is true, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision))


def use_bf16(precision: str) -> bool:
    """Whether to compute in bfloat16; `auto` asks the processor, or the GPU where there is one."""
    if precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    return precision == "bf16"
