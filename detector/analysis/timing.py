"""How long each layer takes on this machine, and how long it would take at best (the roofline)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from detector.analysis.complexity import LayerCost
from detector.analysis.peak import copy_gbytes, matrix_product_gflops
from detector.models.layers import fold_batchnorm

WARM_UP = 3
BYTES = 4
"""Of one element in float32."""


@dataclass(frozen=True)
class Machine:
    """What this machine can do at best, measured in float32 with torch's threads.

    Attributes:
        gflops: 10^9 operations a second in a large product of matrices.
        gbytes: 10^9 bytes read and written a second by a large copy.
    """

    gflops: float
    gbytes: float


def measure_machine() -> Machine:
    """Measures this machine for about a second."""
    return Machine(matrix_product_gflops(torch.float32), copy_gbytes())


def measure_layers(
    network: nn.Module, names: Sequence[str], size_hw: tuple[int, int], *, runs: int = 10
) -> tuple[dict[str, float], float]:
    """Runs a copy with folded normalisation on one image, in float32 and channels_last.

    Args:
        network: takes images (B, 3, H, W).
        names: of the modules to time.
        size_hw: height and width of the input in pixels.
        runs: measured runs, after some warm-up runs.

    Returns:
        the median ms of each module that ran, and of the whole network.
    """
    copy = fold_batchnorm(network).to(memory_format=torch.channels_last)
    images = torch.rand(1, 3, *size_hw).to(memory_format=torch.channels_last)
    spent: dict[str, list[float]] = defaultdict(list)
    started: dict[str, float] = {}
    wanted = set(names)

    def begin(name: str) -> Any:
        return lambda *_: started.__setitem__(name, time.perf_counter())

    def end(name: str) -> Any:
        return lambda *_: spent[name].append(1000 * (time.perf_counter() - started[name]))

    for name, module in copy.named_modules():
        if name in wanted:
            module.register_forward_pre_hook(begin(name))
            module.register_forward_hook(end(name))
    totals = []
    with torch.inference_mode():
        for _ in range(WARM_UP + runs):
            begun = time.perf_counter()
            copy(images)
            totals.append(1000 * (time.perf_counter() - begun))
    per_run = {name: len(values) // (WARM_UP + runs) for name, values in spent.items()}
    times = {name: median(values[WARM_UP * per_run[name] :]) * per_run[name] for name, values in spent.items()}
    return times, median(totals[WARM_UP:])


@dataclass(frozen=True)
class LayerTime:
    """A layer's time compared with what the machine allows.

    Attributes:
        ms: measured.
        best_ms: time to compute or to move the data at the machine's rates, whichever is longer.
        bound: compute | memory, whichever takes longer at best.
        gflops: achieved.
        share_of_peak: gflops over the machine's.
        share_of_roofline: best_ms over ms.
        lost_ms: ms - best_ms; optimise the layer with the largest value first.
    """

    ms: float
    best_ms: float
    bound: str
    gflops: float
    share_of_peak: float
    share_of_roofline: float
    lost_ms: float


def layer_time(cost: LayerCost, ms: float, machine: Machine) -> LayerTime:
    """Compares a measured time with the roofline. Inputs, outputs and weights are moved once each, in float32."""
    computing = 1000 * cost.bflops / machine.gflops
    moving = 1000 * BYTES * (cost.elements_moved + cost.params) / 1e9 / machine.gbytes
    best = max(computing, moving)
    gflops = 1000 * cost.bflops / ms
    return LayerTime(
        ms=ms,
        best_ms=best,
        bound="compute" if computing >= moving else "memory",
        gflops=gflops,
        share_of_peak=gflops / machine.gflops,
        share_of_roofline=best / ms,
        lost_ms=ms - best,
    )


def time_table(
    costs: Sequence[LayerCost],
    times: Mapping[str, LayerTime],
    total_ms: float,
    machine: Machine,
    *,
    rows: int,
    engine: str = "PyTorch",
) -> str:
    """What to optimise first: the layers sorted by the time they lose against the roofline."""
    timed = sorted((cost for cost in costs if cost.name in times), key=lambda cost: -times[cost.name].lost_ms)
    width = max([len(cost.name) for cost in timed] + [5])
    lines = [
        f"to optimise first, run by {engine} (at best: a large matrix product reaches {machine.gflops:.0f} GFLOP/s, "
        f"a copy {machine.gbytes:.1f} GB/s, in float32):",
        f"{'layer':<{width}} {'kind':<8}{'ms':>8}{'at best':>9}{'bound':>9}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'roofline':>10}{'lost ms':>9}",
    ]
    for cost in timed[:rows]:
        one = times[cost.name]
        lines.append(
            f"{cost.name:<{width}} {cost.kind:<8}{one.ms:>8.3f}{one.best_ms:>9.3f}{one.bound:>9}{one.gflops:>9.1f}"
            f"{one.share_of_peak:>9.0%}{one.share_of_roofline:>10.0%}{one.lost_ms:>9.3f}"
        )
    layers_ms = sum(one.ms for one in times.values())
    best_ms = sum(one.best_ms for one in times.values())
    lines.append(
        f"{len(timed)} layers: {layers_ms:.2f} ms, at best {best_ms:.2f} ms; the network: {total_ms:.2f} ms, "
        f"{max(total_ms - layers_ms, 0):.2f} ms of it elsewhere (activations, additions, concatenations, overhead)"
    )
    return "\n".join(lines)
