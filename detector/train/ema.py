"""Averaged weights: an exponential moving average whose decay is a pure function of the step."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps `average`, a copy of a network that follows it slowly; it is what gets evaluated and released."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards the network after step `step` (counted from 0)."""
        decay = decay_at(step, self.decay)
        pairs = list(zip(self.average.state_dict().values(), network.state_dict().values(), strict=True))
        averages, currents = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, currents, 1 - decay)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)


def decay_at(step: int, decay: float) -> float:
    """Grows from 0.1 towards `decay`, so that the first random weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))
