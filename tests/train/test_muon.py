"""Muon: the update is orthogonal, and what is not a matrix moves as with SGD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detector.config import MuonConfig, TrainConfig
from detector.train.muon import Muon, matrices, orthogonal
from detector.train.optim import build_optimizer


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (64, 16, 1, 1), (20, 40)])
def test_an_update_has_all_directions_at_about_the_same_strength(shape: tuple[int, ...]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update[1:4] *= 30  # a few directions dominate
    strengths = torch.linalg.svdvals(orthogonal(update).flatten(1))
    assert orthogonal(update).shape == update.shape
    assert strengths.min() > 0.5
    assert strengths.max() < 1.3
    kept = (orthogonal(update) * update).sum()
    assert kept > 0, "it still goes down"


def test_only_matrices_are_orthogonalised() -> None:
    network = nn.Sequential(
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 5, groups=32),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.Conv2d(32, 6, 1),
    )
    (only,) = matrices(network)
    assert only is network[0].weight


def test_the_rest_moves_as_with_sgd() -> None:
    """Nesterov momentum over three steps, and the loop's schedule applies to both groups."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.load_state_dict(first.state_dict())
    muon = Muon([{"params": list(first.parameters())}], lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(3):
        for network, optimizer in ((first, muon), (second, sgd)):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad()
            network(torch.full((2, 4), step + 1.0)).square().sum().backward()
            optimizer.step()
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_rate_of_matrices_follows_the_schedule() -> None:
    network = nn.Linear(16, 16, bias=False)
    config = TrainConfig(optimizer=MuonConfig("muon", rate=0.2), learning_rate=0.01)
    optimizer = build_optimizer(network, config)
    before = network.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.005  # half of the peak
    network(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    moved = torch.linalg.svdvals(network.weight.detach() - before)
    assert moved.median() > 0.5 * 0.1
    assert moved.max() < 1.3 * 0.1
