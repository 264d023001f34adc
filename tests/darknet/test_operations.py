"""Darknet sections against hand-computed numbers."""

import torch

from detector.darknet.operations import MaxPool, Multiply, Route, Shortcut, Softmax, Upsample


def test_partial_shortcuts_in_both_directions() -> None:
    wide, narrow = torch.ones(1, 3, 2, 2), torch.full((1, 2, 2, 2), 10.0)
    assert Shortcut("linear")(wide, narrow)[0, :, 0, 0].tolist() == [11, 11, 1]
    assert Shortcut("linear")(narrow, wide)[0, :, 0, 0].tolist() == [11, 11]
    assert wide.max() == 1, "the argument was changed"


def test_shortcut_of_another_size_is_subsampled_or_spread() -> None:
    large = torch.arange(16.0).view(1, 1, 4, 4)
    small = torch.full((1, 1, 2, 2), 100.0)
    assert Shortcut("linear")(small, large).flatten().tolist() == [100, 102, 108, 110]
    spread = Shortcut("linear")(large, small)[0, 0]
    assert spread[0].tolist() == [100, 1, 102, 3]
    assert spread[1].tolist() == [4, 5, 6, 7]


def test_shortcut_activation_comes_after_the_sum() -> None:
    x = torch.full((1, 1, 1, 1), -3.0)
    assert Shortcut("relu")(x, torch.full((1, 1, 1, 1), 5.0)).item() == 2


def test_route_groups() -> None:
    x = torch.arange(4.0).view(1, 4, 1, 1)
    assert Route(2, 1)(x).flatten().tolist() == [2, 3]
    assert Route(2, 0)(x, x + 10).flatten().tolist() == [0, 1, 10, 11]


def test_maxpool_pads_the_end_first() -> None:
    x = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 5, 5)
    assert MaxPool(2, (2, 2), 1)(x)[0, 0, 0].tolist() == [1, 3, 4]
    assert MaxPool(2, (1, 1), 1)(x)[0, 0, 0].tolist() == [1, 2, 3, 4, 4]
    assert MaxPool(3, (1, 1), 2)(x)[0, 0, 0].tolist() == [1, 2, 3, 4, 4]


def test_maxpool_with_and_without_the_cpu_programs_gap() -> None:
    x = -torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 3, 16)
    pool = MaxPool(3, (1, 1), 2).eval()
    with_gap = pool(x)[0, 0, 0].tolist()
    assert with_gap == [0, -1, -2, -3, -4, -5, -6, -7, -7, -8, -9, -10, -11, -12, -13, -14]
    whole = [0, 0, *(-float(i) for i in range(1, 15))]
    assert pool.train()(x)[0, 0, 0].tolist() == whole, "training sees whole windows"
    pool.eval().cpu_parity = False
    assert pool(x)[0, 0, 0].tolist() == whole


def test_multiply_upsample_softmax() -> None:
    weights = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    assert Multiply("linear")(weights, torch.ones(1, 2, 2, 2))[0, :, 0, 1].tolist() == [2, 3]
    assert Upsample(2, 0.5)(torch.tensor([[[[4.0]]]]))[0, 0].tolist() == [[2, 2], [2, 2]]
    halves = Softmax(2)(torch.zeros(1, 4, 1, 1))
    assert halves.tolist() == [[0.5, 0.5, 0.5, 0.5]]
