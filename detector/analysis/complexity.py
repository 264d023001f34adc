"""What a network costs, counted as the CSPNet paper counts it (and Darknet prints it).

- BFLOPs: 2 * k * k * (in / groups) * out * H * W of every convolution, k * k * C * H * W of every max pooling and
  in * H * W of every Maxout, in units of 1e9. Normalisation, activation, addition and resizing are free.
- Parameters: convolution weights, and biases of convolutions without normalisation. Normalisation is not counted.
- CIO (the paper's Figure 8): input plus output elements of every convolution and pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.darknet.operations import MaxPool
from detector.models.layers import Maxout


@dataclass(frozen=True)
class LayerCost:
    """One layer that costs something, at batch 1.

    Attributes:
        name: its path in the network, as in `named_modules`.
        kind: conv | maxpool | maxout | avgpool.
        kernel: such as "3x3/2"; empty for Maxout.
        input_chw, output_chw: channels, height, width.
        params: parameters as the paper counts them.
        bflops: 1e9 operations.
        cio: elements read plus elements written.
    """

    name: str
    kind: str
    kernel: str
    input_chw: tuple[int, int, int]
    output_chw: tuple[int, int, int]
    params: int
    bflops: float
    cio: int

    @property
    def elements_moved(self) -> int:
        """Elements of input and output; CIO without its exception for Maxout."""
        return math.prod(self.input_chw) + math.prod(self.output_chw)


def measure_complexity(network: nn.Module, size_hw: tuple[int, int]) -> list[LayerCost]:
    """Costs of `network` for one image (3, H, W), in the order of execution. The network is left as it was.

    Args:
        network: takes images (B, 3, H, W).
        size_hw: height and width of the input in pixels.
    """
    costs: list[LayerCost] = []
    handles = [
        module.register_forward_hook(_recorder(name, costs))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | MaxPool | Maxout | nn.AdaptiveAvgPool2d)
    ]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, *size_hw, device=next(network.parameters()).device))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return costs


def _recorder(name: str, costs: list[LayerCost]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        costs.append(_layer_cost(name, module, inputs[0][0], output[0]))

    return record


def _layer_cost(name: str, module: nn.Module, source: Tensor, target: Tensor) -> LayerCost:
    """The cost of one layer that turned `source` (C, H, W) into `target`."""
    kind, kernel, params, operations = "avgpool", "", 0, 0
    places = target.shape[1] * target.shape[2]
    if isinstance(module, nn.Conv2d):
        kind, kernel = "conv", f"{module.kernel_size[0]}x{module.kernel_size[1]}/{module.stride[0]}"
        params = module.weight.numel() + (module.bias.numel() if module.bias is not None else 0)
        operations = 2 * module.weight.numel() * places
    elif isinstance(module, nn.MaxPool2d):
        kind, kernel = "maxpool", f"{module.kernel_size}x{module.kernel_size}/{module.stride}"
        operations = int(module.kernel_size) ** 2 * target.numel()  # type: ignore[arg-type]
    elif isinstance(module, MaxPool):
        kind, kernel = "maxpool", f"{module.size}x{module.size}/{module.stride[0]}"
        operations = module.size**2 * target.numel()
    elif isinstance(module, Maxout):
        kind, operations = "maxout", source.numel()
    return LayerCost(
        name=name,
        kind=kind,
        kernel=kernel,
        input_chw=(source.shape[0], source.shape[1], source.shape[2]),
        output_chw=(target.shape[0], target.shape[1], target.shape[2]),
        params=params,
        bflops=operations / 1e9,
        cio=0 if kind == "maxout" else source.numel() + target.numel(),
    )


@dataclass(frozen=True)
class Totals:
    """Sums over the layers, as the paper counts; `params_with_norm` adds the normalisations' scales and shifts.

    It is None if they are already part of the convolutions.
    """

    params: int
    params_with_norm: int | None
    bflops: float
    cio: int


def total_complexity(network: nn.Module, costs: list[LayerCost]) -> Totals:
    """Sums of `measure_complexity(network, ...)`."""
    return Totals(
        params=sum(cost.params for cost in costs),
        params_with_norm=sum(parameter.numel() for parameter in network.parameters()),
        bflops=sum(cost.bflops for cost in costs),
        cio=sum(cost.cio for cost in costs),
    )


def complexity_table(costs: list[LayerCost], totals: Totals, held: Mapping[str, int] | None = None) -> str:
    """Layers and totals as text.

    Args:
        costs: costs of the layers.
        totals: their sums.
        held: bytes of feature maps in memory after each layer, if known.
    """
    with_norm = f"; {totals.params_with_norm:,} with normalisation" if totals.params_with_norm is not None else ""
    memory = held or {}
    width = max(len(cost.name) for cost in costs)
    lines = [
        f"{'':>4} {'layer':<{width}} {'kind':<8}{'kernel':<8}{'input':>16}{'output':>16}{'params':>11}{'BFLOPs':>9}"
        f"{'CIO M':>8}" + (f"{'held MB':>9}" if memory else "")
    ]
    for number, cost in enumerate(costs):
        source, target = ("x".join(map(str, chw)) for chw in (cost.input_chw, cost.output_chw))
        lines.append(
            f"{number:>4} {cost.name:<{width}} {cost.kind:<8}{cost.kernel:<8}{source:>16}{target:>16}"
            f"{cost.params:>11,}{cost.bflops:>9.4f}{cost.cio / 1e6:>8.3f}"
            + (f"{memory[cost.name] / 2**20:>9.2f}" if cost.name in memory else "")
        )
    lines.append(
        f"total: {totals.params / 1e6:.2f} M parameters ({totals.params:,}{with_norm}), "
        f"{totals.bflops:.3f} BFLOPs, CIO {totals.cio / 1e6:.1f} M"
    )
    return "\n".join(lines)
