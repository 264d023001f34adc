"""Feature maps in memory, counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.analysis.liveness import LiveTensors, activation_memory


class KeepsTwo(nn.Module):
    """Its input stays alive while both convolutions run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + 0.0 * x.sum()


def test_the_peak_counts_what_is_held_at_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 8, 1))
    peak, held = activation_memory(network, (10, 10))
    # The caller holds the image; the 4 channels and the 8 channels exist together in the last layer.
    assert peak == 4 * 100 * (3 + 4 + 8)
    assert held["0"] == held["1"] == 4 * 100 * (3 + 4), "an in-place activation takes no memory"
    assert network.training, "the mode was changed"


def test_views_take_no_memory_and_released_memory_is_not_counted() -> None:
    with LiveTensors() as live:
        first = torch.zeros(100)
        assert live.live_bytes == 400
        half = first[:50]
        assert live.live_bytes == 400
        del first
        assert live.live_bytes == 400, "the view still holds it"
        del half
        assert live.live_bytes == 0
        assert live.peak_bytes == 400


def test_memory_can_be_counted_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = KeepsTwo()
    assert activation_memory(network, (10, 10))[0] == activation_memory(KeepsTwo(), (10, 10))[0]
