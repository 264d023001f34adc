"""Learning rate as a pure function of the step; SGD with decay on convolution weights only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from detector.config import CosinePolicy, MuonConfig, PolyPolicy, TrainConfig
from detector.train.muon import Muon, matrices

GROWTH_STEPS = 2000
"""Steps with finite gradients after which `LossScale` tries a larger scale."""


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of optimiser step `step`, counted from 0 (Darknet `get_current_rate`, whose batch number is step + 1).

    During burn-in: rate * ((step + 1) / burn_in)^4; afterwards the policy decides.
    """
    number = step + 1
    if number < config.burn_in:
        return float(config.learning_rate * (number / config.burn_in) ** 4)
    policy = config.policy
    if isinstance(policy, CosinePolicy):
        progress = (number - config.burn_in) / max(config.max_steps - config.burn_in, 1)
        share = policy.final_scale + (1 - policy.final_scale) * (1 + math.cos(math.pi * progress)) / 2
        return config.learning_rate * share
    if isinstance(policy, PolyPolicy):
        return float(config.learning_rate * (1 - number / config.max_steps) ** policy.power)
    rate = config.learning_rate
    for boundary, scale in zip(policy.steps, policy.scales, strict=True):
        if number >= boundary:
            rate *= scale
    return rate


@dataclass
class LossScale:
    """A factor that keeps the smallest gradients in fp16's range; it halves when the largest leave it (Micikevicius
    et al., 2018, "Mixed precision training"). In other precisions it stays 1.

    Attributes:
        value: multiplies the loss; a power of two, so that dividing the gradients by it is exact.
        good_steps: steps since it last changed; after GROWTH_STEPS it doubles.
    """

    value: float = 1.0
    good_steps: int = 0

    @classmethod
    def start(cls, dtype: torch.dtype) -> LossScale:
        return cls(2.0**16) if dtype == torch.float16 else cls()

    @property
    def active(self) -> bool:
        """Whether gradients that are not finite may be the scale's fault."""
        return self.value > 1

    def unscale(self, network: nn.Module) -> None:
        """Divides the gradients by the scale."""
        if self.active:
            torch._foreach_div_([value.grad for value in network.parameters() if value.grad is not None], self.value)

    def update(self, *, finite: bool) -> None:
        """Adapts the scale after a step."""
        if not self.active:
            return
        self.good_steps += 1
        if not finite:
            self.value, self.good_steps = self.value / 2, 0
        elif self.good_steps == GROWTH_STEPS:
            self.value, self.good_steps = self.value * 2, 0


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.SGD | Muon:
    """SGD; weight decay applies to convolution weights, not to biases or normalisation (as in Darknet). Or Muon,
    without decay and always in Nesterov's form, as the default recipe was measured.
    """
    if isinstance(config.optimizer, MuonConfig):
        kernels = matrices(network)
        own = {"params": kernels, "rate": config.optimizer.rate}
        taken = {id(each) for each in kernels}
        others = [each for each in network.parameters() if id(each) not in taken]
        return Muon([own, {"params": others}], lr=config.learning_rate, momentum=config.momentum)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,  # the same bits with fewer calls
    )
