"""PyTorch: folded convolutions, channels_last, float32 or bfloat16; or a TorchScript file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from detector.errors import InputError
from detector.models.layers import fold_batchnorm
from detector.runtime.protocol import Pixels, run_in_batches
from detector.structures import Floats

RECORD_FILE = "detector.json"


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


class TorchScriptRuntime:
    """Runs a TorchScript file written by tools/export.py on the CPU.

    Args:
        path: path of the file.
        batch: images per run; None = any number.

    Raises:
        InputError: it cannot be loaded.
    """

    name = "torch"

    def __init__(self, path: Path, *, batch: int | None) -> None:
        self._network, _ = load_script(path)
        self._batch = batch

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        return run_in_batches(self._run, images, self._batch)

    def _run(self, images: Pixels) -> list[Floats]:
        with torch.inference_mode():
            outputs = self._network(torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255))
            return [output.numpy() for output in outputs]


def load_script(path: Path) -> tuple[torch.jit.ScriptModule, str]:
    """A TorchScript file and the text of its record (empty = none). Raises: InputError."""
    files = {RECORD_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch recommends its other format, which C++ cannot read
            network = torch.jit.load(str(path), map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: is not a TorchScript file, or is damaged ({str(error).splitlines()[0]})") from error
    text: str | bytes = files[RECORD_FILE]
    return network.eval(), text.decode() if isinstance(text, bytes) else text
