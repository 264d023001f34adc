"""Muon: momentum whose update has all directions at the same strength (Jordan et al., 2024, "Muon: An optimizer for
hidden layers in neural networks"). In few steps it learns more than SGD does.

PyTorch's own Muon takes matrices only; here a convolution's kernel (out, in, k, k) is the matrix (out, in * k * k).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: singular values reach 0.7 to 1.2 in five steps, as in the reference."""
STEPS = 5
LEAST_SIDE = 16


def matrices(network: nn.Module) -> list[Tensor]:
    """What Muon updates: kernels that are one matrix of at least 16 rows and columns; grouped ones are not."""
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    weights = [layer.weight for layer in layers]
    return [each for each in weights if min(len(each), each[0].numel()) >= LEAST_SIDE]


class Muon(torch.optim.Optimizer):
    """SGD with momentum, except for groups with `rate`, whose updates are orthogonalised.

    Args:
        groups: as for SGD; in a group with `rate`, matrices move by `rate` times the group's share of the schedule.
        lr: the learning rate at the schedule's peak; the loop sets each group's `lr`.
        momentum: of both kinds, in Nesterov's form.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        self.peak = lr
        super().__init__(groups, {"lr": lr, "momentum": momentum, "rate": None})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; a parameter without one stays."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad.add(buffer, alpha=group["momentum"])
                if group["rate"] is None:
                    parameter.add_(update, alpha=-group["lr"])
                else:
                    tall = max(1.0, len(parameter) / parameter[0].numel()) ** 0.5
                    rate = group["rate"] * group["lr"] / self.peak
                    parameter.add_(orthogonal(update), alpha=-rate * tall)


def orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about 1, in the shape of `update` (out, ...)."""
    a, b, c = COEFFICIENTS
    matrix = update.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.T if tall else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(STEPS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide.T if tall else wide).reshape(update.shape)
