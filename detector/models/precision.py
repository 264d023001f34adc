"""The precision that a network computes in, and the conversion of images to its input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_network_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [0, 1] on the device, channels_last."""
    return images.to(device, non_blocking=True).to(memory_format=torch.channels_last).float().div_(255)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What a network computes in on a device.

    Args:
        precision: fp32, tf32, fp16, bf16; auto = bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU.
        device: CPU or GPU.
    """
    if precision == "auto" and device.type == "cuda":
        # Before compute capability 8, bf16 is emulated, though PyTorch calls it supported.
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if precision == "auto":
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context to compute in; see `compute_dtype`."""
    dtype = compute_dtype(precision, device)
    reduced = dtype != torch.float32
    return torch.autocast(device.type, dtype if reduced else torch.bfloat16, enabled=reduced)


def multiply_float32_in(convolutions: str, products: str | None = None) -> tuple[str, str]:
    """Sets how GPUs multiply float32 numbers in this process, all threads of it; returns what was set before.

    Args:
        convolutions: "ieee" = exactly; "tf32" = with 10 bits of their fraction, PyTorch's own default.
        products: the same for matrix products; None = as convolutions.
    """
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = (settings[0].fp32_precision, settings[1].fp32_precision)
    settings[0].fp32_precision, settings[1].fp32_precision = convolutions, products or convolutions
    return before


@contextmanager
def gpu_arithmetic(*, tf32: bool = False, deterministic: bool = False) -> Iterator[None]:
    """How the GPU computes in here; the CPU is not affected.

    Args:
        tf32: multiply float32 numbers with 10 bits of their fraction. PyTorch's own default is True for convolutions.
        deterministic: the same bits in every run. An operation that cannot is an error.
    """
    before = multiply_float32_in("tf32" if tf32 else "ieee")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        multiply_float32_in(*before)
        if deterministic:
            torch.use_deterministic_algorithms(False)
