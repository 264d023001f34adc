"""Layer times against the roofline, with given times; no test checks real speed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from detector.analysis.complexity import LayerCost, measure_complexity
from detector.analysis.timing import Machine, layer_time, measure_layers, time_table
from detector.models.layers import ConvBN

COST = LayerCost("a", "conv", "1x1/1", (10, 10, 10), (20, 10, 10), params=200, bflops=0.02, cio=3000)


def test_a_layer_with_much_compute_is_bound_by_compute() -> None:
    time = layer_time(COST, 0.4, Machine(gflops=100, gbytes=10))
    assert time.bound == "compute"
    assert time.best_ms == pytest.approx(0.2)
    assert time.gflops == pytest.approx(50)
    assert (time.share_of_peak, time.share_of_roofline) == (pytest.approx(0.5), pytest.approx(0.5))
    assert time.lost_ms == pytest.approx(0.2)


def test_a_layer_with_much_traffic_is_bound_by_memory() -> None:
    time = layer_time(COST, 2.0, Machine(gflops=1e6, gbytes=0.0128))
    assert time.bound == "memory"
    assert time.best_ms == pytest.approx(1.0), "3,200 numbers of 4 bytes at 12.8 kB/ms"
    assert time.share_of_roofline == pytest.approx(0.5)


def test_the_layer_that_loses_most_time_comes_first() -> None:
    machine = Machine(gflops=100, gbytes=10)
    costs = [COST, LayerCost("b", "conv", "1x1/1", (10, 10, 10), (20, 10, 10), params=200, bflops=0.02, cio=3000)]
    times = {"a": layer_time(COST, 0.3, machine), "b": layer_time(costs[1], 0.9, machine)}
    lines = time_table(costs, times, 1.5, machine, rows=5).splitlines()
    assert lines[2].startswith("b ")
    assert "1.20 ms" in lines[-1]
    assert "0.30 ms of it elsewhere" in lines[-1]


def test_every_layer_is_timed_and_the_network_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("detector.analysis.timing.time.perf_counter", lambda: next(ticks) / 1000)
    network = nn.Sequential(ConvBN(3, 8, 3), nn.MaxPool2d(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = [cost.name for cost in measure_complexity(network, (32, 32))]
    times, total = measure_layers(network, names, (32, 32), runs=2)
    # the clock is read around the network, and in it around each of the two layers: five steps of 1 ms from end to end
    assert {name: round(ms, 9) for name, ms in times.items()} == {"0.conv": 1.0, "1": 1.0}
    assert round(total, 9) == 5.0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[1]._forward_hooks
