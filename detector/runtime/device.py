"""The device that PyTorch computes on, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from detector.errors import InputError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" (the first GPU) or "cuda:N".

    Raises:
        InputError: there is no such name, or no such GPU here.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        reason = "finds none" if torch.version.cuda or torch.version.hip else "was built for the CPU only"
        raise InputError(f"--device {name}: no GPU, this PyTorch ({torch.__version__}) {reason}; use --device cpu")
    index, gpus = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= gpus:
        raise InputError(f"--device {name}: the GPUs here are {', '.join(f'cuda:{each}' for each in range(gpus))}")
    return torch.device("cuda", index)
