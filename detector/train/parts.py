"""`train.subdivisions: auto`: the fewest parts of a batch that fit into the memory.

Darknet normalises each part of a batch by the part's own statistics, so the number of parts is part of a published
protocol: 16 parts of 4 images in the paper's configs. Where no protocol is followed, larger parts are better
statistics and, on a GPU, faster.

The number is chosen once, before the first step, and written into the run's config.yaml: a run that is resumed, on
whatever machine, keeps it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from detector.config import ClassifyConfig, RunConfig, load_run_config
from detector.errors import InputError
from detector.inference.build import build_network
from detector.models.precision import compute_dtype
from detector.train.memory import available_bytes

SHARE_OF_FREE_MEMORY = 0.7
"""The rest is left to the loader's workers, the evaluation and fragmentation."""
OVERHEAD = 1.3
"""Memory of a step / of what its forward pass keeps for the backward pass: gradients and workspaces come on top."""


def resolve_subdivisions(config: RunConfig, device: torch.device, num_ranks: int = 1) -> RunConfig:
    """The config with a number of parts: its own, that of the run in its folder, or the fewest that fit.

    Args:
        config: any run's config; `auto` is stored as 0.
        device: where it will be trained.
        num_ranks: processes that share a batch, and on a CPU its memory.

    Raises:
        InputError: not even one image fits, or the batch cannot be shared by the processes.
    """
    if config.train.subdivisions:
        return config
    recorded = Path(config.run_dir or "") / "config.yaml"
    count = load_run_config(recorded).train.subdivisions if config.run_dir and recorded.is_file() else 0
    count = count or fewest_parts(config, device, num_ranks)
    return replace(config, train=replace(config.train, subdivisions=count))


def fewest_parts(config: RunConfig, device: torch.device, num_ranks: int = 1) -> int:
    """See `resolve_subdivisions`."""
    if config.train.batch_size % num_ranks:
        raise InputError(
            f"train.batch_size {config.train.batch_size} cannot be shared by {num_ranks} processes; make it a "
            f"multiple of {num_ranks}"
        )
    images = config.train.batch_size // num_ranks
    available = SHARE_OF_FREE_MEMORY * available_bytes(device) / (1 if device.type == "cuda" else num_ranks)
    each = bytes_per_image(config, compute_dtype(config.train.precision, device))
    fitting = [parts for parts in range(1, images + 1) if images % parts == 0 and images // parts * each <= available]
    if not fitting:
        raise InputError(
            f"train.subdivisions: one image needs about {each / 2**20:.0f} MiB, of {available / 2**20:.0f} MiB that "
            "are free; lower preprocess.size_hw, or set train.subdivisions to try it anyway"
        )
    return fitting[0]


def bytes_per_image(config: RunConfig, dtype: torch.dtype) -> float:
    """About how much memory a training step needs for one more image of the largest size, in bytes."""
    kept = _kept_for_backward(build_on_meta(config), largest_size(config), images=2)
    return OVERHEAD * kept / 2 * (dtype.itemsize / torch.float32.itemsize)


def largest_size(config: RunConfig) -> tuple[int, int]:
    """The largest network size (height, width) that the run trains at."""
    if isinstance(config, ClassifyConfig):
        return config.input.size, config.input.size
    (height, width), scales = config.preprocess.size_hw, config.augment.multi_scale
    grown = scales.max_size / max(height, width) if scales else 1.0
    return max(height, round(height * grown)), max(width, round(width * grown))


def build_on_meta(config: RunConfig) -> nn.Module:
    """The run's network without memory, for shapes only."""
    with torch.device("meta"):
        return build_network(config.model).train()


def _kept_for_backward(network: nn.Module, size_hw: tuple[int, int], images: int) -> int:
    """Bytes of the tensors, each storage once, that a float32 forward pass keeps for the backward pass."""
    kept: dict[int, Tensor] = {}
    parameters = {id(parameter) for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in parameters:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(images, 3, *size_hw, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
