"""Learning rate as a pure function of the step; SGD with decay on convolution weights only."""

from __future__ import annotations

import math

import torch
from torch import nn

from detector.config import CosinePolicy, PolyPolicy, TrainConfig


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


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD; weight decay applies to convolution weights, not to biases or normalisation (as in Darknet)."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
