"""The paper's cost counts, checked by hand."""

import pytest
import torch
from torch import nn

from detector.analysis.complexity import complexity_table, measure_complexity, total_complexity
from detector.models.layers import ConvBN, Maxout


def test_counts_by_hand() -> None:
    network = nn.Sequential(
        ConvBN(3, 8, 3, stride=2), nn.MaxPool2d(2), Maxout(4), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1)
    )
    network.train()
    conv, pool, maxout, last, average = measure_complexity(network, (32, 64))
    assert (conv.kind, conv.params, conv.bflops * 1e9) == ("conv", 216, 2 * 216 * 16 * 32)
    assert conv.cio == 3 * 32 * 64 + 8 * 16 * 32
    assert (pool.kind, pool.bflops * 1e9, pool.output_chw) == ("maxpool", 4 * 8 * 8 * 16, (8, 8, 16))
    assert (maxout.bflops * 1e9, maxout.cio) == (8 * 8 * 16, 0)
    assert last.params == 4 * 5 + 5
    assert (average.bflops, average.cio) == (0, 5 * 8 * 16 + 5)
    totals = total_complexity(network, [conv, pool, maxout, last, average])
    assert (totals.params, totals.params_with_norm) == (241, 241 + 16)
    assert network.training, "the mode was changed"
    assert not network[0].conv._forward_hooks, "a hook was left behind"
    assert "0.00" in complexity_table([conv], totals)


def test_groups_divide_the_cost() -> None:
    (cost,) = measure_complexity(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False)), (5, 5))
    assert cost.params == 6 * 9
    assert cost.bflops == pytest.approx(2 * 54 * 9 / 1e9)


def test_hooks_are_removed_when_the_network_fails() -> None:
    network = nn.Sequential(nn.Conv2d(5, 1, 1))
    with pytest.raises(RuntimeError):
        measure_complexity(network, (8, 8))
    assert not network[0]._forward_hooks
    assert torch.is_grad_enabled()
